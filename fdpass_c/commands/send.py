"""fdpass send: passes open files over a named socket."""

import argparse
import errno
import os
import socket
import time
from typing import Any

from fdpass_c.commands import rendezvous
from fdpass_c.commands.arguments import MOST_PAYLOAD
from fdpass_c.commands.errors import complain, describe
from fdpass_c.commands.streams import open_input
from fdpass_c.descriptors import close_fds
from fdpass_c.errors import PeerClosedError
from fdpass_c.messages import send_fd

_DESCRIPTION = """\
Open files and pass them over a named socket. Each is one plain message: the descriptor, with the
file's name as payload. The peer is fdpass recv, or any other program that receives SCM_RIGHTS.
"""

_EPILOG = """\
As many files as this process can have open are opened before the peer connects. The others are
opened when the first ones have been passed. A file that cannot be opened is reported, the others
are passed, and the exit status is 1.

  fdpass send --listen /tmp/s notes.txt        and elsewhere  fdpass recv --connect /tmp/s
  fdpass send --connect /tmp/s --payload hello notes.txt
  make | fdpass send --connect /tmp/s -
"""

# Places in the descriptor table for the socket, the listening socket, its lock file, and one more.
_SPARE = 4

# Seconds between two tries while the user has too many descriptors in flight.
_RETRY = 0.01


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
        "--payload", type=_payload, metavar="TEXT", help="send this instead of each file's name"
    )
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a file to pass; - is standard input"
    )
    parser.set_defaults(run=run)


def _payload(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a descriptor needs at least one byte to travel with")
    if len(os.fsencode(text)) > MOST_PAYLOAD:
        raise argparse.ArgumentTypeError(f"more than the {MOST_PAYLOAD} bytes that recv takes")
    return text


def run(options: argparse.Namespace) -> int:
    names = options.files[::-1]
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(_SPARE)]
    opened, failed = _open_some(names)
    close_fds(spare)
    if opened:
        with rendezvous.meet(options) as sock:
            while opened:
                for name, fd in opened:
                    _send(sock, fd, os.fsencode(options.payload or name))
                close_fds([fd for _, fd in opened if fd])
                opened, more_failed = _open_some(names)
                failed |= more_failed
    return 1 if failed else 0


def _open_some(names: list[str]) -> tuple[list[tuple[str, int]], bool]:
    """Opens files until the table is full. The last of names comes first. Removes their names.

    Returns the names and descriptors of the opened files, and whether any could not be opened.
    """
    opened: list[tuple[str, int]] = []
    failed = False
    while names:
        try:
            opened.append((names[-1], open_input(names[-1])))
        except OSError as error:
            if opened and error.errno in (errno.EMFILE, errno.ENFILE):
                break
            failed = True
            complain("send", describe(error))
        names.pop()
    return opened, failed


def _send(sock: socket.socket, fd: int, payload: bytes) -> None:
    """Sends one descriptor. Tries again while the user has too many descriptors in flight, because
    selectors do not report when there are fewer."""
    timeout = sock.gettimeout()
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            send_fd(sock, fd, payload)
            return
        except BrokenPipeError:
            raise PeerClosedError("the peer closed before it had received all") from None
        except OSError as error:
            full = error.errno == errno.ETOOMANYREFS
            if not full or (until is not None and time.monotonic() >= until):
                raise
        time.sleep(_RETRY)
