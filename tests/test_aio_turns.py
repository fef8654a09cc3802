"""Tasks that use one channel take turns, in the order of their calls."""

import asyncio
import contextvars
import gc
import socket
import sys
import weakref
from functools import partial
from typing import Any

import pytest

from fdpass_c import Progress, aio
from fdpass_c.aio.directions import growing_pauses
from support.aio_channels import make_pair, receive_all
from support.frames import one
from support.loops import Group, asyncio_loops, both_backends, every_loop, run
from support.messages import take, take_batch
from support.threads import beside

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@both_backends
def test_first_come_first_served(loop: str) -> None:
    """Tasks that receive get the messages in the order in which they called; one that is cancelled
    passes its turn on."""

    async def test() -> None:
        left, right = make_pair()
        async with Group(loop) as group, left, right:
            tasks = [await group.started(right.recv) for _ in range(6)]
            for cancelled in (0, 3):
                tasks[cancelled].cancel()
                await tasks[cancelled].wait()
            await left.send_many([b"%d" % number for number in range(4)])
            order = [task for number, task in enumerate(tasks) if number not in (0, 3)]
            for number, task in enumerate(order):
                payload, fds = (await task.wait()).result
                fds.close()
                assert payload == b"%d" % number

    run(loop, test)


def test_a_flush_takes_its_turn_at_once() -> None:
    """A send that is called behind a flush comes behind it, and the next one behind that."""

    async def test() -> None:
        left, right = make_pair(small=True)
        async with left, right:
            tasks = [
                asyncio.create_task(call)
                for call in (left.flush(), left.send(bytes(200_000)), left.send(b"last"))
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            tasks.append(asyncio.create_task(left.send(b"very last")))
            received = [take(await right.recv())[0] for _ in range(3)]
            assert received == [bytes(200_000), b"last", b"very last"]
            await asyncio.gather(*tasks)

    run("asyncio", test)


@both_backends
def test_one_at_a_time(loop: str) -> None:
    """recv_many(1) waits for one message, and takes no more."""

    async def test() -> None:
        left, right = make_pair()
        async with Group(loop) as group, left, right:
            task = await group.started(right.recv_many, 1)
            await left.send_many([b"1", b"2", b"3"])
            assert take_batch((await task.wait()).result) == [(b"1", [])]
            assert take_batch(await right.recv_many(1)) == [(b"2", [])]
            assert right.pending == 1

    run(loop, test)


@both_backends
def test_a_frame_that_comes_in_part(loop: str) -> None:
    """Until the rest comes, the loop has nothing to do."""
    anyio = pytest.importorskip("anyio")
    frame = one(b"payload")

    async def test() -> None:
        sock, other = socket.socketpair()
        right = aio.Channel(other)
        async with Group(loop) as group, right:
            with sock:
                task = await group.started(right.recv)
                sock.sendall(frame[:-1])
                await anyio.wait_all_tasks_blocked()
                sock.sendall(frame[-1:])
                assert take((await task.wait()).result) == (b"payload", [])

    run(loop, test)


@pytest.mark.parametrize("receive", ["recv", "recv_many"])
def test_which_receives_wait_first(receive: str) -> None:
    """After a try that found nothing, three receives let the loop turn before they try, unless
    messages have been received already. The others take what is queued at once."""

    async def test() -> None:
        left, right = make_pair()

        async def waits() -> bool:
            turned: list[bool] = []
            mark = asyncio.get_running_loop().call_soon(turned.append, True)
            await (right.recv() if receive == "recv" else right.recv_many(1))
            mark.cancel()
            return bool(turned)

        async def find_nothing(tasks: int) -> None:
            waiting = [asyncio.create_task(right.recv()) for _ in range(tasks)]
            await asyncio.sleep(0.001)
            for _ in waiting:
                await left.send(b"x")
            await asyncio.gather(*waiting)

        async with left, right:
            await find_nothing(1)
            for expected in (True, True, True, False, False):
                await left.send(b"x")
                assert await waits() == expected
            await find_nothing(1)
            await left.send_many([b"x"] * 4)
            assert [await waits() for _ in range(4)] == [True, False, False, False]
            await find_nothing(5)
            await left.send(b"x")
            assert not await waits()

    # In a new thread, none of these calls is one that lets the loop turn for fairness.
    with beside(lambda: run("asyncio", test)):
        pass


def test_growing_pauses() -> None:
    """Each is twice as long as the last, up to 0.1 s."""
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    async def test() -> None:
        wait = growing_pauses(note)
        for _ in range(9):
            await wait()

    asyncio.run(test())
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("loop", ["asyncio"])  # uvloop 0.23 refuses the factory.
def test_eager_tasks(loop: str) -> None:
    """Tasks that begin as they are made receive and send as others do."""

    async def test() -> None:
        factory: Any = getattr(asyncio, "eager_task_factory", None)
        asyncio.get_running_loop().set_task_factory(factory)
        left, right = make_pair(small=True)
        async with Group(loop) as group, left, right:
            receiving = [group.start(right.recv) for _ in range(2)]
            await left.send_many([b"one", b"two"])
            for task, expected in zip(receiving, [b"one", b"two"], strict=True):
                payload, fds = (await task.wait()).result
                fds.close()
                assert payload == expected
            sending = group.start(left.send, b"x" * 200_000)
            assert len(take(await right.recv())[0]) == 200_000
            assert (await sending.wait()).error is None

    run(loop, test)


@every_loop
def test_anyio_sees_who_waits(loop: str) -> None:
    """anyio.wait_all_tasks_blocked returns when tasks wait for messages, for room and for their
    turns, and not before a task that was woken has run."""
    anyio = pytest.importorskip("anyio")

    async def test() -> None:
        left, right = make_pair(small=True)
        async with Group(loop) as group, left, right:
            receiving = [group.start(right.recv) for _ in range(2)]
            sending = [group.start(left.send, b"x" * 200_000) for _ in range(4)]
            await anyio.wait_all_tasks_blocked()
            assert [task.done for task in receiving] == [True, True]
            assert [task.done for task in sending].count(False) == 2
            right.shutdown(socket.SHUT_RD)
            left.close()
            await anyio.wait_all_tasks_blocked()
            assert all(task.done for task in sending)
            for task in receiving:
                task.result[1].close()

    run(loop, test)


@asyncio_loops
def test_a_task_s_context_is_not_kept(loop: str) -> None:
    """What a task has put into a context variable goes with the task, although the loop goes on
    watching the socket."""
    variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")

    class Request:
        pass

    async def receive(channel: aio.Channel) -> "weakref.ref[Request]":
        request = Request()
        variable.set(request)
        (await channel.recv())[1].close()
        assert variable.get() is request
        return weakref.ref(request)

    async def test() -> None:
        left, right = make_pair()
        async with left, right:
            task = asyncio.create_task(receive(right))
            await asyncio.sleep(0.001)
            await left.send(b"x")
            request = await task
            del task
            await asyncio.sleep(0)  # The callback that woke this task has the other one.
            gc.collect()
            assert request() is None

    run(loop, test)


@both_backends
def test_turns_of_senders(loop: str) -> None:
    """Tasks that send large messages at once do not mix them."""

    async def test() -> None:
        left, right = make_pair(small=True)
        payloads = [bytes([number]) * 200_000 for number in range(5)]
        async with Group(loop) as group, right:
            tasks = [await group.started(left.send, payload) for payload in payloads]
            receiving = group.start(receive_all, right)
            for task in tasks:
                assert (await task.wait()).error is None
            left.close()
            assert (await receiving.wait()).result == payloads

    run(loop, test)


def test_progress_of_a_batch_whose_turn_never_came() -> None:
    """A send_many that has nothing sent yet says again where it was to start."""

    async def main() -> None:
        left, right = make_pair(small=True)
        ours, theirs = (channel.detach() for channel in make_pair(small=True))
        start = Progress(3, 0)
        with ours, theirs:
            async with Group("asyncio") as group:
                for send, send_many in [
                    (left.send, partial(left.send_many, [b"x"] * 5, start=start)),
                    (
                        lambda data: aio.send_fd(ours, ours, data),
                        partial(aio.send_many, ours, [b"x"] * 5, [[]] * 5, start=start),
                    ),
                ]:
                    first = await group.started(send, bytes(200_000))
                    second = await group.started(send_many)
                    second.cancel()
                    assert (await second.wait()).progress == start
                    first.cancel()
        left.close()
        right.close()

    run("asyncio", main)


@both_backends
def test_a_batch_that_goes_on_in_its_turn(loop: str) -> None:
    """start holds too where another task is sending and the batch waits for its turn."""

    async def main() -> None:
        left, right = make_pair(small=True)
        async with left, right, Group(loop) as group:
            await group.started(left.send, bytes(200_000))
            rest = partial(left.send_many, [b"0", b"1", b"2"], start=Progress(2, 0))
            sending = await group.started(rest)
            assert not sending.done
            assert len(take(await right.recv())[0]) == 200_000
            assert take(await right.recv())[0] == b"2"
            assert (await sending.wait()).result == 3

    run(loop, main)


@both_backends
def test_a_batch_goes_on_from_its_progress(loop: str) -> None:
    """What a cancelled send_many did not send, start=progress does."""

    async def main() -> None:
        payloads = [b"%04d" % number * 2000 for number in range(50)]
        left, right = make_pair(small=True)
        received: list[bytes] = []

        async def receive() -> None:
            while len(received) < len(payloads):
                received.append(take(await right.recv())[0])

        async with left, right, Group(loop) as group:
            sending = await group.started(left.send_many, payloads)
            sending.cancel()
            await sending.wait()
            start = sending.progress
            assert 0 < start.messages < len(payloads)
            receiving = group.start(receive)
            assert await left.send_many(payloads, start=start) == len(payloads)
            await left.flush()
            await receiving.wait()
        assert received == payloads

    run(loop, main)
