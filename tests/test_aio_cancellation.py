"""A cancellation loses nothing, wherever it comes."""

import asyncio
import contextvars
import random
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fdpass_c import Channel, PeerClosedError, aio
from support.aio_channels import is_cancelled, make_pair, receive_all
from support.descriptors import identity
from support.loops import Group, asyncio_loops, both_backends, loops_and_kinds, pause, run
from support.messages import progress_of, take, take_batch

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@both_backends
def test_a_sender_that_is_cancelled_before_its_turn(loop: str, file: int) -> None:
    """Tasks that send take turns too. One that is cancelled before its turn ends no other's, and
    descriptors may come from an iterator, which is used up by then."""

    async def test() -> None:
        left, right = make_pair(small=True)
        async with Group(loop) as group, left, right:
            payloads = [b"x" * 200_000, b"cancelled", b"next", b"last"]
            tasks = [
                await group.started(left.send_many, [payload], iter([file])) for payload in payloads
            ]
            tasks[1].cancel()
            await tasks[1].wait()
            for payload in (payloads[0], *payloads[2:]):
                assert take(await right.recv()) == (payload, [identity(file)])
            assert [(await task.wait()).result for task in tasks] == [1, None, 1, 1]

    run(loop, test)


@pytest.mark.untraced
@pytest.mark.parametrize("cancelled", [False, True], ids=["served", "cancelled"])
def test_very_many_in_turn(cancelled: bool) -> None:
    """Tasks that receive from one channel have their turns, or are cancelled, the last one first:
    each takes the same time of the CPU, however many there are."""

    async def time_each(number: int) -> float:
        left, right = make_pair()

        async def receive() -> None:
            take(await right.recv())

        async with left, right:
            tasks = [asyncio.create_task(receive()) for _ in range(number)]
            await asyncio.sleep(0)
            begun = time.thread_time()
            if cancelled:
                for task in reversed(tasks):
                    task.cancel()
            else:
                for _ in tasks:
                    await left.send(b"x")
            results = await asyncio.gather(*tasks, return_exceptions=True)
            taken = time.thread_time() - begun
            assert all(map(is_cancelled, results)) if cancelled else not any(results)
        return taken / number

    few = min(run("asyncio", time_each, 500) for _ in range(3))
    assert run("asyncio", time_each, 8000) < 4 * few


@both_backends
def test_cancelled_in_the_instant_of_its_turn(loop: str) -> None:
    """A task that is cancelled when its turn has come, and before it runs, passes the turn on."""

    async def test() -> None:
        left, right = make_pair()
        async with Group(loop) as group, left, right:

            async def receive_and_cancel() -> None:
                take(await right.recv())
                second.cancel()

            await group.started(receive_and_cancel)
            second = await group.started(right.recv)
            third = await group.started(right.recv)
            await left.send(b"first")
            await second.wait()
            assert is_cancelled(second.error)
            await left.send(b"second")
            payload, fds = (await third.wait()).result
            fds.close()
            assert payload == b"second"

    run(loop, test)


@pytest.mark.parametrize("loop", ["asyncio"])
def test_what_a_cancellation_says(loop: str) -> None:
    """The message of Task.cancel comes with the cancellation; anyio knows its own ones by it."""

    async def test() -> None:
        left, right = make_pair()
        async with left, right:
            task = asyncio.create_task(right.recv())
            await asyncio.sleep(0.001)
            task.cancel("on purpose")
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
            if sys.version_info >= (3, 11):
                assert caught.value.args == ("on purpose",)

    run(loop, test)


