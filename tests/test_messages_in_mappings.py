"""Messages in memory that is not Python's own: only the kernel touches it, and nobody copies it."""

import array
import contextlib
import ctypes
import errno
import gc
import itertools
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel
from support.descriptors import identity
from support.frames import FIRST
from support.marks import linux_only
from support.messages import progress_of, recv_one, take
from support.processes import run_in_child
from support.sockets import Pair, drain
from support.threads import beside

PAGE = mmap.PAGESIZE
TOTAL = 30 * PAGE


def cut_at(left: int) -> mmap.mmap:
    """A mapping of a memory file that was cut to so many bytes."""
    fd = os.memfd_create("cut")
    os.truncate(fd, TOTAL)
    mapping = mmap.mmap(fd, TOTAL)
    mapping[:left] = b"x" * left
    os.truncate(fd, left)
    os.close(fd)
    return mapping


def survives(action: Callable[[], object]) -> None:
    """Runs action in a child, which a SIGBUS ends at once."""

    def act() -> None:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        action()

    run_in_child(act)


def views(mapping: mmap.mmap, left: int) -> dict[str, Any]:
    """Buffers in the mapping that have something of what is gone."""
    whole = memoryview(mapping)
    return {
        "mapping": mapping,
        "a little of what is gone": whole[left + 10 : left + 110],
        "around the cut": whole[max(left - 100, 0) : left + 100],
        "its last byte gone": whole[: left + 1],
    }


NAMES = [
    "mapping",
    "a little of what is gone",
    "around the cut",
    "its last byte gone",
]

CUTS = [*itertools.product([0, 15 * PAGE], NAMES, [None, 0])]
"""How much is left of the mapping, what of it is sent, and the timeout."""

EFAULT = os.strerror(errno.EFAULT)

PLAIN: dict[str, Callable[[socket.socket, Any, int], Any]] = {
    "send_fds": lambda sock, buffer, fd: fdpass_c.send_fds(sock, [buffer], [fd]),
    "send_fds of two": lambda sock, buffer, fd: fdpass_c.send_fds(sock, [b"", buffer], [fd]),
    "send_fd": lambda sock, buffer, fd: fdpass_c.send_fd(sock, fd, buffer),
    "send_many": lambda sock, buffer, fd: fdpass_c.send_many(sock, [buffer], [fd]),
    "send_many of rows": lambda sock, buffer, fd: fdpass_c.send_many(sock, [buffer], [[fd, fd]]),
}


@linux_only
@pytest.mark.thread_unsafe
@pytest.mark.parametrize("way", PLAIN)
def test_plain(way: str, file: int) -> None:
    """A plain send is EFAULT and nothing of it leaves, or a part does and the count says so."""

    def act() -> None:
        kinds = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)
        for kind, (left, name, timeout) in itertools.product(kinds, CUTS):
            pair = socket.socketpair(socket.AF_UNIX, kind)
            pair[0].settimeout(timeout)
            with pair[0], pair[1]:
                buffer = views(cut_at(left), left)[name]
                code, sent = 0, 0
                try:
                    sent = PLAIN[way](pair[0], buffer, file)
                except OSError as error:
                    code = error.errno or 0
                    part = getattr(error, "progress", fdpass_c.Progress()).bytes
                    sent = getattr(error, "characters_written", part)
                assert code == errno.EFAULT or (way.startswith("send_fds") and sent > 0)
                assert sent < memoryview(buffer).nbytes
                assert kind == socket.SOCK_STREAM or sent == 0
                assert len(drain(pair[1])) == sent
                assert fdpass_c.send_fds(pair[0], [b"after"], [file]) == 5
                assert recv_one(pair[1]) == (b"after", [identity(file)])

    survives(act)


@linux_only
@pytest.mark.thread_unsafe
def test_plain_many(file: int) -> None:
    """send_many says how many messages left before the one that is gone; the rest may follow."""

    def act() -> None:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with pair[0], pair[1]:
            mapping = cut_at(PAGE)
            buffers: list[Any] = [memoryview(mapping)[:10]] * 100
            buffers[70] = memoryview(mapping)[PAGE : PAGE + 10]
            with pytest.raises(OSError, match=EFAULT) as caught:
                fdpass_c.send_many(pair[0], buffers, [file] * 100)
            assert progress_of(caught.value) == (70, 0)
            assert drain(pair[1]) == b"x" * 700
            buffers[70] = b"whole"
            fdpass_c.send_many(pair[0], buffers, [file] * 100, start=progress_of(caught.value))
            assert drain(pair[1]) == b"whole" + b"x" * 290

    survives(act)


CHANNEL: dict[str, Callable[[Channel, Any, list[int]], object]] = {
    "send": lambda channel, buffer, fds: channel.send(buffer, fds),
    "send_many": lambda channel, buffer, fds: channel.send_many([buffer], [fds]),
    "send_many, last": lambda channel, buffer, fds: channel.send_many(
        [b"one", memoryview(b"two"), buffer], [[], fds[:1], fds]
    ),
}


