"""fdpass send: pass open files to whoever receives at a named socket."""

import argparse
import os
import sys
from typing import Any

from fdpass_c.commands import rendezvous
from fdpass_c.commands.errors import complain, describe
from fdpass_c.messages import send_fd

_DESCRIPTION = """\
Open files and pass them over a named socket, each as one plain message: the descriptor, with the
file's name as payload. Any program that receives SCM_RIGHTS can be the peer, fdpass recv is one.
"""

_EPILOG = """\
The files are opened before the peer is met. One that cannot be opened is reported, the others are
passed, and the exit status is 1.

  fdpass send --listen /tmp/s notes.txt        and elsewhere  fdpass recv --connect /tmp/s
  fdpass send --connect /tmp/s --payload hello notes.txt
  make | fdpass send --connect /tmp/s -
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "send",
        help="pass open files over a named socket",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rendezvous.add_arguments(parser)
    parser.add_argument(
        "--payload", type=_not_empty, metavar="TEXT", help="send this in place of each file's name"
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="- is standard input")
    parser.set_defaults(run=run)


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a descriptor needs at least one byte to travel with")
    return text


def run(options: argparse.Namespace) -> int:
    opened = []
    failed = False
    for name in options.files:
        try:
            opened.append((name, sys.stdin.fileno() if name == "-" else os.open(name, os.O_RDONLY)))
        except OSError as error:
            failed = True
            complain("send", describe(error))
    if opened:
        with rendezvous.meet(options) as sock:
            for name, fd in opened:
                send_fd(sock, fd, os.fsencode(options.payload or name))
    return 1 if failed else 0
