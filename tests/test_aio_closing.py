"""Channels and listeners that are closed or dropped, and loops that are closed below them."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import sys
import warnings
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest

from fdpass_c import Progress, ProtocolError, aio
from support.aio_channels import make_pair, receive_all
from support.frames import first, one
from support.loops import Group, asyncio_loops, both_backends, every_loop, new_loop, pause, run
from support.messages import take
from support.processes import run_in_child
from support.threads import beside

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@every_loop
def test_close_wakes(loop: str) -> None:
    """close() wakes all who wait, in both directions, with EBADF and a text."""

    async def test() -> None:
        left, right = make_pair()
        async with Group(loop) as group, right:
            tasks = [await group.started(left.recv) for _ in range(3)]
            tasks += [await group.started(left.send, b"x" * 2_000_000) for _ in range(3)]
            tasks += [await group.started(left.flush)]
            left.close()
            assert left.closed
            for task in tasks:
                error = (await task.wait()).error
                assert isinstance(error, OSError)
                assert error.errno == errno.EBADF
                assert "the channel is closed" in str(error)
            with pytest.raises(OSError, match="the channel is closed"):
                await left.recv()

    run(loop, test)


def test_a_socket_of_trio() -> None:
    """It is refused, and a channel of a socket.socket that takes its descriptor works."""
    trio = pytest.importorskip("trio")

    async def test() -> None:
        left, right = trio.socket.socketpair()
        with pytest.raises(TypeError, match=r"needs a socket\.socket"):
            aio.Channel(left)
        ends = [aio.Channel(socket.socket(fileno=end.detach())) for end in (left, right)]
        async with ends[1]:
            async with ends[0]:
                await ends[0].send(b"payload")
            assert await receive_all(ends[1]) == [b"payload"]

    run("trio", test)


def test_repr(tmp_path: Path) -> None:
    """What a channel and a listener show is that of the ones below them."""

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            async with await aio.Channel.connect(tmp_path / "socket") as channel:
                shown = f"<fdpass_c.aio.Channel over <Channel fd={channel.fileno()}, peer pid="
                assert repr(channel).startswith(shown)
            shown = f"<fdpass_c.aio.Listener over <Listener fd={listener.fileno()}, at "
            assert repr(listener).startswith(shown)

    run("asyncio", test)


@both_backends
def test_close_cuts_a_begun_message(loop: str) -> None:
    """Who waits to send the rest of a message is told that it does not arrive."""

    async def test() -> None:
        left, right = make_pair(small=True)
        async with Group(loop) as group, right:
            sending = await group.started(left.send, bytes(60_000))
            left.close()
            error = (await sending.wait()).error
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF
            assert Progress.of(error) == (0, 0)
            with pytest.raises(ProtocolError, match="inside a message"):
                await right.recv()

    run(loop, test)


@every_loop
def test_close_in_another_thread(loop: str, tmp_path: Path) -> None:
    """close(), detach() and shutdown() in another thread than the loop's are a RuntimeError, and
    change nothing; so they are where that thread runs a loop of its own. close() again is not."""

    async def test() -> None:
        left, right = make_pair()
        listener = aio.Listener(tmp_path / "socket")
        async with left, right, listener, Group(loop) as group:

            def close_all() -> None:
                shut_down = partial(right.shutdown, socket.SHUT_RDWR)
                for close in (right.close, right.detach, shut_down, listener.close):
                    with pytest.raises(RuntimeError, match="used in another thread"):
                        close()

            async def close_all_in_a_loop() -> None:
                close_all()

            receiving = await group.started(right.recv)
            with beside(close_all):
                pass
            with beside(lambda: run(loop, close_all_in_a_loop)):
                pass
            assert not right.closed
            await left.send(b"still")
            payload, fds = (await receiving.wait()).result
            fds.close()
            assert payload == b"still"
            right.close()
            listener.close()
            with beside(right.close), beside(listener.close):
                pass  # Where it is closed, nothing is left that another thread could disturb.

    run(loop, test)


@every_loop
def test_no_messages(loop: str) -> None:
    """To ask for none, or for what is no number, is an error at once, also where the next call
    would wait first."""

    async def test() -> None:
        left, right = make_pair()
        async with left, right, Group(loop) as group:
            receiving = await group.started(right.recv)
            await left.send(b"x")
            (await receiving.wait()).result[1].close()
            for number, kind in [
                (0, ValueError),
                (1.5, TypeError),
                (float("nan"), TypeError),
                ("1", TypeError),
                (2**64, OverflowError),
            ]:
                for at_most in (right.recv_many, right._channel.recv_many):
                    receiving = await group.started(call, at_most, number)
                    assert isinstance(receiving.error, kind), number

    async def call(receive: Any, number: Any) -> None:
        answer = receive(number)
        if isawaitable(answer):
            await answer

    run(loop, test)


@asyncio_loops
def test_a_loop_that_goes_on_in_another_thread(loop: str) -> None:
    """A channel stays with its loop, which may be run in another thread than before: that thread
    uses and closes it, and this one no longer may."""

    async def make() -> tuple[aio.Channel, aio.Channel]:
        return make_pair()

    async def use() -> None:
        await left.send(b"x")
        assert take(await right.recv())[0] == b"x"

    async def close() -> None:
        left.close()
        right.close()

    moving = new_loop(loop)
    left, right = moving.run_until_complete(make())
    with beside(moving.run_forever):
        try:
            asyncio.run_coroutine_threadsafe(use(), moving).result()
            with pytest.raises(RuntimeError, match="another thread"):
                right.close()
            with pytest.raises(RuntimeError, match="event loop other than"):
                asyncio.run(use())
            asyncio.run_coroutine_threadsafe(close(), moving).result()
        finally:
            moving.call_soon_threadsafe(moving.stop)
    moving.close()


@every_loop
def test_close_listener(loop: str, tmp_path: Path) -> None:
    """Closing a listener wakes who accepts, with EBADF."""

    async def test() -> None:
        listener = aio.Listener(tmp_path / "socket")
        async with Group(loop) as group, listener:
            accepting = await group.started(listener.accept)
            listener.close()
            error = (await accepting.wait()).error
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF

    run(loop, test)


@both_backends
def test_peer_dies_inside_a_frame(loop: str) -> None:
    """A peer that closes inside a message is a ProtocolError for whoever waits, and ever after."""

    async def test() -> None:
        left, right = socket.socketpair()
        async with Group(loop) as group, aio.Channel(right) as channel:
            receiving = await group.started(channel.recv)
            left.sendall(first(1000, 0, b"only a part"))
            await group.turn(5)
            assert not receiving.done
            left.close()
            assert isinstance((await receiving.wait()).error, ProtocolError)
            with pytest.raises(ProtocolError):
                await channel.recv_many()
            with pytest.raises(ProtocolError):
                await channel.send(b"x")

    run(loop, test)


@pytest.mark.parametrize("others", [0, 1])
@both_backends
def test_garbage_right_behind_a_message(loop: str, others: int) -> None:
    """What comes with a message and is none is a ProtocolError for the next receive, also for one
    that has waited already: it does not wait for more."""

    async def test(receive: str) -> None:
        left, right = socket.socketpair()
        with left:
            async with Group(loop) as group, aio.Channel(right) as channel:
                call = getattr(channel, receive)
                tasks = [await group.started(call) for _ in range(1 + others)]
                left.sendall(one(b"whole") + b"garbage" * 10)
                await tasks[0].wait()
                assert tasks[0].error is None
                tasks[0].result[-1].close() if receive == "recv" else tasks[0].result.close()
                if others == 0:
                    tasks.append(await group.started(call))
                await group.turn(5)
                assert tasks[1].done
                assert isinstance(tasks[1].error, ProtocolError)

    for receive in ("recv", "recv_many"):
        run(loop, test, receive)


@both_backends
def test_exit_sends_the_rest(loop: str) -> None:
    """The end of the block sends the rest of a frame that is begun."""

    async def test() -> None:
        left, right = make_pair(small=True)
        async with Group(loop) as group, right:
            async with left:
                task = await group.started(left.send, b"x" * 60_000)
                task.cancel()
                await task.wait()
                assert task.progress.messages == 1
                assert left.unsent > 0
                receiving = group.start(right.recv)
            payload, fds = (await receiving.wait()).result
            fds.close()
            assert payload == b"x" * 60_000

    run(loop, test)


@both_backends
def test_exit_with_an_exception_does_not_wait(loop: str) -> None:
    """An exception that leaves the block closes at once, although the peer receives nothing."""

    async def test() -> None:
        left, right = make_pair(small=True)
        async with Group(loop) as group, right:
            with contextlib.suppress(KeyError):
                async with left:
                    task = await group.started(left.send, b"x" * 60_000)
                    task.cancel()
                    await task.wait()
                    assert left.unsent > 0
                    raise KeyError
            assert left.closed

    run(loop, test)


@asyncio_loops
def test_loop_closed_under_a_channel(loop: str) -> None:
    """A channel whose loop was closed closes, while nothing is left of it."""
    kept = []

    async def test() -> None:
        left, right = make_pair()
        kept.extend([left, right])
        await left.send(b"x")
        take(await right.recv())
        asyncio.get_running_loop().create_task(right.recv())
        await asyncio.sleep(0.001)

    run(loop, test)
    for channel in kept:
        channel.close()


@asyncio_loops
def test_loop_closed_under_tasks(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks that are dropped with their loop, whoever's turn it was, raise nothing as they end."""

    async def test() -> tuple[aio.Channel, ...]:
        silent, waiting = make_pair()
        sending, full = make_pair()
        receives = [asyncio.create_task(waiting.recv()) for _ in range(3)]
        sends = [asyncio.create_task(sending.send(bytes(1_000_000))) for _ in range(3)]
        await asyncio.sleep(0.001)
        assert not any(task.done() for task in receives + sends)
        return silent, waiting, sending, full

    closed = new_loop(loop)
    channels = closed.run_until_complete(test())
    closed.close()
    gc.collect()
    assert {record.message.split("\n")[0] for record in caplog.records} <= {
        "Task was destroyed but it is pending!"
    }
    for channel in channels:
        channel.close()


