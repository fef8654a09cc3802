"""What the tests of Channel share."""

import contextlib
import os
import platform
import resource
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from helpers import identities, is_open

import fdpass_c
from fdpass_c import Channel

PACKED, FIRST, NEXT, WITHDRAWN = 1, 2, 3, 4
SAME_LENGTH, ONE_EACH = 1, 2

Message = tuple[bytes, list[tuple[int, int]]]
"""A payload and what its descriptors point to."""


def pack(
    kind: int = PACKED,
    flags: int = 0,
    fds: int = 0,
    messages: int = 0,
    body: bytes = b"",
    *,
    size: int | None = None,
    magic: bytes = b"FDP\1",
) -> bytes:
    """A frame by docs/wire-format.md alone; size: what the header says, where that is a lie."""
    length = len(body) if size is None else size
    return struct.pack("<4sBBHII", magic, kind, flags, fds, messages, length) + body


def one(payload: bytes, fds: int = 0) -> bytes:
    """A frame with one message."""
    counts = struct.pack("<H", fds) if fds else b""
    return pack(PACKED, 0, fds, 1, struct.pack("<I", len(payload)) + counts + payload)


def first(payload: int, fds: int, piece: bytes = b"", attached: int = 0) -> bytes:
    """The first piece of a large message of that many bytes and descriptors."""
    return pack(FIRST, 0, attached, 0, struct.pack("<QI", payload, fds) + piece)


@contextmanager
def raw_pair(
    kind: socket.SocketKind = socket.SOCK_STREAM, **options: Any
) -> Iterator[tuple[socket.socket, Channel]]:
    """A socket, and the Channel at its other end."""
    try:
        left, right = socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        pytest.skip(f"no {kind.name}: {error}")
    with left, Channel(right, **options) as channel:
        yield left, channel


@contextmanager
def channels(
    kind: socket.SocketKind = socket.SOCK_STREAM, buffer: int | None = None, **options: Any
) -> Iterator[tuple[Channel, Channel]]:
    """A sender, perhaps with a small buffer, and a receiver with the options."""
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    if buffer is not None:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    with Channel(left) as sender, Channel(right, **options) as receiver:
        yield sender, receiver


def take(message: tuple[bytes, fdpass_c.Descriptors]) -> Message:
    """What a received message is; its descriptors are closed."""
    payload, fds = message
    with fds:
        return payload, identities([*fds])


def take_batch(batch: fdpass_c.Batch) -> list[Message]:
    """What the messages of a batch are; their descriptors are closed."""
    with batch:
        return [(payload, identities(fds)) for payload, fds in batch]


@contextmanager
def beside(function: Callable[[], object]) -> Iterator[None]:
    """Runs function in a thread while the block runs; what it raises fails the test."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


# The numbers of poll and ppoll, by machine and whether Python has 64 bits: a kernel that says
# x86_64 runs both.
_POLL = {
    ("x86_64", True): ("7", "271"),
    ("x86_64", False): ("168", "309"),
    ("i686", False): ("168", "309"),
    ("aarch64", True): ("73",),
    ("ppc64le", True): ("167",),
}


@contextmanager
def once_polling(action: Callable[[], object]) -> Iterator[None]:
    """As once_blocked, for a thread that waits in poll."""
    state = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    numbers = _POLL.get((platform.machine(), sys.maxsize > 2**32), ())
    if not numbers or not state.exists():
        pytest.skip("the kernel does not tell in which system call a thread waits")
    left = threading.Event()

    def watch() -> None:
        while not left.is_set():
            if state.read_text().split()[0] in numbers:
                action()
                return

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


@contextmanager
def table_of(limit: int) -> Iterator[None]:
    """Lets this process have that many descriptors open, and an ordinary user in flight."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):
        pytest.skip(f"RLIMIT_NOFILE cannot be {limit}")
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_numbers() -> list[int]:
    """The open descriptors, found without opening another."""
    return [fd for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if is_open(fd)]


def fill_table(free: int) -> list[int]:
    """Opens descriptors until only that many more can be."""
    filler = []
    with contextlib.suppress(OSError):
        while True:
            filler.append(os.dup(0))
    for _ in range(free):
        os.close(filler.pop())
    return filler


def open_unique(count: int) -> list[int]:
    """Open files, no two the same."""
    fds = []
    for _ in range(count):
        fd, path = tempfile.mkstemp()
        os.unlink(path)
        fds.append(fd)
    return fds


def repeat(fds: Sequence[int], count: int) -> list[int]:
    """The descriptors over and over, that many in all."""
    return [fds[position % len(fds)] for position in range(count)]