@asyncio_loops
def test_cancelled_twice(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks that are cancelled again before they run, and whose channel is closed besides, are
    resumed once, and the loop has nothing to report."""

    async def test() -> None:
        left, right = make_pair()
        async with left:
            tasks = [asyncio.create_task(right.recv()) for _ in range(2)]
            await asyncio.sleep(0.001)
            for task in tasks * 2:
                task.cancel()
            right.close()
            results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(map(is_cancelled, results))
            await asyncio.sleep(0)

    run(loop, test)
    assert [record for record in caplog.records if record.exc_info] == []


class Stepper:
    """Runs one coroutine by hand, in a task of asyncio's, and cancels it at one suspension.

    at: which one, the first is 1. late: after what it waits for has come.
    """

    def __init__(self, at: int, late: bool) -> None:
        self.at = at
        self.late = late
        self.suspended = 0

    async def run(self, coroutine: Any) -> Any:
        throw = False
        while True:
            try:
                if throw:
                    awaited = coroutine.throw(asyncio.CancelledError())
                else:
                    awaited = coroutine.send(None)
            except StopIteration as stop:
                return stop.value
            self.suspended += 1
            throw = self.suspended == self.at
            if throw and not self.late:
                await asyncio.sleep(0)
            else:
                await self._wait(awaited)

    async def _wait(self, awaited: Any) -> None:
        if awaited is None:
            await asyncio.sleep(0)
            return
        woken = asyncio.get_running_loop().create_future()
        awaited._asyncio_future_blocking = False
        awaited.add_done_callback(
            lambda _: woken.set_result(None), context=contextvars.copy_context()
        )
        await woken


async def run_to_cancellation(loop: str, at: int, late: bool, call: Callable[[], Any]) -> Any:
    """(result, error, whether it suspended so often) of a call cancelled there."""
    if loop != "trio":
        stepper = Stepper(at, late)
        try:
            result = await stepper.run(call())
        except BaseException as error:
            return None, error, stepper.suspended >= at
        return result, None, stepper.suspended >= at
    import trio

    class Canceller(trio.abc.Instrument):
        suspended = 0

        def task_scheduled(self, task: Any) -> None:
            if task is me and late and self.suspended == at:
                scope.cancel()

        def after_task_step(self, task: Any) -> None:
            if task is me:
                self.suspended += 1
                if not late and self.suspended == at:
                    scope.cancel()

    me = trio.lowlevel.current_task()
    scope = trio.CancelScope()
    canceller = Canceller()
    trio.lowlevel.add_instrument(canceller)
    result = None
    raised: BaseException | None = None
    try:
        with scope:
            try:
                result = await call()
            except Exception as error:
                raised = error
            except BaseException as error:
                raised = error
                raise
    finally:
        trio.lowlevel.remove_instrument(canceller)
    return result, raised, canceller.suspended >= at


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@loops_and_kinds
def test_cancelled_receive(loop: str, kind: socket.SocketKind, late: bool, file: int) -> None:
    """A receive that is cancelled at any of its suspensions has taken nothing."""
    payloads = [b"a", b"b" * 300_000, b"", b"c" * 70_000, b"d"]
    expected = [(payload, [identity(file)]) for payload in payloads]

    async def send_slowly(channel: aio.Channel) -> None:
        for payload in payloads:
            await pause(loop, 0.0005)
            await channel.send(payload, [file])
        channel.close()

    async def test(receive: str) -> None:
        for at in range(1, 100):
            left, right = make_pair(kind, small=True)
            received = []
            reached = False
            async with Group(loop) as group, right:
                sending = group.start(send_slowly, left)
                call = getattr(right, receive)
                error = None
                while not isinstance(error, PeerClosedError):
                    assert error is None or is_cancelled(error)
                    result, error, was_reached = await run_to_cancellation(loop, at, late, call)
                    reached = reached or was_reached
                    if result is not None:
                        received += [take(result)] if receive == "recv" else take_batch(result)
                assert sending.error is None
            assert received == expected
            if not reached:
                return

    for receive in ("recv", "recv_many"):
        run(loop, test, receive)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@loops_and_kinds
def test_cancelled_send(loop: str, kind: socket.SocketKind, late: bool, file: int) -> None:
    """A send that is cancelled at any of its suspensions has sent what progress says, whole, and
    the channel goes on: a large message comes once or not at all."""

    async def test(payloads: list[bytes], many: bool) -> None:
        for suspension in range(1, 200, 3):
            left, right = make_pair(kind, small=True)
            async with Group(loop) as group, right:
                receiving = group.start(receive_all, right)
                async with left:
                    # An ordinary user has no more in flight than the table holds.
                    every = 10 if len(payloads) > 1000 else 1
                    fds = [[file][: at % every == 0] for at in range(len(payloads))]

                    def send(channel: aio.Channel = left, fds: list[list[int]] = fds) -> Any:
                        if many:
                            return channel.send_many(payloads, fds)
                        return channel.send(payloads[0], fds[0])

                    _, error, reached = await run_to_cancellation(loop, suspension, late, send)
                    sent = len(payloads)
                    if error is not None:
                        assert is_cancelled(error)
                        sent = progress_of(error).messages
                    await left.send(b"after")
                assert (await receiving.wait()).result == [*payloads[:sent], b"after"]
            if not reached:
                return

    run(loop, test, [b"x" * 100_000], False)
    run(loop, test, [b"%d" % number * 30 for number in range(3000)], True)
    run(loop, test, [b"y" * 20_000, b"z" * 90_000] * 2, True)


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
@both_backends
def test_cancelled_accept(loop: str, late: bool, tmp_path: Path) -> None:
    """An accept that is cancelled at any of its suspensions has taken no connection: the next one
    does. A connect that is cancelled leaves nothing open."""
    path = tmp_path / "socket"
    connect = partial(aio.Channel.connect, path)

    async def test() -> None:
        for at in range(1, 10):
            async with aio.Listener(path) as listener, Group(loop) as group:
                client = group.start(connect)
                accept = listener.accept
                accepted, error, was_reached = await run_to_cancellation(loop, at, late, accept)
                if accepted is None:
                    assert is_cancelled(error)
                    accepted = await accept()
                async with (await client.wait()).result as sender, accepted:
                    await sender.send(b"to who accepted")
                    assert take(await accepted.recv())[0] == b"to who accepted"
                connected, error, reached = await run_to_cancellation(loop, at, late, connect)
                if connected is None:
                    assert is_cancelled(error)
                else:
                    connected.close()
            if not (reached or was_reached):
                assert at > 1
                return

    run(loop, test)


@loops_and_kinds
def test_storm(loop: str, kind: socket.SocketKind, file: int) -> None:
    """Under random timeouts on both sides every message that counts as sent comes once, in order,
    and no other."""
    rng = random.Random(17)

    async def test() -> None:
        left, right = make_pair(kind, small=True)
        sent: list[bytes] = []
        received: list[bytes] = []

        async def send() -> None:
            async with Group(loop) as group, left:
                for number in range(300):
                    size = rng.choice([1, 100, 3000, 60_000])
                    payloads = [b"%d." % number * size for _ in range(rng.choice([1, 1, 5]))]
                    payloads = [payload[:100_000] for payload in payloads]
                    fds = [[file]] * len(payloads)
                    task = await group.within(rng.random() * 0.002, left.send_many, payloads, fds)
                    if task.error is None:
                        sent.extend(payloads)
                    else:
                        assert is_cancelled(task.error)
                        sent.extend(payloads[: task.progress.messages])

        async with Group(loop) as group, right:
            sending = group.start(send)
            while True:
                task = await group.within(rng.random() * 0.002, right.recv_many)
                if isinstance(task.error, PeerClosedError):
                    break
                if task.error is None:
                    received += [payload for payload, _ in take_batch(task.result)]
                else:
                    assert is_cancelled(task.error)
            assert (await sending.wait()).error is None
        assert received == sent

    run(loop, test)


def test_trio_sees_every_cancellation(file: int, tmp_path: Path) -> None:
    """In trio a call that need not wait sees that it is cancelled, and takes and sends nothing."""
    path = tmp_path / "socket"
    trio = pytest.importorskip("trio")

    async def test() -> None:
        left, right = make_pair()
        ours, theirs = (channel.detach() for channel in make_pair())
        calls: list[Callable[[], Any]] = [
            partial(left.send, b"two"),
            partial(left.send_many, [b"two"]),
            right.recv,
            right.recv_many,
            partial(aio.send_fds, ours, [b"two"], []),
            partial(aio.send_fd, ours, file, b"two"),
            partial(aio.send_many, ours, [b"two"], [[]]),
            partial(aio.recv_fds, theirs, 100, 1),
            partial(aio.recv_fd, theirs),
            partial(aio.recv_many, theirs),
        ]
        with ours, theirs:
            async with left, right, aio.Listener(path) as listener:
                calls += [partial(aio.Channel.connect, path), listener.accept]
                with Channel.connect(path):
                    (await listener.accept()).close()
                await left.send(b"one")
                await aio.send_fd(ours, file, b"one")
                for call in calls:
                    with trio.CancelScope() as scope:
                        scope.cancel()
                        await call()
                    assert scope.cancelled_caught
                await left.send(b"three")
                assert take(await right.recv())[0] == b"one"
                assert take(await right.recv())[0] == b"three"
                assert take(await aio.recv_fd(theirs))[0] == b"one"
                with pytest.raises(BlockingIOError):
                    theirs.recv(1)

    run("trio", test)