@linux_only
@pytest.mark.thread_unsafe
@pytest.mark.parametrize("way", CHANNEL)
def test_channel(way: str, file: int) -> None:
    """A Channel's send is EFAULT, nothing of that message is delivered, and the channel goes on."""

    def act() -> None:
        for left, name, timeout in CUTS:
            for count in COUNTS:
                attempt(socket.SOCK_STREAM, count, None, left, name, timeout)
            attempt(socket.SOCK_SEQPACKET, 1, None, left, name, timeout)
            if timeout != 0:
                attempt(socket.SOCK_STREAM, 1, 5000, left, name, timeout)

    def attempt(
        kind: socket.SocketKind,
        count: int,
        buffer: int | None,
        left: int,
        name: str,
        timeout: float | None,
    ) -> None:
        before = [b"one", b"two"] * way.endswith("last")
        payload = views(cut_at(left), left)[name]
        pair = socket.socketpair(socket.AF_UNIX, kind)
        if buffer is not None:
            pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        with Channel(pair[0]) as sender, Channel(pair[1]) as receiver:
            with beside(partial(receive_until_after, receiver), *pair) as received:
                sender.settimeout(timeout)
                with pytest.raises(OSError, match=EFAULT) as caught:
                    CHANNEL[way](sender, payload, [file] * count)
                assert progress_of(caught.value) == (len(before), 0)
                sender.settimeout(None)
                sender.send(b"after", [file] * count)
            assert received == [[*before, b"after"]]

    survives(act)


COUNTS = (0, 1, 300)


def receive_until_after(channel: Channel) -> list[bytes]:
    """The messages that come, up to one that says so."""
    received: list[bytes] = []
    while received[-1:] != [b"after"]:
        received.append(take(channel.recv())[0])
    return received


LARGE = 16 * 2**20


def read_into(sock: socket.socket, memory: memoryview) -> int:
    """Fills memory, or as much of it as comes before the end; descriptors are lost."""
    at = 0
    while at < len(memory) and (size := sock.recv_into(memory[at:])):
        at += size
    return at


def send_plain(sock: socket.socket, data: Any, fd: int) -> None:
    sent = fdpass_c.send_fds(sock, [data], [fd])
    while sent < LARGE:  # Where it has a timeout, as the standard library's.
        sent += fdpass_c.send_fds(sock, [memoryview(data).cast("B")[sent:]], [])


def send_in_channel(sock: socket.socket, data: Any, fd: int) -> None:
    with Channel(sock.dup()) as channel:
        channel.send(data, [fd])


def send_many_in_channel(sock: socket.socket, data: Any, fd: int) -> None:
    with Channel(sock.dup()) as channel:
        channel.send_many([data], [[fd]])


def payloads(frames: memoryview) -> Iterator[memoryview]:
    """The payloads of pieces of a large message, by docs/wire-format.md."""
    at = 0
    while at < len(frames):
        kind, size = struct.unpack_from("<4xB7xI", frames, at)
        start = at + 16 + (12 if kind == FIRST else 0)
        at += 16 + size
        yield frames[start:at]


def most_memory() -> int:
    """KiB that this process had at most, without files: of PyPy's code, 4 MiB come when it runs."""
    files = int(Path("/proc/self/statm").read_text().split()[2]) * PAGE // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - files


def free_memory() -> None:
    """Hands back to the system what is free already: a copy into that would not show."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


Send = Callable[[socket.socket, Any, int], object]
SENDS: list[Send] = [
    send_plain,
    lambda sock, data, fd: fdpass_c.send_fd(sock, fd, data),
    lambda sock, data, fd: fdpass_c.send_many(sock, [data], [fd]),
    send_in_channel,
    send_many_in_channel,
]


@linux_only
@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("send", "timeout"),
    [*((send, None) for send in SENDS), (send_plain, 1000), (send_in_channel, 1000)],
)
def test_large_array_is_not_copied(
    send: Callable[[socket.socket, Any, int], object],
    timeout: float | None,
    file: int,
    stream: Pair,
) -> None:
    """16 MiB go to the kernel from where they are, and all of them arrive."""
    data: Any = array.array("q", os.urandom(LARGE))
    if sys.implementation.name == "pypy":  # It copies arrays, which it may resize meanwhile.
        data = mmap.mmap(-1, LARGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        data.write(os.urandom(LARGE))
    # What is beside the payload: the heads of its frames.
    memory = mmap.mmap(-1, LARGE + 2**20)
    view = memoryview(memory)

    def act() -> None:
        stream[1].close()
        stream[0].settimeout(timeout)
        before = most_memory()
        send(stream[0], data, file)
        assert most_memory() - before < 4096

    free_memory()
    with beside(partial(read_into, stream[1], view), *stream) as sizes:
        run_in_child(act)
        stream[0].close()
    (size,) = sizes
    assert size >= LARGE
    pieces = [view[:size]] if size == LARGE else [*payloads(view[:size])]
    assert b"".join(pieces) in (memoryview(data).tobytes(),)
    for piece in [*pieces, view]:
        piece.release()
    memory.close()
