"""Busy channels let other tasks run, and many channels and messages need little memory."""

import asyncio
import gc
import sys

import pytest

from fdpass_c import aio
from support.aio_channels import make_pair
from support.descriptors import identity
from support.loops import Group, both_backends, every_loop, pause, run
from support.messages import take
from support.tables import many_allowed
from support.threads import beside

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@both_backends
def test_turns_within_32_calls(loop: str) -> None:
    """Whatever a task calls without waiting, the loop turns at least once in 32 calls: another task
    runs once in 64, since trio runs them in any order."""

    async def test() -> None:
        left, right = make_pair()
        turns = 0
        stop = False

        async def tick() -> None:
            nonlocal turns
            while not stop:
                turns += 1
                await pause(loop)

        async with Group(loop) as group, left, right:
            group.start(tick)
            await group.turn(2)
            for _ in range(10):
                before = turns
                for _ in range(32):
                    await left.send(b"x")
                    take(await right.recv())
                assert turns > before
            before = turns
            for _ in range(64):
                await left.send(b"x")
            assert turns > before
            await right.recv_many()
            stop = True

    run(loop, test)


@both_backends
def test_turns_within_32_receives(loop: str) -> None:
    """So it does where the first of them has waited and has received the messages of all others."""

    async def test() -> None:
        left, right = make_pair()
        turns = 0
        stop = False

        async def tick() -> None:
            nonlocal turns
            while not stop:
                turns += 1
                await pause(loop)

        async with Group(loop) as group, left, right:
            receiving = await group.started(right.recv)
            await left.send_many([b"x"] * 65)
            take((await receiving.wait()).result)
            group.start(tick)
            await group.turn(2)
            before = turns
            for _ in range(64 if loop == "trio" else 32):
                take(await right.recv())
            assert turns > before
            stop = True

    run(loop, test)


def test_turns_beside_another_thread_s_loop() -> None:
    """The calls of another loop, in another thread, do not count: each loop turns by its own."""

    async def make() -> tuple[aio.Channel, aio.Channel]:
        return make_pair()

    async def use(channels: tuple[aio.Channel, aio.Channel]) -> None:
        await channels[0].send(b"x")

    async def close(*channels: aio.Channel) -> None:
        for channel in channels:
            channel.close()

    async def test() -> None:
        turns = 0

        def tick() -> None:
            nonlocal turns
            turns += 1
            ticking[0] = asyncio.get_running_loop().call_soon(tick)

        ticking = [asyncio.get_running_loop().call_soon(tick)]
        pair = make_pair()
        others = asyncio.run_coroutine_threadsafe(make(), other).result()
        for _ in range(32):
            await use(pair)
            asyncio.run_coroutine_threadsafe(use(others), other).result()
        assert turns > 0
        ticking[0].cancel()
        asyncio.run_coroutine_threadsafe(close(*others), other).result()
        await close(*pair)

    other = asyncio.new_event_loop()
    with beside(other.run_forever):
        try:
            run("asyncio", test)
        finally:
            other.call_soon_threadsafe(other.stop)
    other.close()


@both_backends
def test_ticker_beside_a_flood(loop: str) -> None:
    """A task beside channels that are never empty gets its turns: its share of them, at least."""

    async def test() -> None:
        left, right = make_pair()
        ticks = 0

        async def flood(channel: aio.Channel) -> None:
            for _ in range(10):
                await channel.send_many([b"x" * 10] * 1000)
            channel.close()

        async def drain() -> int:
            calls = 0
            async for _, fds in right:
                fds.close()
                calls += 1
            return calls

        async with Group(loop) as group, right:
            group.start(flood, left)
            draining = group.start(drain)
            while not draining.done:
                ticks += 1
                await pause(loop)
            assert draining.result == 10_000
            assert ticks > 10_000 // 32

    run(loop, test)


@pytest.mark.skipif(not hasattr(sys, "getallocatedblocks"), reason="PyPy does not count")
@every_loop
def test_memory_stays_flat(loop: str, file: int) -> None:
    """Messages leave nothing behind in Python's memory; `python -m benchmarks soak` sends more."""

    async def test() -> None:
        left, right = make_pair()

        async def send(count: int) -> None:
            for _ in range(count):
                await left.send(b"payload", [file])

        async def pass_messages(count: int) -> int:
            async with Group(loop) as group:
                group.start(send, count)
                for _ in range(count):
                    take(await right.recv())
            gc.collect()
            return sys.getallocatedblocks()

        async with left, right:
            await pass_messages(1000)
            before = await pass_messages(100)
            assert await pass_messages(2000) < before + 200

    run(loop, test)


@both_backends
def test_many_channels(loop: str, file: int) -> None:
    """1,000 channels in one loop, each with a message back and forth, several times."""

    async def answer(channel: aio.Channel) -> None:
        async for payload, fds in channel:
            with fds:
                await channel.send(payload, fds)

    async def ask(channel: aio.Channel, number: int) -> None:
        async with channel:
            for _ in range(3):
                await channel.send(b"%d" % number, [file])
                assert take(await channel.recv()) == (b"%d" % number, [identity(file)])

    async def test() -> None:
        pairs = [aio.Channel.pair() for _ in range(1000)]
        async with Group(loop) as group:
            for _, channel in pairs:
                group.start(answer, channel)
            asking = [group.start(ask, channel, at) for at, (channel, _) in enumerate(pairs)]
            for task in asking:
                assert (await task.wait()).error is None
        for _, channel in pairs:
            channel.close()

    with many_allowed(5000):
        run(loop, test)
