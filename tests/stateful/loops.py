"""The Channel of an event loop against the model: tasks send, receive, wait and are cancelled."""

import contextlib
import select
import socket
from typing import Any, NamedTuple

from hypothesis import strategies as st

import fdpass_c
from fdpass_c import DescriptorTableFullError, Progress, aio
from stateful.model import Files, Queue, take_at_most, tried
from support.descriptors import no_leak
from support.loops import Group, Task, pause, run
from support.messages import Message, take

_sizes = st.one_of(st.integers(0, 20), st.integers(0, 3000), st.integers(0, 250_000))
_fds = st.one_of(st.integers(0, 3), st.sampled_from([253, 254, 300]))


class Step(NamedTuple):
    """What is done with one end."""

    what: str
    end: int
    argument: Any = None


def _step(what: str, argument: "st.SearchStrategy[Any]") -> "st.SearchStrategy[Step]":
    return st.builds(Step, st.just(what), st.integers(0, 1), argument)


steps = st.lists(
    st.one_of(
        _step("send", st.lists(st.tuples(_sizes, _fds), min_size=1, max_size=1)),
        _step("send_many", st.lists(st.tuples(_sizes, _fds), max_size=6)),
        _step("send_many", st.lists(st.just((3, 1)), min_size=200, max_size=600)),
        _step("recv", st.none()),
        _step("recv_many", st.sampled_from([1, 3, 1000])),
        _step("flush", st.none()),
        _step("cancel", st.integers(0, 20)),
        _step("turn", st.integers(1, 5)),
    ),
    min_size=10,
    max_size=60,
)


class _End:
    """One end of the connection, the tasks that use it, and what they have sent and received."""

    def __init__(self, channel: aio.Channel, files: Files) -> None:
        self.channel = channel
        self.queue = Queue()
        self.received: list[Message] = []
        self._files = files

    async def send(self, shape: list[tuple[int, int]], one: bool) -> None:
        """Sends end in the order of their calls, and so notes each what it has sent."""
        made = [self._files.message(*each) for each in shape]
        payloads, rows = [payload for payload, _ in made], [row for _, row in made]
        done = len(payloads)
        try:
            if one:
                await self.channel.send(payloads[0], rows[0])
            else:
                await self.channel.send_many(payloads, rows)
        except BaseException as error:
            progress = getattr(error, "progress", Progress())
            assert progress.bytes == 0
            done = progress.messages
            tried["sends cancelled"] += 1
            raise
        finally:
            self.queue.add(payloads[:done], rows[:done])

    async def recv(self) -> None:
        with contextlib.suppress(DescriptorTableFullError):
            self.received.append(take(await self.channel.recv()))

    async def recv_many(self, most: int) -> None:
        with contextlib.suppress(DescriptorTableFullError):
            self.received += take_at_most(most, await self.channel.recv_many(most))

    async def drain(self, loop: str) -> bool:
        """Whether anything came, or still waits: on a busy machine the time may be too short."""
        before = len(self.received)
        async with Group(loop) as group:
            await group.within(0.002, self.recv_many, 1000)
        waits = self.channel.pending or select.select([self.channel], [], [], 0)[0]
        return bool(waits) or len(self.received) > before


async def _follow(loop: str, plan: list[Step], buffer: int, files: Files) -> None:
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    ends = [_End(aio.Channel(sock), files) for sock in pair]
    try:
        await _do(loop, plan, ends)
        await _finish(loop, ends)
    finally:
        for end in ends:
            end.channel.close()
        await pause(loop)


async def _do(loop: str, plan: list[Step], ends: list[_End]) -> None:
    async with Group(loop) as group:
        tasks: list[Task] = []
        for what, end, argument in plan:
            tried["steps"] += 1
            here = ends[end]
            if what in ("send", "send_many"):
                tasks.append(group.start(here.send, argument, what == "send"))
            elif what == "recv":
                tasks.append(group.start(here.recv))
            elif what == "recv_many":
                tasks.append(group.start(here.recv_many, argument))
            elif what == "flush":
                tasks.append(group.start(here.channel.flush))
            elif what == "cancel" and tasks:
                tasks.pop(argument % len(tasks)).cancel()
            elif what == "turn":
                await group.turn(argument)
        for task in tasks:
            task.cancel()


async def _finish(loop: str, ends: list[_End]) -> None:
    """All that was sent arrives, and nothing else."""
    again = True
    while again:
        again = False
        for here, there in (ends, ends[::-1]):
            async with Group(loop) as group:
                await group.within(0.002, there.channel.flush)
            again = await here.drain(loop) or there.channel.unsent > 0 or again
    for here, there in (ends, ends[::-1]):
        for message in here.received:
            there.queue.take(message)
        assert there.queue.is_empty
        tried["messages"] += len(here.received)


def follow(loop: str, plan: list[Step], buffer: int) -> None:
    """Does all that the plan says, and cancels what then still waits."""
    with no_leak():
        files = Files()
        try:
            run(loop, _follow, loop, plan, buffer, files)
        finally:
            fdpass_c.close_fds(files.fds)
