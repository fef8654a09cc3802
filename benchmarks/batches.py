"""Batches: many messages, each with one descriptor, in one process, across two processes, and in
long streams."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import fdpass_c
from benchmarks.floor import FloorWay
from benchmarks.results import OURS, STANDARD
from benchmarks.runner import Case, Contender, Table
from benchmarks.ways import (
    LARGE_BUFFER,
    Observation,
    Peer,
    PythonWay,
    Way,
    across,
    busy_thread,
    here,
    identify,
    open_files,
    open_pair,
    require_capacity,
)

_COUNTS = (8, 64, 256)
_SIZES = (1, 64, 4096)
_BUSY_SIZE = 64

_SCALING_BATCH = 100
_SCALING_SIZE = 16
_SCALING_TOTALS = (1_000, 10_000, 100_000, 1_000_000)

_MakeWay = Callable[[socket.socket, socket.socket, list[bytes], list[int]], Way]


def one_message_each(
    left: socket.socket, right: socket.socket, payloads: list[bytes], fds: list[int]
) -> Way:
    """Uses the standard library, which can only pass one message in a call."""
    size = len(payloads[0])

    def send() -> None:
        for payload, fd in zip(payloads, fds, strict=True):
            socket.send_fds(left, [payload], [fd])

    def receive(close: Callable[[Any], object]) -> list[bytes]:
        received = []
        for _ in payloads:
            data, (fd,), _, _ = socket.recv_fds(right, size, 1)
            received.append(data)
            close(fd)
        return received

    return PythonWay(STANDARD, send, receive, os.close)


def _ours(left: socket.socket, right: socket.socket, payloads: list[bytes], fds: list[int]) -> Way:
    count, size = len(payloads), len(payloads[0])

    def receive(close: Callable[[Any], object]) -> list[bytes]:
        received: list[bytes] = []
        # Across two processes, a call returns the messages that have already arrived.
        while len(received) < count:
            batch = fdpass_c.recv_many(right, count - len(received), size)
            received += batch.payloads
            close(batch)
        return received

    send = partial(fdpass_c.send_many, left, payloads, fds)
    return PythonWay(OURS, send, receive, fdpass_c.Batch.close)


def _floor(left: socket.socket, right: socket.socket, payloads: list[bytes], fds: list[int]) -> Way:
    return FloorWay(left.fileno(), right.fileno(), payloads, fds)


_MAKE_WAYS: tuple[_MakeWay, ...] = (one_message_each, _ours, _floor)


def _make_batch(stack: ExitStack, count: int, size: int) -> tuple[list[bytes], list[int]]:
    return [bytes([number % 256]) * size for number in range(count)], open_files(stack, count)


def _open_here(count: int, size: int, stack: ExitStack) -> list[Contender]:
    payloads, fds = _make_batch(stack, count, size)
    left, right = open_pair(stack, LARGE_BUFFER)
    require_capacity(left, right, size, count)
    expected = Observation(payloads, identify(fds))
    return [here(make(left, right, payloads, fds), expected) for make in _MAKE_WAYS]


def _open_busy(count: int, size: int, stack: ExitStack) -> list[Contender]:
    # Without the floor: it makes all passes in one call, which the other thread does not delay.
    contenders = _open_here(count, size, stack)[:-1]
    stack.enter_context(busy_thread())
    return contenders


def _open_across(count: int, size: int, stack: ExitStack) -> list[Contender]:
    payloads, fds = _make_batch(stack, count, size)
    expected = Observation(payloads, identify(fds))
    contenders = []
    for make in _MAKE_WAYS:
        left, right = open_pair(stack, LARGE_BUFFER)
        way = make(left, right, payloads, fds)
        peer = Peer(way.receive, way.observe, close_in_child=[left])
        stack.callback(peer.close)
        right.close()
        contenders.append(across(way.name, way.send, peer, expected))
    return contenders


def _open_scaling(total: int, stack: ExitStack) -> list[Contender]:
    """Makes contenders that pass total descriptors in each pass."""
    batches = total // _SCALING_BATCH

    def stretch(contender: Contender) -> Contender:
        return replace(contender, run=lambda passes: contender.run(passes * batches))

    return [stretch(one) for one in _open_here(_SCALING_BATCH, _SCALING_SIZE, stack)]


_Open = Callable[[int, int, ExitStack], list[Contender]]


def _grid(open_case: _Open, sizes: tuple[int, ...], quick: bool) -> list[Case]:
    counts = _COUNTS[:1] if quick and open_case is _open_busy else _COUNTS
    return [
        Case(f"{count} x {size} B", count, partial(open_case, count, size))
        for count, size in product(counts, sizes)
    ]


def _scaling(quick: bool) -> list[Case]:
    return [
        Case(f"{total:,d}", total, partial(_open_scaling, total))
        for total in _SCALING_TOTALS[: 2 if quick else None]
    ]


_CLOSING = f"{OURS} closes a batch at once through its owner; the standard library one by one."

TABLES = [
    Table(
        "batches",
        "batches of messages with one descriptor each; send, receive and close in one process",
        "descriptor",
        STANDARD,
        [
            "The whole batch is sent before it is received, so nobody waits or is woken.",
            _CLOSING,
            "Payloads are ready and of one size; making and reading them is not in the time.",
        ],
        partial(_grid, _open_here, _SIZES),
    ),
    Table(
        "batches-across",
        "batches of messages with one descriptor each; one process sends, one receives and closes",
        "descriptor",
        STANDARD,
        [
            "Throughput, not latency: the sender never waits for an answer, but for room.",
            "With two idle CPUs both processes run at once, so a time is about the slower half's;",
            "on one CPU, or a loaded machine, expect the sum. How often the receiver sleeps and",
            "is woken differs from run to run.",
            _CLOSING,
        ],
        partial(_grid, _open_across, _SIZES),
    ),
    Table(
        "batches-busy",
        "the same in one process, beside one thread that runs Python code all the time",
        "descriptor",
        STANDARD,
        [
            "Each system call gives up the interpreter's lock, and the busy thread keeps it for",
            "up to 5 ms (sys.setswitchinterval): what counts is how many calls there are.",
            "No C floor: a C program has no such lock, so its time is that of the first table.",
            "Who gets the lock back first is a race, so times differ much from round to round.",
            "A free-threaded Python has none of this either.",
        ],
        partial(_grid, _open_busy, (_BUSY_SIZE,)),
        slices=20,  # A round must be much longer than the 5 ms for which a thread keeps the lock.
    ),
    Table(
        "scaling",
        f"so many descriptors streamed in batches of {_SCALING_BATCH}, {_SCALING_SIZE} bytes each",
        "descriptor",
        STANDARD,
        [
            "KiB more: by how much resident memory rises at most while the stream runs, sender",
            "and receiver in one process. The batch is sent again and again: a program that",
            "holds a million descriptors or payloads itself needs the memory for those.",
        ],
        _scaling,
        shows_memory=True,
    ),
]
