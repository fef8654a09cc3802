"""Channel: passes descriptors with tags, several in a call, in one process and across two."""

import multiprocessing
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from multiprocessing import reduction, resource_sharer
from typing import Any, NamedTuple

import fdpass_c
from benchmarks.batches import one_message_each
from benchmarks.floor import FloorWay
from benchmarks.results import FLOOR, OURS, STANDARD
from benchmarks.runner import Case, Contender, Table
from benchmarks.ways import (
    LARGE_BUFFER,
    Observation,
    Peer,
    PythonWay,
    Way,
    Window,
    across,
    here,
    identify,
    open_pair,
    require_capacity,
)

_COUNTS = (1, 8, 32, 64, 253)
_TAG_SIZE = 16

# Across two processes, the receiver acknowledges this many descriptors at once, or those of one
# call if it has more.
_CHUNK = 128


class _Link(NamedTuple):
    """A way, and the objects with close() from which it sends and at which it receives."""

    left: Any
    right: Any
    way: Way


def _ours_one(left: fdpass_c.Channel, right: fdpass_c.Channel, tag: bytes, fds: list[int]) -> Way:
    def receive(close: Callable[[Any], object]) -> bytes:
        received, owner = right.recv()
        close(owner)
        return received

    return PythonWay(OURS, partial(left.send, tag, fds), receive, fdpass_c.Descriptors.close)


def _ours_many(
    left: fdpass_c.Channel, right: fdpass_c.Channel, tags: list[bytes], fds: list[int]
) -> Way:
    count = len(tags)

    def receive(close: Callable[[Any], object]) -> list[bytes]:
        # These few small messages come in one frame, so one call returns all of them.
        batch = right.recv_many(count)
        close(batch)
        if len(batch) != count:
            raise RuntimeError(f"{len(batch)} messages of a frame of {count}")
        return batch.payloads

    return PythonWay(OURS, partial(left.send_many, tags, fds), receive, fdpass_c.Batch.close)


def _link_both(tags: list[bytes], fds: list[int], stack: ExitStack) -> list[_Link]:
    """Makes the contenders of both tables."""
    left, right = open_pair(stack, LARGE_BUFFER)
    require_capacity(left, right, _TAG_SIZE, len(tags))
    standard = _Link(left, right, one_message_each(left, right, tags, fds))

    ends = open_pair(stack, LARGE_BUFFER)
    ours_left, ours_right = (stack.enter_context(fdpass_c.Channel(end)) for end in ends)
    if len(tags) == 1:
        way = _ours_one(ours_left, ours_right, tags[0], fds)
    else:
        way = _ours_many(ours_left, ours_right, tags, fds)
    ours = _Link(ours_left, ours_right, way)

    left, right = open_pair(stack, LARGE_BUFFER)
    floor = FloorWay(left.fileno(), right.fileno(), tags, fds, packed=True)
    return [standard, ours, _Link(left, right, floor)]


def _open_pipe(stack: ExitStack) -> tuple[Any, Any]:
    left, right = multiprocessing.Pipe()
    return stack.enter_context(left), stack.enter_context(right)


def _link_handles(tags: list[bytes], fds: list[int], stack: ExitStack) -> _Link:
    """Uses send_handle, which takes no payload, so the tag is sent before it."""
    left, right = _open_pipe(stack)

    def send() -> None:
        for tag, fd in zip(tags, fds, strict=True):
            left.send_bytes(tag)
            reduction.send_handle(left, fd, 0)  # Only Windows uses the process id.

    def receive(close: Callable[[Any], object]) -> list[bytes]:
        received = []
        for _ in tags:
            received.append(right.recv_bytes())
            close(reduction.recv_handle(right))
        return received

    return _Link(left, right, PythonWay("send_handle", send, receive))


def _link_pickles(tags: list[bytes], sources: list[socket.socket], stack: ExitStack) -> _Link:
    left, right = _open_pipe(stack)
    stack.callback(resource_sharer.stop)  # Ends a thread, and closes its listening socket.

    def send() -> None:
        for tagged in zip(tags, sources, strict=True):
            left.send(tagged)

    def receive(close: Callable[[Any], object]) -> list[bytes]:
        received = []
        for _ in tags:
            tag, sock = right.recv()
            received.append(tag)
            close(sock.detach())
        return received

    return _Link(left, right, PythonWay("pickled socket", send, receive))


def _make_load(count: int, stack: ExitStack) -> tuple[list[bytes], list[socket.socket], list[int]]:
    """Makes tags and TCP sockets, which a server would pass. A file could not be pickled."""
    tags = [number.to_bytes(_TAG_SIZE, "little") for number in range(count)]
    sources = [stack.enter_context(socket.socket(socket.AF_INET)) for _ in range(count)]
    return tags, sources, [source.fileno() for source in sources]


def _open_here(count: int, stack: ExitStack) -> list[Contender]:
    tags, _, fds = _make_load(count, stack)
    expected = Observation(tags, identify(fds))
    return [here(link.way, expected) for link in _link_both(tags, fds, stack)]


def _open_across(count: int, stack: ExitStack) -> list[Contender]:
    tags, sources, fds = _make_load(count, stack)
    expected = Observation(tags, identify(fds))
    links = [
        *_link_both(tags, fds, stack),
        _link_handles(tags, fds, stack),
        _link_pickles(tags, sources, stack),
    ]
    contenders = []
    for left, right, way in links:
        window = Window(way, max(1, _CHUNK // count), stack)
        peer = Peer(window.receive, window.observe, close_in_child=[left, *sources])
        stack.callback(peer.close)
        right.close()
        contenders.append(across(way.name, window.send, peer, expected))
    return contenders


def _cases(open_case: Callable[[int, ExitStack], list[Contender]], _quick: bool) -> list[Case]:
    return [Case(f"{count} a call", count, partial(open_case, count)) for count in _COUNTS]


_CONTENDERS = [
    f"{OURS}: Channel.send, recv and closing the owner at 1 a call; above, send_many, recv_many",
    f"and Batch.close. The {STANDARD}: a message and os.close each, at any count.",
    f"The {FLOOR}: one message a call, a header before its tags. Its receiver knows what will come",
    "and does not look whether the descriptor table has room.",
    f"{OURS} peeks before it receives where fewer than 765 descriptors are free, which costs more.",
    "Tags are of one size, and neither making nor reading them is in the time.",
]

TABLES = [
    Table(
        "channel",
        f"{_TAG_SIZE} bytes and one descriptor each; send, receive and close in one process",
        "descriptor",
        STANDARD,
        [
            "All of a call is sent before it is received, so nobody waits or is woken.",
            *_CONTENDERS,
            "With `ulimit -n 1024` the sender's own 253 leave so few in the last row.",
        ],
        partial(_cases, _open_here),
    ),
    Table(
        "channel-across",
        f"{_TAG_SIZE} bytes and one descriptor each; one process sends, one receives and closes",
        "descriptor",
        STANDARD,
        [
            "Throughput, not latency: both run at once. The receiver acknowledges chunks of",
            f"up to {_CHUNK} descriptors, or of one larger call, through a pipe, and the sender is",
            "at most four of them ahead: the same for all. With two idle CPUs a time is about the",
            "slower half's; on one CPU, or a loaded machine, expect the sum.",
            *_CONTENDERS,
            "send_handle (multiprocessing.reduction) takes no payload: send_bytes sends the tag",
            "before it. It and the pickled socket (Connection.send) pass one at a time, at any",
            "count; the latter by a thread of the sender's and a new connection for each.",
            "A pass of the pickled sockets is long, so their column rests on few passes.",
        ],
        partial(_cases, _open_across),
    ),
]