@every_loop
def test_another_loop(loop: str, tmp_path: Path) -> None:
    """A channel and a listener are refused in another loop than their own, at once, and without
    any."""
    kept: list[Any] = []

    async def make() -> None:
        kept.extend([*make_pair(), aio.Listener(tmp_path / "socket")])

    async def use() -> None:
        for name in ("recv", "recv_many", "flush", "wait_for_room"):
            with pytest.raises(RuntimeError):
                await getattr(kept[0], name)()
        sends: list[Any] = [kept[0].send, kept[0].send_many]
        for send in sends:
            with pytest.raises(RuntimeError):
                await send(b"")
        assert not kept[0].closed
        with pytest.raises(RuntimeError):
            await kept[2].accept()
        with pytest.raises(RuntimeError):
            await kept[2].serve(asyncio.sleep)

    run(loop, make)
    run(loop, use)
    for each in kept:
        each.close()
    left, right = socket.socketpair()
    with left, right, pytest.raises(RuntimeError):
        aio.Channel(left)
    with pytest.raises(RuntimeError):
        aio.Channel.pair()


@every_loop
def test_dropped(loop: str) -> None:
    """A channel that is dropped warns once, with the place where it was made, and is closed; the
    loop does not keep it."""
    tracemalloc: Any = pytest.importorskip("tracemalloc", reason="PyPy has none")

    async def send_later(channel: aio.Channel) -> None:
        await pause(loop, 0.001)
        await channel.send(b"x")

    async def test() -> None:
        left, right = make_pair()
        async with left:
            async with Group(loop) as group:
                group.start(send_later, left)
                take(await right.recv())  # It has waited: the loop watches the descriptor.
            await pause(loop)  # Else the loop's callback has not ended.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del right
                gc.collect()
            (warning,) = [one for one in caught if one.category is ResourceWarning]
            assert "unclosed" in str(warning.message)
            if sys.version_info >= (3, 12):  # Before, it knows no object of such a class.
                origin = tracemalloc.get_object_traceback(warning.source)
                assert origin is not None
                assert any(frame.filename == __file__ for frame in origin)
            for _ in range(3):
                await pause(loop)
            with pytest.raises(OSError):  # noqa: PT011
                await left.send(b"x")

    tracemalloc.start(20)
    try:
        run(loop, test)
    finally:
        tracemalloc.stop()


