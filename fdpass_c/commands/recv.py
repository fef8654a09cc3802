"""fdpass recv: receive open files at a named socket; print or save them, or run a program on
them."""

import argparse
import contextlib
import errno
import fcntl
import os
import socket
from typing import Any

from fdpass_c.commands import rendezvous
from fdpass_c.commands.arguments import MOST_PAYLOAD, count, numbers
from fdpass_c.commands.copy import copy
from fdpass_c.commands.errors import complain, describe, escape
from fdpass_c.commands.signals import restore_for_program
from fdpass_c.commands.streams import find_output, write_all
from fdpass_c.errors import FdpassError, PeerClosedError
from fdpass_c.messages import recv_fd
from fdpass_c.unix import naming

_DESCRIPTION = """\
Receive open files over a named socket, one per plain message, until the peer closes. Print them one
after the other, or save them, or run a program that has them open.
"""

_EPILOG = """\
A program after -- replaces fdpass when it has all descriptors that it needs: one, as its standard
input, or one for each number of --at. The exit status is then the program's.

  fdpass recv --connect /tmp/s
  fdpass recv --listen /tmp/s --save incoming
  fdpass recv --connect /tmp/s -- wc -l
  fdpass recv --connect /tmp/s --at 3,4 -- diff /dev/fd/3 /dev/fd/4
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "recv",
        help="receive open files over a named socket: print, save, or run a program on them",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="fdpass recv (--listen PATH | --connect PATH) [options] [-- PROGRAM ...]",
    )
    rendezvous.add_arguments(parser)
    parser.add_argument("--count", type=count, metavar="N", help="stop after N files")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--names",
        action="store_true",
        help="print the payloads, one per line, with control characters escaped",
    )
    what.add_argument(
        "--save",
        metavar="DIRECTORY",
        help="copy each file into it, under the last part of its name; creates the directory, "
        "replaces no file",
    )
    what.add_argument(
        "--at",
        type=numbers,
        metavar="N,N...",
        help="with PROGRAM: the numbers of the descriptors there (default: 0)",
    )
    parser.add_argument("program", nargs="*", metavar="PROGRAM", help=argparse.SUPPRESS)
    parser.set_defaults(run=run, parser=parser)


def run(options: argparse.Namespace) -> int:
    if options.program and (options.names or options.save is not None or options.count):
        options.parser.error("--names, --save and --count do not go with a program")
    if options.program[:1] == [""]:
        options.parser.error("the name of the program is empty")
    if options.at and not options.program:
        options.parser.error("--at needs a program, after --")
    if options.save is not None:
        _make_directory(options.save)
    elif not options.program:
        find_output()
    with rendezvous.meet(options) as sock:
        if options.program:
            return _execute(sock, options.at or [0], options.program)
        return _receive(sock, options)


def _receive(sock: socket.socket, options: argparse.Namespace) -> int:
    failed = False
    left = options.count
    while left is None or left > 0:
        try:
            name, fds = recv_fd(sock, MOST_PAYLOAD)
        except PeerClosedError:
            if left:
                _complain_short(left, options.count)
            return 1 if failed or left else 0
        with fds:
            failed |= not _use(name, fds[0], options)
        if left is not None:
            left -= 1
    return 1 if failed else 0


def _complain_short(left: int, wanted: int) -> None:
    complain("recv", f"the peer closed too early: {left} of {wanted} files did not come")


def _use(name: bytes, fd: int, options: argparse.Namespace) -> bool:
    """Prints or saves one file; returns whether that succeeded."""
    if options.names:
        # Backslashes are escaped too, so that no two names are printed in the same way.
        line = escape(os.fsdecode(name).replace("\\", "\\\\"))
        write_all(find_output(), os.fsencode(line) + b"\n")
        return True
    if options.save is None:
        problem = copy(fd, find_output(), options.timeout)
    else:
        try:
            path = os.path.join(os.fsencode(options.save), _last_part(name))
            problem = _save(path, fd, options.timeout)
        except (OSError, FdpassError) as error:
            complain("recv", describe(error))
            return False
    if problem:
        complain("recv", f"{os.fsdecode(name)}: {problem.strerror}")
    return not problem


def _last_part(name: bytes) -> bytes:
    """Returns the name without folders: a peer chose it, and it must not lead out of the
    directory."""
    last = os.path.basename(name)
    if last in (b"", b".", b"..") or b"\0" in last:
        raise FdpassError(f"{os.fsdecode(name)}: cannot be the name of a file")
    return last


def _save(path: bytes, fd: int, timeout: float | None) -> OSError | None:
    """Copies fd into a new file. An incomplete file is removed, so that a retry can work."""
    whole = False
    # With map, so that no signal handler can raise between the call and the assignment.
    (target,) = map(os.open, (path,), (os.O_WRONLY | os.O_CREAT | os.O_EXCL,), (0o666,))
    try:
        try:
            problem = copy(fd, target, timeout)
        finally:
            os.close(target)  # Some file systems report only here that the disk is full.
        whole = problem is None
        return problem
    except OSError as error:
        error.filename = path
        raise
    finally:
        if not whole:
            # An error here would replace the signal, or the reason why the file is incomplete.
            with contextlib.suppress(OSError):
                os.unlink(path)


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None


def _execute(sock: socket.socket, numbers: list[int], program: list[str]) -> int:
    """Executes the program, with received descriptors at these numbers. Returns an exit status if
    too few were received."""
    aside: list[int] = []
    try:
        for _ in numbers:
            aside.append(_move(recv_fd(sock, MOST_PAYLOAD)[1].take(), numbers))
    except PeerClosedError:
        _complain_short(len(numbers) - len(aside), len(numbers))
        return 1
    stderr = _move(2, numbers)
    try:
        for fd, number in zip(aside, numbers, strict=True):
            with naming(f"--at {number}"):
                os.dup2(fd, number)
        restore_for_program()
        with naming(program[0]):
            return os.execvp(program[0], program)
    except OSError:
        os.dup2(stderr, 2)  # The complaint is not for a received file.
        raise


def _move(fd: int, numbers: list[int]) -> int:
    """Returns fd, or if it has one of these numbers, a duplicate that has none of them. All that
    are left behind are closed when the program is executed."""
    while fd in numbers:
        fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    return fd
