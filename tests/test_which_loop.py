"""fdpass_c.aio waits in the event loop that runs its caller, where there are two."""

import asyncio
import subprocess
import sys

import pytest

from fdpass_c import aio
from support.loops import pause, run
from support.messages import take

pytestmark = pytest.mark.thread_unsafe


async def pass_messages(loop: str) -> str:
    """Sends and receives in that loop, with waiting."""
    left, right = aio.Channel.pair()

    async def send_later() -> None:
        await pause(loop)
        await left.send(b"x" * 1_000_000)

    async with left, right:
        for _ in range(5):
            await left.send(b"there")
            assert take(await right.recv())[0] == b"there"
        if loop == "trio":
            import trio

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_later)
                assert len(take(await right.recv())[0]) == 1_000_000
        else:
            task = asyncio.create_task(send_later())
            assert len(take(await right.recv())[0]) == 1_000_000
            await task
    return loop


def test_trio_as_the_guest() -> None:
    """A run of trio that is the guest of asyncio's loop: tasks of both pass messages in turn."""
    trio = pytest.importorskip("trio")

    async def test() -> None:
        host = asyncio.get_running_loop()
        outcome: asyncio.Future[object] = host.create_future()
        trio.lowlevel.start_guest_run(
            pass_messages,
            "trio",
            run_sync_soon_threadsafe=host.call_soon_threadsafe,
            done_callback=outcome.set_result,
        )
        while not outcome.done():
            assert await pass_messages("asyncio") == "asyncio"
        assert outcome.result().unwrap() == "trio"  # type: ignore[attr-defined]

    run("asyncio", test)


def test_trio_inside_of_a_task() -> None:
    """A run of trio inside of a task of asyncio's, as in a notebook."""
    pytest.importorskip("trio")

    async def test() -> None:
        assert await pass_messages("asyncio") == "asyncio"
        assert run("trio", pass_messages, "trio") == "trio"
        assert await pass_messages("asyncio") == "asyncio"

    run("asyncio", test)


def test_made_in_a_callback_of_trio() -> None:
    """A channel may be made and closed where trio runs no task, and tasks use it then."""
    pytest.importorskip("trio")
    import trio

    made: list[aio.Channel] = []

    class Instrument(trio.abc.Instrument):
        def before_io_wait(self, _timeout: float) -> None:
            if not made:
                made.extend(aio.Channel.pair())

    async def test() -> None:
        token = trio.lowlevel.current_trio_token()
        trio.lowlevel.add_instrument(Instrument())
        while not made:
            await pause("trio")
        left, right = made
        await left.send(b"x")
        assert take(await right.recv())[0] == b"x"
        token.run_sync_soon(left.close)
        while not left.closed:
            await pause("trio")
        right.close()

    run("trio", test)


_IMPORTING = """
import asyncio, sys
from fdpass_c import aio

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "trio._core":
            asyncio.run(pass_one())

async def pass_one():
    left, right = aio.Channel.pair()
    async with left, right:
        await left.send(b"while it is imported")
        print((await right.recv())[0].decode())

sys.meta_path.insert(0, Finder())
import trio
"""


def test_while_trio_is_imported() -> None:
    """asyncio's loop finds itself while another thread is importing trio."""
    pytest.importorskip("trio")
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTING], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout) == ("", "while it is imported\n")