@asyncio_loops
@pytest.mark.parametrize("detaches", [False, True], ids=["dropped", "detached"])
def test_given_up_right_after_a_send(loop: str, detaches: bool) -> None:
    """The loop does not watch the descriptor of a channel that is dropped or detached in the very
    turn in which its send ends: the next with its number could never wait for room."""

    async def test() -> None:
        left, right = make_pair(small=True)
        watched = left.fileno()
        receiving = asyncio.create_task(right.recv())
        await left.send(bytes(200_000))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            if detaches:
                left.detach().close()
            del left
            gc.collect()
            assert not asyncio.get_running_loop().remove_writer(watched)
            take(await receiving)  # And the loop's callback has ended, which keeps the socket open.
        right.close()

    run(loop, test)


@asyncio_loops
def test_descriptor_0(loop: str) -> None:
    """A program without a standard input may have a channel whose descriptor is 0. The loop watches
    it only while a task waits, as any other."""

    async def test() -> None:
        os.close(0)
        left, right = make_pair()
        assert left.fileno() == 0
        async with left, right:
            receiving = asyncio.create_task(left.recv())
            await asyncio.sleep(0.001)
            await right.send(b"one")
            take(await receiving)
            await right.send(b"two")
            await asyncio.sleep(0.001)
            assert not asyncio.get_running_loop().remove_reader(0)

    run_in_child(lambda: run(loop, test))


