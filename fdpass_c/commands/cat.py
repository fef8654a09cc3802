"""fdpass cat: one process opens files, another prints them."""

import argparse
import errno
import os
import select
import signal
import threading
from typing import Any, NoReturn

from fdpass_c.channel import Channel
from fdpass_c.commands.copy import copy
from fdpass_c.commands.errors import complain
from fdpass_c.commands.streams import find_output, open_input
from fdpass_c.errors import PeerClosedError

_DESCRIPTION = """\
Print files, as cat does, by passing descriptors: a child process opens each file and passes it with
its name over a socket pair. The parent opens nothing and prints the files that it receives.
"""

_EPILOG = """\
A file that cannot be opened or read is reported, the others are printed, and the exit status is 1.

  fdpass cat /etc/hosts
  echo from the pipe | fdpass cat - /etc/hosts
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "cat",
        help="print files that a child opens and passes",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files",
        nargs="*",
        default=["-"],
        metavar="FILE",
        help="a file to print; - is standard input (default: -)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    output = find_output()
    # If this process were started with SIGCHLD ignored, waitpid would find no child.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    ours, theirs = Channel.pair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            _run_child(ours, theirs, options.files)
        try:
            with ours:  # When this end is closed, the child ends.
                theirs.close()
                failed = _print_each(ours, output)
        finally:
            _, status = os.waitpid(pid, 0)
    if status:
        complain("cat", "the child that opens the files failed")
    return 1 if failed or status else 0


def _run_child(ours: Channel, theirs: Channel, names: list[str]) -> NoReturn:
    """In the child: passes each file, and exits."""
    status = 1
    try:
        ours.close()
        theirs.wait_in_flight = True
        _end_with_parent(theirs)
        _open_each(theirs, names)
        status = 0
    except (BrokenPipeError, KeyboardInterrupt):
        pass  # The parent has exited, or handles the Ctrl-C itself.
    finally:
        os._exit(status)


def _end_with_parent(channel: Channel) -> None:
    """In the child: starts a thread that exits when the parent does. Otherwise the child could wait
    for ever while it opens a FIFO."""
    poller = select.poll()
    poller.register(channel, 0)  # POLLHUP is always reported.

    def watch() -> None:
        poller.poll()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _open_each(channel: Channel, names: list[str]) -> None:
    """In the child: sends a message for each file. It has an errno and the name, and the descriptor
    if the errno is 0."""
    for name in names:
        try:
            fd = open_input(name)
        except OSError as error:
            channel.send(f"{error.errno} ".encode() + os.fsencode(name))
            continue
        channel.send(b"0 " + os.fsencode(name), [fd])
        if fd:
            os.close(fd)


def _wait_for_child(channel: Channel, output: int) -> None:
    """In the parent: waits until the child sends something. BrokenPipeError: output has no reader.

    While the child waits in open(), the parent writes nothing. Only this check tells it that the
    reader of its output has gone.
    """
    if channel.pending:
        return
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.register(output, 0)  # POLLERR is always reported.
    if channel.fileno() not in dict(poller.poll()):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _print_each(channel: Channel, output: int) -> bool:
    """In the parent: prints each file. Returns whether any of them failed."""
    failed = False
    while True:
        _wait_for_child(channel, output)
        try:
            payload, fds = channel.recv()
        except PeerClosedError:
            return failed
        code, _, name = payload.partition(b" ")
        with fds:
            problem = copy(fds[0], output) if fds else OSError(int(code), os.strerror(int(code)))
        if problem:
            failed = True
            complain("cat", f"{os.fsdecode(name)}: {problem.strerror}")
