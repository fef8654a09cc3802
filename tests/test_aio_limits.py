"""What an event loop cannot report: full tables, full backlogs, too many descriptors in flight."""

import errno
import logging
import socket
import stat
import time
from logging.handlers import BufferingHandler
from pathlib import Path

import pytest

import fdpass_c
from fdpass_c import Channel, DescriptorTableFullError, Listener, ProtocolError, aio
from support.aio_channels import make_pair
from support.loops import Group, both_backends, pause, run
from support.marks import linux_only
from support.messages import progress_of, take
from support.processes import become_nobody, run_in_child
from support.tables import fill_table, limit_table, table_of
from support.threads import beside

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@linux_only
@both_backends
def test_full_table(loop: str) -> None:
    """A full table raises while a message waits; wait_for_room returns when there are places, and
    the message comes then. Meanwhile the loop has nothing to do."""
    anyio = pytest.importorskip("anyio")

    async def test() -> None:
        left, right = make_pair()
        async with Group(loop) as group, left, right:
            await left.send(b"kept", [0, 0])
            filler = fill_table(1)
            with pytest.raises(DescriptorTableFullError):
                await right.recv()
            waiting = group.start(right.wait_for_room)
            await anyio.wait_all_tasks_blocked()
            await pause(loop, 0.25)
            assert not waiting.done
            fdpass_c.close_fds(filler)
            assert (await waiting.wait()).error is None
            assert len(take(await right.recv())[1]) == 2

    def child() -> None:
        limit_table(100)
        run(loop, test)

    run_in_child(child)


@linux_only
@both_backends
def test_full_table_on_accept(loop: str, tmp_path: Path) -> None:
    """serve waits where accept finds the table full, without using the CPU, and then serves. It
    says so once, however long that lasts."""
    anyio = pytest.importorskip("anyio")
    warned = BufferingHandler(1000)

    async def handle(channel: aio.Channel) -> None:
        async for payload, fds in channel:
            fds.close()
            await channel.send(payload)

    async def test() -> None:
        async with Group(loop) as group, aio.Listener(tmp_path / "socket") as listener:
            serving = group.start(listener.serve, handle)
            client = await aio.Channel.connect(tmp_path / "socket")
            filler = fill_table(0)
            start = time.process_time()
            await client.send(b"hello")
            await pause(loop, 0.3)
            assert time.process_time() - start < 0.2
            await anyio.wait_all_tasks_blocked()
            fdpass_c.close_fds(filler)
            async with client:
                assert take(await client.recv())[0] == b"hello"
            assert [record.levelname for record in warned.buffer] == ["WARNING"]
            listener.close()
            assert (await serving.wait()).error is None

    def child() -> None:
        logging.getLogger("fdpass_c.aio").addHandler(warned)
        limit_table(100)
        run(loop, test)

    run_in_child(child)


@linux_only
@both_backends
def test_too_many_in_flight(loop: str) -> None:
    """A send fails while too many descriptors are in flight. With wait_in_flight it waits until the
    receiver has taken some, and the loop has nothing to do meanwhile."""
    anyio = pytest.importorskip("anyio")

    async def send(sock: socket.socket) -> None:
        async with Group(loop) as group, aio.Channel(sock) as sender:
            with pytest.raises(OSError, match="in flight") as caught:
                await sender.send(b"refused", [0] * 2000)
            assert caught.value.errno == errno.ETOOMANYREFS
            assert progress_of(caught.value) == (0, 0)
            sender.wait_in_flight = True
            assert sender.wait_in_flight
            sending = group.start(sender.send, b"large", [0] * 2000)
            await anyio.wait_all_tasks_blocked()
            assert not sending.done
            waits.send(b"x")
            assert (await sending.wait()).error is None

    def child() -> None:
        become_nobody()
        with table_of(512):
            run(loop, send, left)

    def receive() -> tuple[bytes, int]:
        assert begin.recv(1)
        payload, owner = receiver.recv()
        with owner:
            return payload, len(owner)

    left, right = socket.socketpair()
    waits, begin = socket.socketpair()
    with left, waits, begin, table_of(4500), Channel(right) as receiver:
        with beside(receive, begin) as received:
            run_in_child(child)
        assert received == [(b"large", 2000)]


@both_backends
def test_full_backlog(loop: str, tmp_path: Path) -> None:
    """connect waits for a place in a full backlog. Meanwhile the loop has nothing to do."""
    anyio = pytest.importorskip("anyio")

    async def test() -> None:
        path = tmp_path / "socket"
        async with Group(loop) as group, aio.Listener(path, backlog=1) as listener:
            tasks = [group.start(aio.Channel.connect, path) for _ in range(6)]
            await anyio.wait_all_tasks_blocked()
            assert not all(task.done for task in tasks)
            for _ in tasks:
                (await listener.accept()).close()
            for task in tasks:
                (await task.wait()).result.close()

    run(loop, test)


def test_options_are_passed_on(tmp_path: Path) -> None:
    """A listener's file has the mode given, or 0600; connect passes its options to the channel."""

    async def test() -> None:
        path, other = tmp_path / "socket", tmp_path / "other"
        async with aio.Listener(path, mode=0o640) as listener, aio.Listener(other):
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            assert stat.S_IMODE(other.stat().st_mode) == 0o600
            client = await aio.Channel.connect(path, max_payload=3)
            async with client, await listener.accept() as server:
                await server.send(b"long")
                with pytest.raises(ProtocolError, match="max_payload is 3"):
                    await client.recv()

    run("asyncio", test)


@both_backends
def test_connect_to_nobody(loop: str, tmp_path: Path) -> None:
    """connect raises what the blocking one raises, with the path in it."""

    async def test() -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await aio.Channel.connect(tmp_path / "nobody")
        assert caught.value.filename == str(tmp_path / "nobody")
        path = tmp_path / "socket"
        with Listener(path), pytest.raises(PermissionError, match="not allowed") as refused:
            await aio.Channel.connect(path, allow_uids=[])
        assert refused.value.filename == str(path)

    run(loop, test)
