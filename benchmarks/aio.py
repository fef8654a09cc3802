"""Event loops: compares fdpass_c.aio with what a program would write without it."""

import asyncio
import importlib.util
import os
import resource
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import fdpass_c
from benchmarks import report
from benchmarks.results import OURS, TableResult
from benchmarks.runner import Case, Contender, SkipCase, Table
from benchmarks.ways import Peer, identify, open_files, open_pair
from fdpass_c import aio

_COUNTS = (1, 8, 64, 253)
_TAG_SIZE = 16
_IN_FLIGHT = 10_000
"""The most descriptors that a socket's buffer may hold."""

_HAND = "by hand"
_BLOCKING = "blocking"

_CPU = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

Load = tuple[list[bytes], list[int]]
Close = Callable[[Any], object]


@dataclass(frozen=True)
class Side:
    """What one process does: sends, receives, or both in turn.

    receive(close) calls close with every object that holds descriptors, and returns the payloads.
    Both are coroutine functions, unless the way blocks.
    """

    send: Callable[[], Any]
    receive: Callable[[Close], Any]
    finish: Callable[[], object]


def _ours(sock: socket.socket, load: Load) -> Side:
    channel = aio.Channel(sock)
    tags, fds = load
    count = len(tags)

    async def receive(close: Close) -> list[bytes]:
        if count == 1:
            tag, owner = await channel.recv()
            close(owner)
            return [tag]
        received: list[bytes] = []
        while len(received) < count:
            batch = await channel.recv_many(count - len(received))
            close(batch.fds)
            received += batch.payloads
        return received

    send: Callable[[], Any] = partial(channel.send_many, tags, fds)
    if count == 1:
        send = partial(channel.send, tags[0], fds)
    return Side(send, receive, channel.close)


