"""Gather writes: many buffers to one descriptor, and the same buffers to many."""

import hashlib
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product, repeat

import fdpass_c
from benchmarks.floor import Drain, FloorWriter
from benchmarks.results import FLOOR, OURS
from benchmarks.runner import Case, Contender, SkipCase, Table, timed_without
from benchmarks.ways import LARGE_BUFFER, Peer, across, count_capacity, open_pair

_COUNTS = (2, 10, 100, 1000)
_SIZES = (16, 64, 1024, 16384)

# How many bytes are written to a memory file before it is rewound.
_STRETCH = 1 << 20
# If a pass writes more bytes than this, another process has to read from the socket.
_ALONE = 160 << 10
_MOST_PASSES = 256

_TARGETS = (8, 64)
_BROADCAST = (8, 64)

_Write = Callable[[int], object]


def _repeated(write: Callable[[], object]) -> _Write:
    def run(passes: int) -> None:
        for _ in repeat(None, passes):
            write()

    return run


def _make_buffers(count: int, size: int) -> list[bytes]:
    return [bytes([number % 256]) * size for number in range(count)]


def _writers(fd: int, buffers: list[bytes]) -> dict[str, _Write]:
    """Returns all functions that can write buffers to any descriptor."""
    return {
        "os.writev": _repeated(partial(os.writev, fd, buffers)),
        OURS: _repeated(partial(fdpass_c.writev, fd, buffers)),
        FLOOR: FloorWriter([fd], buffers).write,
    }


def _socket_writers(sock: socket.socket, buffers: list[bytes]) -> dict[str, _Write]:
    by_hand = {"socket.sendmsg": _repeated(partial(sock.sendmsg, buffers))}
    return {**_writers(sock.fileno(), buffers), **by_hand}


def _require(name: str, right: bool) -> None:
    if not right:
        raise RuntimeError(f"{name}: what was written is not what arrived")


def _open_memory_file(count: int, size: int, stack: ExitStack) -> list[Contender]:
    if not hasattr(os, "memfd_create"):
        raise SkipCase("this system has no memfd_create")
    buffers = _make_buffers(count, size)
    expected = b"".join(buffers)
    fd = os.memfd_create("benchmark")
    stack.callback(os.close, fd)

    def rewind(_passes: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)

    def verify(name: str, write: _Write) -> None:
        os.ftruncate(fd, 0)
        rewind(0)
        write(1)
        _require(name, os.pread(fd, len(expected) + 1, 0) == expected)
        rewind(0)

    chunk = max(1, _STRETCH // len(expected))
    return [
        Contender(name, timed_without(rewind, chunk, write), partial(verify, name, write))
        for name, write in _writers(fd, buffers).items()
    ]


def _make_drained(
    name: str,
    write: _Write,
    rights: Sequence[socket.socket],
    expected: bytes,
    capacity: int,
) -> Contender:
    """Makes a contender that writes until the sockets are almost full. The time of reading is not
    counted."""
    drain = Drain([right.fileno() for right in rights], len(expected))

    def verify() -> None:
        write(1)
        for right in rights:
            _require(name, right.recv(len(expected), socket.MSG_WAITALL) == expected)

    return Contender(name, timed_without(drain, capacity, write), verify)


def _choose_capacity(left: socket.socket, right: socket.socket, size: int) -> int:
    capacity = count_capacity(left, right, size, _MOST_PASSES)
    if capacity == 0:
        raise SkipCase(f"a socket buffer does not hold {size} bytes (sysctl net.core.wmem_max)")
    # Half of the capacity, because a message in several pieces takes more room than one piece.
    return max(1, capacity // 2)


def _open_socket_alone(buffers: list[bytes], stack: ExitStack) -> list[Contender]:
    left, right = open_pair(stack, LARGE_BUFFER)
    expected = b"".join(buffers)
    capacity = _choose_capacity(left, right, len(expected))
    return [
        _make_drained(name, write, [right], expected, capacity)
        for name, write in _socket_writers(left, buffers).items()
    ]


def _open_socket_across(buffers: list[bytes], stack: ExitStack) -> list[Contender]:
    left, right = open_pair(stack)
    total = sum(map(len, buffers))

    def observe() -> str:
        return hashlib.sha256(right.recv(total, socket.MSG_WAITALL)).hexdigest()

    peer = Peer(Drain([right.fileno()], total), observe, close_in_child=[left])
    stack.callback(peer.close)
    right.close()
    expected = hashlib.sha256(b"".join(buffers)).hexdigest()
    return [
        across(name, write, peer, expected)
        for name, write in _socket_writers(left, buffers).items()
    ]


def _open_socket(count: int, size: int, stack: ExitStack) -> list[Contender]:
    open_case = _open_socket_alone if count * size <= _ALONE else _open_socket_across
    return open_case(_make_buffers(count, size), stack)


def _open_broadcast(targets: int, size: int, stack: ExitStack) -> list[Contender]:
    pairs = [open_pair(stack) for _ in range(targets)]
    rights = [right for _, right in pairs]
    fds = [left.fileno() for left, _ in pairs]
    buffers = _make_buffers(2, size)
    expected = b"".join(buffers)
    capacity = _choose_capacity(*pairs[0], len(expected))

    def write_each() -> None:
        for fd in fds:
            os.writev(fd, buffers)

    writers = {
        "os.writev": _repeated(write_each),
        OURS: _repeated(partial(fdpass_c.broadcast, fds, buffers)),
        FLOOR: FloorWriter(fds, buffers).write,
    }
    return [
        _make_drained(name, write, rights, expected, capacity) for name, write in writers.items()
    ]


def _grid(open_case: Callable[[int, int, ExitStack], list[Contender]], _quick: bool) -> list[Case]:
    return [
        Case(f"{count} x {size} B", 1, partial(open_case, count, size))
        for count, size in product(_COUNTS, _SIZES)
    ]


def _broadcast(_quick: bool) -> list[Case]:
    return [
        Case(f"2 x {size} B to {targets} sockets", targets, partial(_open_broadcast, targets, size))
        for targets, size in product(_TARGETS, _BROADCAST)
    ]


TABLES = [
    Table(
        "writev-memfd",
        "so many buffers of that size into a file in memory",
        "call",
        "os.writev",
        [
            f"The file is rewound every {_STRETCH >> 20} MiB, off the clock; its memory is there",
            "already, so growing a file is not in it. A file on a disk costs more, and the ratios",
            "shrink.",
            "The buffers are separate bytes objects, ready, and the same ones in each pass, so",
            "small totals stay in the CPU's cache.",
        ],
        partial(_grid, _open_memory_file),
    ),
    Table(
        "writev-socket",
        "so many buffers of that size into a stream socket",
        "call",
        "os.writev",
        [
            f"Up to {_ALONE >> 10} KiB a call: one process, which drains the socket off the clock.",
            "Above: a second process drains it, and the time ends when it has read everything, so",
            "there the reader's speed counts too.",
        ],
        partial(_grid, _open_socket),
    ),
    Table(
        "broadcast",
        "the same two buffers to many stream sockets",
        "socket",
        "os.writev",
        [
            "os.writev is called in a loop, one socket after the other.",
            "Nobody waits for the bytes: the sockets are drained off the clock. With readers",
            "asleep each write also wakes one, which costs everybody the same.",
        ],
        _broadcast,
    ),
]
