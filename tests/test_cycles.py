"""What the collector finds in a cycle, and finalises in any order, uses no memory that is freed."""

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import sysconfig
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, aio
from fdpass_c.channel import end_of
from fdpass_c.sending import start_one
from support.channels import channels
from support.loops import both_backends, run

_DROP_OWNER = """
import gc, os
from fdpass_c import Descriptors
class Box:
    pass
box = Box()
box.me = box
box.owner = Descriptors([os.dup(0)])
fd = box.owner[0]
del box
gc.collect()
try:
    os.fstat(fd)
except OSError:
    print("closed")
"""

_DROP_SENDING = """
import gc
from fdpass_c import Channel
from fdpass_c.channel import end_of
from fdpass_c.sending import start_one

class Box:
    pass

here, there = Channel.pair()
here.setblocking(False)
box = Box()
box.me = box
box.sending = start_one(end_of(here).outbox, bytes(10_000_000), [])
box.sending.step(0x40)
del box
gc.collect()
there.setblocking(False)
try:
    there.recv()
except BlockingIOError:
    here.flush()
try:
    there.recv()
except BlockingIOError:
    here.send(b"next")
    print(there.recv()[0].decode())
"""


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("program", "printed"), [(_DROP_OWNER, "closed"), (_DROP_SENDING, "next")])
def test_alone(program: str, printed: str) -> None:
    """An owner closes, a send that was begun is withdrawn; neither uses memory given back.

    Of the second only sanitizers tell.
    """
    # glibc overwrites what is freed. A free-threaded Python does it itself, and takes no other's.
    allocator = "debug" if sysconfig.get_config_var("Py_GIL_DISABLED") else "malloc"
    environment = {**os.environ, "PYTHONMALLOC": allocator, "MALLOC_PERTURB_": "165"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{printed}\n"), done.stderr


def test_a_send_that_was_begun() -> None:
    """It is given up, after its channel. Sanitizers see whether that one's memory is there."""
    here, there = Channel.pair()
    with here, there:
        here.setblocking(False)
        sending = start_one(end_of(here).outbox, bytes(10_000_000), [])
        assert sending is not None
        sending.step(socket.MSG_DONTWAIT)
    cycle: list[Any] = [here, sending]
    cycle.append(cycle)
    del here, sending, cycle
    gc.collect()


class Box:
    """What a frame holds."""


def _fill(channel: Channel) -> None:
    while True:
        channel.send(bytes(50_000))


@pytest.mark.thread_unsafe
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
@pytest.mark.parametrize("timeout", [0.0, 1e-3])
@pytest.mark.parametrize(
    "use",
    [
        Channel.recv,
        Channel.recv_many,
        _fill,
        lambda channel: channel.send(bytes(9_000_000)),
        lambda channel: channel.send_many([bytes(50_000)] * 99),
        lambda channel: channel.send(b"", [-5]),
        lambda channel: fdpass_c.writev(channel.fileno(), [bytes(9_000_000)]),
        lambda channel: fdpass_c.recv_fds(channel.fileno(), 1, 1),
    ],
)
def test_an_error_is_in_no_cycle(use: Callable[[Channel], object], timeout: float) -> None:
    """What its traceback holds goes with it, and does not wait for the collector."""
    with channels(buffer=5000) as (channel, _):
        channel.settimeout(timeout)

        def fail() -> weakref.ref[Box]:
            box = Box()
            held = weakref.ref(box)
            try:
                use(channel)
            except (OSError, ValueError):
                return held
            raise AssertionError("no error")

        gc.collect()
        gc.disable()
        try:
            held = fail()
            assert held() is None
        finally:
            gc.enable()


async def _accept_in_vain(_: aio.Channel, folder: Path) -> None:
    async def handle(channel: aio.Channel) -> None:
        raise AssertionError(channel)

    async with aio.Listener(folder / "socket") as listener:
        with socket.socket(fileno=os.dup(listener.fileno())) as shared:
            shared.shutdown(socket.SHUT_RDWR)
        await listener.serve(handle)


async def _fill_aio(channel: aio.Channel, _: socket.socket) -> None:
    while True:
        await channel.send(bytes(50_000))


async def _fill_plain(_: aio.Channel, sock: socket.socket) -> None:
    while True:
        await aio.send_fds(sock, [bytes(50_000)], [])


@pytest.mark.thread_unsafe
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
@both_backends
@pytest.mark.parametrize(
    "use",
    [
        lambda channel, _: channel.send(b"", [-5]),
        lambda channel, _: channel.send(bytes(9_000_000), [-5]),
        lambda channel, _: channel.send_many([b"x"], [-5]),
        lambda _, folder: aio.Channel.connect(folder / "nobody"),
        _accept_in_vain,
    ],
)
def test_an_error_of_a_loop_is_in_no_cycle(loop: str, use: Any, tmp_path: Path) -> None:
    """What its traceback holds goes with it, under an event loop too."""

    async def fail(channel: aio.Channel) -> "weakref.ref[Box]":
        box = Box()
        held = weakref.ref(box)
        try:
            await use(channel, tmp_path)
        except OSError:
            return held
        raise AssertionError("no error")

    async def test() -> None:
        left, right = aio.Channel.pair()
        async with left, right:
            assert (await fail(right))() is None

    _without_the_collector(run, loop, test)


@pytest.mark.thread_unsafe
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize(
    "use",
    [
        lambda channel, _: channel.recv(),
        lambda channel, _: channel.recv_many(),
        lambda channel, _: channel.wait_for_room(),
        lambda channel, _: channel.send(bytes(9_000_000)),
        lambda channel, _: channel.send_many([bytes(50_000)] * 99),
        _fill_aio,
        lambda _, sock: aio.recv_fds(sock, 1, 1),
        lambda _, sock: aio.recv_fd(sock),
        lambda _, sock: aio.recv_many(sock),
        _fill_plain,
        lambda _, sock: aio.send_fd(sock, 0, bytes(9_000_000)),
        lambda _, sock: aio.send_many(sock, [bytes(50_000)] * 99, [0] * 99),
    ],
)
def test_a_cancellation_is_in_no_cycle(use: Any, turns: int) -> None:
    """As for an error: neither the frames of a cancelled call nor what they hold stay. The call is
    not in a task, because asyncio's own tasks make such cycles."""

    def cancel(call: Any) -> "weakref.ref[Box]":
        box = Box()
        held = weakref.ref(box)
        with contextlib.suppress(asyncio.CancelledError):
            call.throw(asyncio.CancelledError())
        return held

    async def test() -> None:
        left, right = aio.Channel.pair()
        here, there = socket.socketpair()
        async with left, right:
            with here, there:
                here.setblocking(False)
                call = use(right, here).__await__()
                for _ in range(turns):
                    awaited = call.send(None)
                    if awaited is not None:
                        awaited._asyncio_future_blocking = False
                    await asyncio.sleep(0)
                del awaited
                assert cancel(call)() is None
            right.close()  # The end of the block would send the rest to nobody.

    _without_the_collector(run, "asyncio", test)


@pytest.mark.thread_unsafe
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
def test_a_cancelled_task_is_in_no_cycle() -> None:
    """What its frames hold goes with a cancelled task, one that waits for messages and one that
    waits for its turn."""

    async def receive(channel: aio.Channel, _box: Box) -> None:
        await channel.recv()

    def start(channel: aio.Channel) -> "tuple[asyncio.Task[None], weakref.ref[Box]]":
        box = Box()
        return asyncio.create_task(receive(channel, box)), weakref.ref(box)

    async def test() -> None:
        left, right = aio.Channel.pair()
        async with left, right:
            started = [start(right) for _ in range(2)]
            await asyncio.sleep(0)
            for task, _ in started:
                task.cancel()
            for task, _ in started:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            del task
            held = [box for _, box in started]
            started.clear()
            await asyncio.sleep(0)
            assert [box() for box in held] == [None, None]

    _without_the_collector(run, "asyncio", test)


def _without_the_collector(function: Callable[..., object], *arguments: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        function(*arguments)
    finally:
        gc.enable()
