"""aio.Listener.serve: a task for each connection, whose errors and cancellations are not lost."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import sys
import warnings
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fdpass_c import Channel, PeerClosedError, aio
from fdpass_c.aio import serving
from support.aio_channels import is_cancelled, receive_all
from support.descriptors import identity
from support.loops import Group, asyncio_loops, both_backends, every_loop, new_loop, pause, run
from support.messages import take
from support.signals import Interruption

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@every_loop
def test_serve(loop: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """serve runs a task for each connection; an exception of one is logged, and its channel closed;
    cancelled, it ends them all."""

    async def handle(channel: aio.Channel) -> None:
        async for payload, fds in channel:
            fds.close()
            if payload == b"raise":
                raise ValueError("asked to")
            await channel.send(payload)

    async def test() -> None:
        path = tmp_path / "socket"
        async with Group(loop) as group, aio.Listener(path) as listener:
            serving = group.start(listener.serve, handle)
            clients = [await aio.Channel.connect(path) for _ in range(10)]
            for client in clients:
                await client.send(b"hello")
            for client in clients:
                assert take(await client.recv())[0] == b"hello"
            await clients[0].send(b"raise")
            with pytest.raises(PeerClosedError):
                await clients[0].recv()
            serving.cancel()
            await serving.wait()
            assert is_cancelled(serving.error)
            for client in clients:
                with pytest.raises(PeerClosedError):
                    await client.recv()
                client.close()

    run(loop, test)
    (record,) = [one for one in caplog.records if one.name == "fdpass_c.aio"]
    assert record.exc_info is not None
    assert "asked to" in str(record.exc_info[1])


@both_backends
def test_serve_sends_the_rest(loop: str, tmp_path: Path) -> None:
    """What a handler has begun to send arrives, although the handler has returned."""

    async def handle(channel: aio.Channel) -> None:
        with socket.socket(fileno=os.dup(channel.fileno())) as shared:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        async with Group(loop) as group:
            sending = await group.started(channel.send, b"x" * 60_000)
            sending.cancel()
            await sending.wait()
        assert channel.unsent > 0
        returning.append(channel)

    async def test() -> None:
        path = tmp_path / "socket"
        async with Group(loop) as group, aio.Listener(path) as listener:
            serving = group.start(listener.serve, handle)
            async with await aio.Channel.connect(path) as client:
                while not returning:
                    await group.turn()
                assert take(await client.recv())[0] == b"x" * 60_000
            listener.close()
            await serving.wait()

    returning: list[aio.Channel] = []
    run(loop, test)


@both_backends
def test_serve_where_accept_fails(loop: str, tmp_path: Path) -> None:
    """An error of accept that does not pass ends the handlers, and serve with that very error."""

    async def handle(channel: aio.Channel) -> None:
        while True:
            await channel.send(take(await channel.recv())[0])

    async def test() -> None:
        path = tmp_path / "socket"
        async with Group(loop) as group, aio.Listener(path) as listener:
            serving = group.start(listener.serve, handle)
            async with await aio.Channel.connect(path) as client:
                await client.send(b"hello")
                assert take(await client.recv())[0] == b"hello"
                with socket.socket(fileno=os.dup(listener.fileno())) as shared:
                    shared.shutdown(socket.SHUT_RDWR)
                await serving.wait()
                assert isinstance(serving.error, OSError)
                assert serving.error.errno == errno.EINVAL
                with pytest.raises(PeerClosedError):
                    await client.recv()

    run(loop, test)


def test_serve_in_a_loop_that_ends(tmp_path: Path) -> None:
    """asyncio cancels what still runs; a connection whose handler has not begun is closed too."""

    async def handle(channel: aio.Channel) -> None:
        await channel.recv()

    async def test(turns: int) -> tuple[aio.Listener, Channel]:
        listener = aio.Listener(tmp_path / "socket")
        serving = asyncio.create_task(listener.serve(handle))
        client = Channel.connect(tmp_path / "socket")
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not serving.done()
        return listener, client

    for turns in range(8):
        listener, client = asyncio.run(test(turns))
        listener.close()
        with client, pytest.raises((PeerClosedError, ConnectionResetError)):
            client.recv()


def test_serve_forgets_what_has_ended(tmp_path: Path) -> None:
    """Nothing is kept of a connection that has ended, once another has come."""
    ended: list[weakref.ref[Any]] = []

    async def handle(channel: aio.Channel) -> None:
        ended.append(weakref.ref(asyncio.current_task()))
        await channel.send(b"hello")

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            serving = asyncio.create_task(listener.serve(handle))
            for _ in range(5):
                async with await aio.Channel.connect(tmp_path / "socket") as client:
                    assert await receive_all(client) == [b"hello"]
            await asyncio.sleep(0)
            gc.collect()
            assert [task() for task in ended[:-1]] == [None] * 4
            listener.close()
            await serving

    asyncio.run(test())


@every_loop
def test_listener_handed_over(loop: str, tmp_path: Path, file: int) -> None:
    """A detached listener ends serve, which lets the handlers finish. Another one accepts on."""
    path = tmp_path / "socket"

    async def echo(channel: aio.Channel) -> None:
        async for payload, fds in channel:
            with fds:
                await channel.send(payload, fds)

    async def test() -> None:
        async with Group(loop) as group:
            first = aio.Listener(path)
            serving = group.start(first.serve, echo)
            async with await aio.Channel.connect(path) as old:
                await old.send(b"old", [file])
                assert take(await old.recv()) == (b"old", [identity(file)])
                async with aio.Listener(first.detach()) as second:
                    assert first.closed
                    async with await aio.Channel.connect(path), await second.accept():
                        await old.send(b"still served", [file])
                        assert take(await old.recv()) == (b"still served", [identity(file)])
            await serving.wait()
            with pytest.raises(OSError, match="the listener is closed"):
                first.detach()

    run(loop, test)


@both_backends
def test_serve_cancelled_after_its_listener_was_closed(
    loop: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """serve ends its handlers when it is cancelled, also where it only waits for them to end, and
    nobody has anything to log."""
    ended: list[str] = []

    async def handle(channel: aio.Channel) -> None:
        try:
            await channel.recv()
        finally:
            ended.append("handler")

    async def test() -> None:
        path = tmp_path / "socket"
        async with Group(loop) as group, aio.Listener(path) as listener:
            serving = group.start(listener.serve, handle)
            async with await aio.Channel.connect(path) as client:
                await group.turn(5)
                listener.close()
                await group.turn(5)
                serving.cancel()
                await serving.wait()
                assert is_cancelled(serving.error)
                assert ended == ["handler"]
                with pytest.raises(PeerClosedError):
                    await client.recv()

    run(loop, test)
    assert caplog.records == []


class Ending(BaseException):
    """What no handler of exceptions catches."""


@every_loop
@pytest.mark.parametrize("closes", [False, True], ids=["accepting", "closed"])
@pytest.mark.parametrize("kind", [Ending, SystemExit])
def test_serve_ends_with_what_is_no_exception(
    loop: str, closes: bool, kind: type[BaseException], tmp_path: Path
) -> None:
    """Such an error of a handler is not logged: serve ends the other handlers and raises it itself,
    in no group, and does not leave its task cancelled."""
    ended: list[str] = []

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            clients.extend(Channel.connect(tmp_path / "socket") for _ in range(3))
            clients[2].send(b"raise")

            async def handle(channel: aio.Channel) -> None:
                try:
                    take(await channel.recv())
                    if closes:
                        listener.close()
                        await pause(loop)
                    raise kind
                finally:
                    ended.append("handler")

            try:
                await listener.serve(handle)
            finally:
                await pause(loop)
                ended.append("serve")

    clients: list[Channel] = []
    with pytest.raises(kind):
        run(loop, test)
    for client in clients:
        client.settimeout(0)
        with client, pytest.raises(PeerClosedError):
            client.recv()
    assert ended == ["handler"] * 3 + ["serve"]


@every_loop
def test_what_serve_raises_is_in_no_cycle(loop: str, tmp_path: Path) -> None:
    """The error of a handler, and all that its frames refer to, go when the caller drops it."""

    async def handle(_channel: aio.Channel) -> None:
        raise Ending

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            with Channel.connect(tmp_path / "socket"):
                try:
                    await listener.serve(handle)
                except Ending as error:
                    dropped.append(weakref.ref(error))
            await pause(loop)
            assert dropped[0]() is None

    dropped: list[weakref.ref[BaseException]] = []
    gc.disable()
    try:
        run(loop, test)
    finally:
        gc.enable()
    assert dropped


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no Task.cancelling")
def test_serve_whose_handlers_all_fail(tmp_path: Path) -> None:
    """serve cancels its own task once, and takes that back, however many handlers raise what is no
    Exception: a later cancellation would not be seen for what it is."""

    async def handle(channel: aio.Channel) -> None:
        try:
            (await channel.recv())[1].close()
        finally:
            raise Ending

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            clients = [Channel.connect(tmp_path / "socket") for _ in range(3)]
            clients[2].send(b"end")
            with pytest.raises(Ending):
                await listener.serve(handle)
            for client in clients:
                client.close()
        task: Any = asyncio.current_task()
        assert task.cancelling() == 0

    run("asyncio", test)


@both_backends
def test_serve_cancelled_raises_what_is_no_exception(loop: str, tmp_path: Path) -> None:
    """Such an error is not lost if a handler raises it while it ends because serve is cancelled."""

    async def handle(channel: aio.Channel) -> None:
        try:
            await channel.recv()
        finally:
            raise Ending

    async def serve(listener: aio.Listener) -> None:
        with pytest.raises(Ending):
            await listener.serve(handle)
        ended.append("serve")

    async def test() -> None:
        async with Group(loop) as group, aio.Listener(tmp_path / "socket") as listener:
            serving = group.start(serve, listener)
            with Channel.connect(tmp_path / "socket"):
                await group.turn(5)
                serving.cancel()
                await serving.wait()

    ended: list[str] = []
    run(loop, test)
    assert ended == ["serve"]


@pytest.mark.parametrize("kind", [ValueError, Ending])
def test_serve_cancelled_while_tasks_of_a_handler_fail(
    kind: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A nursery of trio's raises the cancellation in a group with the errors of its tasks. These
    are logged, or raised by serve if they are no Exception, as those of a handler without one."""
    trio = pytest.importorskip("trio")
    error = kind("at the end")

    async def fail() -> None:
        scope.cancel()
        try:
            await trio.sleep_forever()
        finally:
            raise error

    async def handle(channel: aio.Channel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await channel.recv()

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            with Channel.connect(tmp_path / "socket"), scope:
                await listener.serve(handle)

    scope = trio.CancelScope()

    if kind is ValueError:
        run("trio", test)
        (record,) = caplog.records
        assert record.exc_info is not None
        raised = record.exc_info[1]
    else:
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            run("trio", test)
        raised = caught.value
    assert getattr(raised, "exceptions", None) == (error,)


def test_serve_cancelled_again(tmp_path: Path) -> None:
    """serve returns when its handlers have, however often it is cancelled: anyio does each turn."""
    ended: list[str] = []

    async def handle(channel: aio.Channel) -> None:
        try:
            await channel.recv()
        finally:
            await asyncio.sleep(0.01)
            ended.append("handler")

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            serving = asyncio.create_task(listener.serve(handle))
            with Channel.connect(tmp_path / "socket"):
                for _ in range(5):
                    await asyncio.sleep(0)
                while not serving.done():
                    serving.cancel()
                    await asyncio.sleep(0)
                assert serving.cancelled()
                assert ended == ["handler"]

    run("asyncio", test)


def test_serve_cancelled_after_a_signal_handler_has_raised(tmp_path: Path) -> None:
    """serve returns although a signal handler interrupted what follows the end of a handler."""
    left = 0

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal left
        caller = frame.f_back if event == "return" else frame
        assert caller is not None
        code = caller.f_code
        if (code.co_filename, code.co_name) == (serving.__file__, "end"):
            left -= event in ("c_return", "return")
            if left == 0:
                sys.setprofile(None)
                raise Interruption

    async def handle(channel: aio.Channel) -> None:
        with contextlib.suppress(PeerClosedError):
            await channel.recv()

    async def test() -> None:
        async with aio.Listener(tmp_path / "socket") as listener:
            task = asyncio.create_task(listener.serve(handle))
            with Channel.connect(tmp_path / "socket"):
                await asyncio.sleep(0)
            sys.setprofile(profile)
            while left > 0:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    for number in (1, 2, 3):
        left = number
        run("asyncio", test)


@asyncio_loops
def test_serve_dropped_with_its_loop(
    loop: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """serve raises nothing as it ends with its loop, whether it accepts or waits for a handler."""

    async def handle(channel: aio.Channel) -> None:
        await channel.recv()

    async def begin(closes: bool) -> None:
        listener = aio.Listener(tmp_path / "socket")
        held.append(listener)
        serving = asyncio.create_task(listener.serve(handle))
        held.append(Channel.connect(tmp_path / "socket"))
        for _ in range(5):
            await asyncio.sleep(0)
        if closes:
            listener.close()
        assert not serving.done()

    for closes in (False, True):
        held: list[aio.Listener | Channel] = []
        new = new_loop(loop)
        new.run_until_complete(begin(closes))
        new.close()
        for each in held:
            each.close()
        held.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # The handler's channel.
            for _ in range(9):  # Each of PyPy's frees one of the coroutines that await each other.
                gc.collect()
    del new
    assert {record.message.split("\n")[0] for record in caplog.records} <= {
        "Task was destroyed but it is pending!"
    }