def test_watched_once() -> None:
    """The loop is told once to watch a channel that waits for one message after the other."""
    added: list[int] = []

    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, *arguments: Any) -> None:  # type: ignore[override]
            added.append(arguments[0])
            super().add_reader(*arguments)

    async def test() -> None:
        left, right = make_pair()
        async with left, right:
            receiving = asyncio.create_task(receive_all(right))
            for _ in range(5):
                await asyncio.sleep(0)
                await left.send(b"x")
            left.close()
            assert await receiving == [b"x"] * 5
            assert added == [right.fileno()]

    with contextlib.closing(Loop()) as new:
        new.run_until_complete(test())


@asyncio_loops
def test_dropped_in_another_thread(loop: str) -> None:
    """A channel that another thread drops stays open until the loop has forgotten it."""

    async def test() -> None:
        left, right = make_pair()
        async with left:
            receiving = asyncio.create_task(right.recv())
            await asyncio.sleep(0.001)
            await left.send(b"x")
            take(await receiving)
            fd = right.fileno()
            held = [right]
            del right, receiving

            def drop() -> None:
                held.clear()
                gc.collect()

            await asyncio.sleep(0)  # Else the loop's callback has not ended.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                with beside(drop):
                    pass
                os.fstat(fd)
                await asyncio.sleep(0.001)
            with pytest.raises(OSError):  # noqa: PT011
                await left.send(b"x")

    run(loop, test)


@asyncio_loops
def test_dropped_listener(loop: str, tmp_path: Path) -> None:
    """So is a listener; and one that could not be made leaves nothing to report."""

    async def test() -> None:
        listener = aio.Listener(tmp_path / "socket")
        accepting = asyncio.create_task(listener.accept())
        await asyncio.sleep(0)
        async with await aio.Channel.connect(tmp_path / "socket"), await accepting:
            del accepting
            watched = listener.fileno()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del listener
                gc.collect()
            assert [warning.category for warning in caught] == [ResourceWarning]
            assert not asyncio.get_running_loop().remove_reader(watched)
        with pytest.raises(FileNotFoundError):
            aio.Listener(tmp_path / "no folder" / "socket")

    run(loop, test)


@asyncio_loops
def test_not_watched_while_nobody_waits(loop: str) -> None:
    """A message that nobody waits for does not wake the loop again and again."""

    async def test() -> None:
        left, right = make_pair()
        async with left, right:
            receiving = asyncio.create_task(right.recv())
            await asyncio.sleep(0.001)
            await left.send(b"one")
            take(await receiving)
            await left.send(b"two")
            await asyncio.sleep(0.001)
            assert not asyncio.get_running_loop().remove_reader(right.fileno())
            assert take(await right.recv())[0] == b"two"

    run(loop, test)
