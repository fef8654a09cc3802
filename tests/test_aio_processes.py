"""Forks, signals and interrupts under an event loop."""

import asyncio
import gc
import random
import signal
import socket
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fdpass_c
from fdpass_c import aio
from fdpass_c.aio import asyncio_loop
from support.aio_channels import make_pair, receive_all
from support.frames import one
from support.loops import Group, asyncio_loops, every_loop, pause, run
from support.messages import take
from support.processes import run_in_child
from support.threads import beside

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@every_loop
def test_fork(loop: str) -> None:
    """A child that closes its copy does not take the parent's channel out of the parent's loop."""

    async def test() -> None:
        left, right = make_pair()
        async with Group(loop) as group, left, right:
            receiving = await group.started(right.recv)

            def child() -> None:
                left.close()
                right.close()

            run_in_child(child)
            with beside(lambda: run_in_child(child)):
                pass  # In asyncio's debug mode a loop refuses calls of another thread.
            assert not receiving.done
            await left.send(b"still")
            payload, fds = (await receiving.wait()).result
            fds.close()
            assert payload == b"still"
            # And where the loop watches it while nobody waits.
            run_in_child(child)
            receiving = await group.started(right.recv)
            await left.send(b"again")
            payload, fds = (await receiving.wait()).result
            fds.close()
            assert payload == b"again"

    run(loop, test)


@asyncio_loops
def test_used_in_a_forked_child(loop: str) -> None:
    """The loop does not run in the child, which is told so and takes nothing of the parent's."""

    async def test() -> None:
        left, right = make_pair()
        async with left, right:
            await left.send(b"for the parent")

            def child() -> None:
                with pytest.raises(RuntimeError, match="no running event loop"):
                    right.recv().send(None)

            run_in_child(child)
            assert take(await right.recv())[0] == b"for the parent"

    run(loop, test)


@pytest.mark.untraced
@asyncio_loops
def test_cancelled_by_a_signal_handler(loop: str) -> None:
    """asyncio.run has the handler of SIGINT cancel the task: that is never lost, whichever bytecode
    of a receive it interrupts, and neither is a message."""

    async def receive(channel: aio.Channel, received: list[bytes]) -> None:
        while True:
            payload, fds = await channel.recv()
            fds.close()
            received.append(payload)

    folder = str(Path(aio.__file__).parent)

    async def cancel_before(number: int) -> bool:
        """Whether there are so many bytecodes."""
        seen = 0
        received: list[bytes] = []
        sent = [b"one", b"two"]

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal seen
            if not frame.f_code.co_filename.startswith(folder):
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                seen += 1
                if seen == number:
                    task.cancel()
            return trace

        left, right = make_pair()
        async with left, right:
            task = asyncio.create_task(receive(right, received))
            # The first time of all, Python 3.12 heeds this in the next settrace only.
            sys._getframe().f_trace_opcodes = True
            sys.settrace(trace)
            try:
                for payload in sent:
                    await pause(loop)
                    await left.send(payload)
                for _ in range(5):
                    await pause(loop)
            finally:
                sys.settrace(None)
            assert task.cancelled() == (seen >= number), number
            task.cancel()
            await asyncio.wait([task])
            left.close()
            assert received + await receive_all(right) == sent, number
        return seen >= number

    async def test() -> None:
        number = 1
        while await cancel_before(number):
            number += 1
        assert number > 100

    run(loop, test)


class Interruption(Exception):
    """What a signal handler raises."""


@pytest.mark.untraced
@asyncio_loops
@pytest.mark.parametrize("receive", [aio.Channel.recv, lambda sock: aio.recv_fds(sock, 100, 1)])
def test_interrupted_while_it_is_watched(loop: str, receive: Any) -> None:
    """The loop watches no descriptor that was closed, whichever bytecode of waiting and of its end
    a signal handler has interrupted: the next with its number might never be reported. One that is
    still open is received from as before. A descriptor that was received is the caller's or closed.
    """
    functions = vars(asyncio_loop.AsyncioDirection).values()
    interrupted = {function.__code__ for function in functions if hasattr(function, "__code__")}

    async def interrupt_before(number: int) -> int:
        """How many bytecodes there were until then."""
        seen = 0

        def trace(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal seen
            if frame.f_code not in interrupted:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                seen += 1
                if seen == number:
                    raise Interruption
            return trace

        left, right = socket.socketpair()
        source: Any = right
        if receive is aio.Channel.recv:
            source = aio.Channel(right)
        right.setblocking(False)
        watched = source.fileno()
        fds = [0] if source is right else []
        sys._getframe().f_trace_opcodes = True
        sys.settrace(trace)
        try:
            task = asyncio.create_task(receive(source))
            await pause(loop)
            socket.send_fds(left, [one(b"x")], fds)
            for _ in range(5):
                await pause(loop)
            source.close()
        except Interruption:
            pass
        finally:
            sys.settrace(None)
        task.cancel()
        await asyncio.wait([task])
        if fds and not task.cancelled() and task.exception() is None:
            fdpass_c.close_fds(task.result()[1])
        if source.fileno() >= 0:
            task = asyncio.create_task(receive(source))
            await pause(loop)
            left.sendall(one(b"x"))
            await asyncio.wait_for(task, 10)
            source.close()
        left.close()
        assert not asyncio.get_running_loop().remove_reader(watched), number
        return seen

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        for number in range(1, await interrupt_before(0) + 1):
            await interrupt_before(number)

    run(loop, test)


@pytest.mark.untraced
@pytest.mark.skipif(sys.version_info < (3, 11), reason="breaks asyncio.run itself")
@every_loop
def test_keyboard_interrupt(loop: str) -> None:
    """KeyboardInterrupt at random moments ends the loop and leaks nothing."""

    async def test() -> None:
        # Not earlier: on a busy machine the time could pass before the loop runs.
        signal.setitimer(signal.ITIMER_REAL, 0.03 + rng.random() * 0.01)
        left, right = make_pair()
        async with left, right, Group(loop) as group:
            group.start(send, left)
            while True:
                (await right.recv_many()).close()

    async def send(channel: aio.Channel) -> None:
        while True:
            await channel.send_many([b"x" * 100] * 300, [0] * 300)

    def interrupt(_signum: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGINT)

    rng = random.Random(3)
    # A suite in the background may have been started with SIGINT ignored.
    sigint = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with warnings.catch_warnings():
            # A message that is interrupted on its way to the caller is closed as it is dropped.
            warnings.simplefilter("ignore", ResourceWarning)
            if sys.implementation.name == "pypy":  # Even between a coroutine's call and its await.
                warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            for _ in range(20):
                with pytest.raises(BaseException) as caught:  # noqa: PT011
                    run(loop, test)
                assert is_interrupt(caught.value)
                del caught  # Its traceback may have a batch whose close() was interrupted.
                gc.collect()
            for _ in range(9):  # Each of PyPy's frees one of the coroutines that await each other.
                gc.collect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, sigint)


def is_interrupt(error: BaseException) -> bool:
    """Whether it is a KeyboardInterrupt, or a group with one."""
    parts = getattr(error, "exceptions", ())
    return isinstance(error, KeyboardInterrupt) or any(map(is_interrupt, parts))