def _by_hand(sock: socket.socket, load: Load) -> Side:
    """Calls add_reader, and sends each descriptor in a message of its own."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    fd = sock.fileno()

    async def wait(add: Any, remove: Any) -> None:
        ready = loop.create_future()
        add(fd, ready.set_result, None)
        try:
            await ready
        finally:
            remove(fd)

    async def send() -> None:
        for tag, one in zip(*load, strict=True):
            while True:
                try:
                    socket.send_fds(sock, [tag], [one])
                    break
                except BlockingIOError:
                    await wait(loop.add_writer, loop.remove_writer)

    async def receive(close: Close) -> list[bytes]:
        received: list[bytes] = []
        while len(received) < len(load[0]):
            try:
                tag, fds, _, _ = socket.recv_fds(sock, _TAG_SIZE, 1)
            except BlockingIOError:
                await wait(loop.add_reader, loop.remove_reader)
                continue
            close(fds)
            received.append(tag)
        return received

    return Side(send, receive, sock.close)


async def _anyio(sock: socket.socket, load: Load) -> Side:
    import anyio.abc

    stream = await anyio.abc.UNIXSocketStream.from_socket(sock)

    async def send() -> None:
        for tag, fd in zip(*load, strict=True):
            await stream.send_fds(tag, [fd])

    async def receive(close: Close) -> list[bytes]:
        received = []
        for _ in load[0]:
            tag, fds = await stream.receive_fds(_TAG_SIZE, 1)
            close(fds)
            received.append(tag)
        return received

    return Side(send, receive, stream.aclose)


async def _anyio_packed(sock: socket.socket, load: Load) -> Side:
    """Sends one message with all tags and descriptors, which the receiver has to split."""
    import anyio.abc

    stream = await anyio.abc.UNIXSocketStream.from_socket(sock)
    tags, fds = load

    async def send() -> None:
        await stream.send_fds(b"".join(tags), fds)

    async def receive(close: Close) -> list[bytes]:
        data, received = await stream.receive_fds(_TAG_SIZE * len(tags), len(tags))
        close(received)
        return [data[at : at + _TAG_SIZE] for at in range(0, len(data), _TAG_SIZE)]

    return Side(send, receive, stream.aclose)


def _close(held: Any) -> None:
    if isinstance(held, list):
        for fd in held:
            os.close(fd)
    else:
        held.close()


async def _work(make: Any, sock: socket.socket, load: Load, role: str, passes: int) -> int:
    """Does the work of one process so many times. Returns the CPU time in nanoseconds."""
    side = make(sock, load)
    if asyncio.iscoroutine(side):
        side = await side
    start = time.process_time_ns()
    for _ in range(passes):
        if role in ("send", "ping"):
            await side.send()
        if role != "send":
            await side.receive(_close)
        if role == "pong":
            await side.send()
    spent = time.process_time_ns() - start
    if (last := side.finish()) is not None:
        await last
    return spent


async def _observe(make: Any, sock: socket.socket, load: Load, role: str) -> object:
    """Does the work of one process once, and returns what arrived."""
    side = make(sock, load)
    if asyncio.iscoroutine(side):
        side = await side
    files: list[tuple[int, int]] = []

    def close(held: Any) -> None:
        files.extend(identify(held))
        _close(held)

    if role == "ping":
        await side.send()
    payloads = await side.receive(close)
    if role == "pong":
        await side.send()
    if (last := side.finish()) is not None:
        await last
    return payloads, files


def _work_blocking(sock: socket.socket, load: Load, role: str, passes: int) -> int:
    channel = fdpass_c.Channel(sock)
    tags, fds = load
    count = len(tags)

    def send() -> None:
        if count == 1:
            channel.send(tags[0], fds)
        else:
            channel.send_many(tags, fds)

    def receive() -> None:
        left = count
        while left:
            if count == 1:
                channel.recv()[1].close()
                return
            with channel.recv_many(left) as batch:
                left -= len(batch)

    start = time.process_time_ns()
    for _ in range(passes):
        if role in ("send", "ping"):
            send()
        if role != "send":
            receive()
        if role == "pong":
            send()
    spent = time.process_time_ns() - start
    channel.close()
    return spent


def run_in_loop(loop: str, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    if loop == "trio":
        import trio

        return trio.run(function, *arguments)

    async def call() -> Any:
        return await function(*arguments)

    if loop == "uvloop":
        import uvloop

        return uvloop.run(call())
    return asyncio.run(call())


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def installed_loops() -> list[str]:
    return ["asyncio", *filter(_is_installed, ["uvloop", "trio"])]


def _contend(
    name: str,
    work: Callable[..., int],
    observe: Any,
    roles: tuple[str, str],
    load: Load,
    stack: Any,
) -> Contender:
    """Makes a contender across two processes. Each run opens its objects again, over a copy of the
    same socket."""
    left, right = open_pair(stack)
    ours, theirs = roles
    expected = load[0], identify(load[1])

    def part(sock: socket.socket, function: Any, *arguments: Any) -> Any:
        if ours == "ping" and _CPU is not None:
            os.sched_setaffinity(0, [_CPU])
        return function(sock.dup(), load, *arguments)

    peer = Peer(
        partial(part, right, work, theirs),
        partial(part, right, observe, theirs),
        close_in_child=[left],
    )
    stack.callback(peer.close)
    right.close()

    def run(passes: int) -> int:
        peer.start(passes)
        spent: int = part(left, work, ours, passes)
        other = peer.finish()
        assert isinstance(other, int)
        return spent + other

    def verify() -> None:
        peer.start(0)
        part(left, work, ours, 1)
        if peer.finish() != expected:
            raise RuntimeError(f"{name}: what arrived is not what was sent")

    return Contender(name, run, verify)


def _open(roles: tuple[str, str], count: int, stack: ExitStack) -> list[Contender]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() != 0 and soft < _IN_FLIGHT and roles[0] == "send":
        raise SkipCase(f"so many descriptors in flight take `ulimit -n {_IN_FLIGHT}`")
    tags = [number.to_bytes(_TAG_SIZE, "little") for number in range(count)]
    load = tags, open_files(stack, 1) * count
    ways: list[tuple[str, str, Any]] = [(_HAND, "asyncio", _by_hand)]
    for loop in installed_loops():
        ways.append((OURS if loop == "asyncio" else f"{OURS} on {loop}", loop, _ours))
        if _is_installed("anyio"):
            ways.append((f"anyio on {loop}", loop, _anyio))
            if count > 1:
                ways.append((f"anyio, packed by hand, on {loop}", loop, _anyio_packed))
    contenders = []
    for name, loop, make in ways:
        work, observe = (
            partial(run_in_loop, loop, function, make) for function in (_work, _observe)
        )
        contenders.append(_contend(name, work, observe, roles, load, stack))
    observe = partial(run_in_loop, "asyncio", _observe, _ours)
    contenders.append(_contend(_BLOCKING, _work_blocking, observe, roles, load, stack))
    return contenders


def _cases(roles: tuple[str, str], counts: tuple[int, ...], name: str, _quick: bool) -> list[Case]:
    if _is_installed("uvloop"):
        run_in_loop("uvloop", asyncio.sleep, 0)  # The first loop in a process opens a pipe.
    return [Case(name.format(count), count, partial(_open, roles, count)) for count in counts]


_NOTES = [
    "CPU time of both processes together, without making and closing the channel.",
    f"{OURS}: fdpass_c.aio on asyncio. The others are what is installed (dependency group",
    f"benchmarks). {_HAND}: asyncio's add_reader, socket.send_fds and recv_fds, one message each,",
    "as anyio has it. anyio, packed by hand: one message with all tags and descriptors. blocking:",
    "fdpass_c.Channel, which waits in the kernel.",
]

_LOOPS = {"asyncio": OURS, "uvloop": f"{OURS} on uvloop", "trio": f"{OURS} on trio"}
_RATIOS = [
    *((f"anyio on {loop}", ours) for loop, ours in _LOOPS.items()),
    *((f"anyio, packed by hand, on {loop}", ours) for loop, ours in _LOOPS.items()),
    (_HAND, OURS),
    (OURS, _BLOCKING),
]


def render_ratios(tables: Sequence[TableResult]) -> str:
    """Returns the ratio of each way's time to our time in the same loop, and of our time to the
    time of the blocking Channel."""
    cases = [case for table in tables for case in table.cases]
    rows = [["", *(case.name for case in cases)]]
    for over, under in _RATIOS:
        ratios = [case.ratio(over, under) for case in cases]
        if any(ratios):
            rows.append([f"{over}, over {under}", *(report.format_ratio(one) for one in ratios)])
    return report.render_rows("aio: how many times as long one way takes as another", rows)


TABLES = [
    Table(
        "aio-ping-pong",
        f"event loops: {_TAG_SIZE} bytes and a descriptor to another process and back",
        "round trip",
        _HAND,
        [*_NOTES, "Both run on one CPU: on two, what it costs to wake an idle one hides all else."],
        partial(_cases, ("ping", "pong"), (1,), "there and back"),
    ),
    Table(
        "aio",
        f"event loops: {_TAG_SIZE} bytes and a descriptor each, one way to another process",
        "tagged descriptor",
        _HAND,
        _NOTES,
        partial(_cases, ("send", "receive"), _COUNTS, "{} a call"),
    ),
]
