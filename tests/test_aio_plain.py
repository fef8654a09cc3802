"""The plain functions of fdpass_c.aio, under every event loop."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, aio
from support.aio_channels import is_cancelled, make_pair
from support.descriptors import identity
from support.loops import Group, both_backends, every_loop, loops_and_kinds, pause, run
from support.marks import linux_only
from support.messages import Message, take, take_batch
from support.sockets import fill
from support.tables import many_allowed
from support.threads import beside

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


@every_loop
def test_plain_functions(loop: str, file: int) -> None:
    """The plain functions wait over a non-blocking socket, also where two tasks share it."""

    async def test() -> None:
        left, right = socket.socketpair()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        for sock in (left, right):
            sock.setblocking(False)
        with left, right:
            async with Group(loop) as group:
                receiving = [await group.started(aio.recv_fds, right, 10, 1) for _ in range(2)]
                for data in (b"one", b"two"):
                    assert await aio.send_fds(left, [data], [file]) == 3
                for task, data in zip(receiving, [b"one", b"two"], strict=True):
                    result = (await task.wait()).result
                    assert result[0] == data
                    fdpass_c.close_fds(result[1])
                sending = group.start(aio.send_fd, left, file, b"d" * 100_000)
                data, fds = await aio.recv_fd(right, 100_000)
                fds.close()
                while len(data) < 100_000:
                    data += (await aio.recv_fds(right, 100_000, 0))[0]
                assert data == b"d" * 100_000
                await sending.wait()
                sending = group.start(aio.send_many, left, [b"m"] * 1000, [file] * 1000)
                count = 0
                while count < 1000:
                    batch = await aio.recv_many(right)
                    count += len(batch)
                    batch.close()
                assert (await sending.wait()).result == 1000

    with many_allowed(4096):
        run(loop, test)


@both_backends
def test_plain_progress(loop: str, file: int) -> None:
    """A cancelled send_many says how far it came, and goes on from there."""

    async def test() -> None:
        left, right = socket.socketpair()
        for sock in (left, right):
            sock.setblocking(False)
        with left, right:
            async with Group(loop) as group:
                payloads = [b"%d" % number for number in range(2000)]
                call = (aio.send_many, left, payloads, [file] * 2000)
                sending = await group.started(*call)
                sending.cancel()
                await sending.wait()
                assert is_cancelled(sending.error)
                progress = sending.progress
                assert 0 < progress.messages < 2000

                async def go_on() -> int:
                    return await aio.send_many(*call[1:], start=progress)

                going_on = group.start(go_on)
                received: list[bytes] = []
                while len(received) < 2000:
                    batch = await aio.recv_many(right)
                    received += batch.payloads
                    batch.close()
                assert received == payloads
                assert (await going_on.wait()).result == 2000

    with many_allowed(4096):
        run(loop, test)


@linux_only
@every_loop
def test_to_an_address_that_takes_no_more(loop: str, file: int) -> None:
    """send_fds with an address waits for room in the receiver's queue without trying all the time,
    and the datagrams of several tasks come in the order of their calls."""
    address = f"\0fdpass_c test {os.getpid()}"
    tries = 0

    class Counted:
        def fileno(self) -> int:
            nonlocal tries
            tries += 1
            return file

    async def test() -> None:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as right,
        ):
            left.setblocking(False)
            right.setblocking(False)
            right.bind(address)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += fdpass_c.send_fds(left, [b"x"], [file], 0, address)
            async with Group(loop) as group:
                for data in (b"first", b"second"):
                    await group.started(aio.send_fds, left, [data], [Counted()], 0, address)
                await pause(loop, 0.3)
                assert tries < 20
                received = [take(await aio.recv_fd(right))[0] for _ in range(sent + 2)]
            assert received == [b"x"] * sent + [b"first", b"second"]

    run(loop, test)


@both_backends
def test_to_an_address_while_another_task_receives(loop: str, file: int, tmp_path: Path) -> None:
    """A task that waits for a message on the same socket does not hold up send_fds."""
    address = str(tmp_path / "socket")

    async def test() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(address)
            async with Group(loop) as group:
                receiving = await group.started(aio.recv_fd, sock)
                sending = await group.started(aio.send_fds, sock, [b"x"], [file], 0, address)
                assert sending.result == 1
                assert take((await receiving.wait()).result) == (b"x", [identity(file)])

    run(loop, test)


@every_loop
def test_plain_functions_beside_the_loop_s_own(loop: str, file: int) -> None:
    """A task that receives from a socket by the loop's own means is left alone by another one that
    sends a descriptor through it, with and without waiting."""

    async def receive(sock: socket.socket) -> bytes:
        if loop != "trio":
            return await asyncio.get_running_loop().sock_recv(sock, 10)
        import trio

        data = await trio.socket.from_stdlib_socket(sock).recv(10)
        assert isinstance(data, bytes)
        return data

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair(small=True))
        with left, right:
            async with Group(loop) as group:
                receiving = await group.started(receive, left)
                sending = await group.started(aio.send_fd, left, file, b"d" * 100_000)
                assert not sending.done
                while not sending.done:
                    fdpass_c.close_fds((await aio.recv_fds(right, 100_000, 1))[1])
                await aio.send_fd(left, file)
                right.send(b"answer")
                assert (await receiving.wait()).result == b"answer"

    run(loop, test)


@loops_and_kinds
def test_plain_batch_is_read_once(loop: str, kind: socket.SocketKind, file: int) -> None:
    """send_many reads its arguments once, however often it waits: iterators give each message its
    descriptors, and a long batch takes time in proportion."""
    read = 0

    class Fds(list[int]):
        def __iter__(self) -> Iterator[int]:
            nonlocal read
            read += 1
            return super().__iter__()

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair(kind, small=True))
        rows: list[Any] = [iter([file]) if at % 2 else Fds([file]) for at in range(500)]
        with left, right:
            async with Group(loop) as group:
                sending = await group.started(aio.send_many, left, [b"m"] * 500, rows)
                assert not sending.done
                received: list[Message] = []
                while sending.error is None and len(received) < 500:
                    received += take_batch(await aio.recv_many(right))
                    assert all(fds for _, fds in received)
                assert (await sending.wait()).result == 500
        assert received == [(b"m", [identity(file)])] * 500
        assert read == 250

    with many_allowed(4096):
        run(loop, test)


@both_backends
def test_plain_message_is_read_once(loop: str, file: int) -> None:
    """send_fds reads iterators once, although it tries again after it has waited."""

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair(small=True))
        with left, right:
            with contextlib.suppress(BlockingIOError):
                while True:
                    left.send(bytes(1000))
            async with Group(loop) as group:
                sending = await group.started(aio.send_fds, left, iter([b"end"]), iter([file]))
                assert not sending.done
                data = b""
                fds: list[int] = []
                while not fds:
                    data, fds, _, _ = await aio.recv_fds(right, 100_000, 1)
                assert data == b"end"
                assert [identity(fd) for fd in fds] == [identity(file)]
                fdpass_c.close_fds(fds)
                assert (await sending.wait()).result == 3

    run(loop, test)


def test_plain_functions_in_two_loops() -> None:
    """Tasks of two loops, in two threads, may receive from one socket at once."""

    async def test() -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        right.setblocking(False)
        with left, right:
            receives = [
                asyncio.wrap_future(
                    asyncio.run_coroutine_threadsafe(aio.recv_fds(right, 10, 1), other)
                ),
                asyncio.create_task(aio.recv_fds(right, 10, 1)),
            ]
            await asyncio.sleep(0.01)
            left.send(b"x")
            left.send(b"x")
            assert [received[0] for received in await asyncio.gather(*receives)] == [b"x"] * 2

    other = asyncio.new_event_loop()
    with beside(other.run_forever):
        try:
            run("asyncio", test)
        finally:
            other.call_soon_threadsafe(other.stop)
    other.close()


def test_plain_functions_keep_no_loop() -> None:
    """A loop that has ended is not kept, although a call of a plain function has waited in it."""

    async def test() -> "weakref.ref[asyncio.AbstractEventLoop]":
        left, right = socket.socketpair()
        with left, right:
            right.setblocking(False)
            receiving = asyncio.create_task(aio.recv_fds(right, 10, 1))
            await asyncio.sleep(0.001)
            left.send(b"x")
            assert (await receiving)[0] == b"x"
        return weakref.ref(asyncio.get_running_loop())

    ended = run("asyncio", test)
    gc.collect()
    assert ended() is None


@both_backends
def test_plain_functions_wait(loop: str, file: int, tmp_path: Path) -> None:
    """While they wait, for messages or for room, the loop has nothing to do; nor has it while a
    listener waits."""
    anyio = pytest.importorskip("anyio")

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair(small=True))
        async with Group(loop) as group, aio.Listener(tmp_path / "socket") as listener:
            with left, right:
                sending = group.start(aio.send_fd, left, file, bytes(100_000))
                receiving = group.start(aio.recv_fd, left)
                accepting = group.start(listener.accept)
                await anyio.wait_all_tasks_blocked()
                assert not any(task.done for task in (sending, receiving, accepting))
                while not sending.done:
                    fdpass_c.close_fds((await aio.recv_fds(right, 100_000, 1))[1])
                await aio.send_fd(right, file)
                take((await receiving.wait()).result)
            with Channel.connect(tmp_path / "socket"):
                (await accepting.wait()).result.close()

    run(loop, test)


@both_backends
def test_plain_functions_on_a_descriptor_that_waits(loop: str, file: int) -> None:
    """The loop goes on where another process, which shares the socket, has made it blocking after
    the caller has made it non-blocking."""

    async def test(call: Callable[[socket.socket], Any], sends: bool) -> None:
        left, right = (channel.detach() for channel in make_pair(small=True))
        with left, right:
            if sends:
                fill(left)
            os.set_blocking(left.fileno(), True)
            async with Group(loop) as group:
                task = await group.started(call, left)
                assert not task.done, task.error
                task.cancel()

    sends: list[Callable[[socket.socket], Any]] = [
        lambda sock: aio.send_fds(sock, [b"x"], [file]),
        lambda sock: aio.send_fd(sock, file),
        lambda sock: aio.send_many(sock, [b"x"] * 2, [file] * 2),
        lambda sock: aio.send_many(sock, [b"x"] * 100, [file] * 100),
    ]
    others: list[Callable[[socket.socket], Any]] = [
        lambda sock: aio.send_fd(sock, file, bytes(100_000)),
        lambda sock: aio.recv_fds(sock, 10, 1),
        lambda sock: aio.recv_fds(sock, 1_000_000, 1),
        lambda sock: aio.recv_fd(sock),
        lambda sock: aio.recv_many(sock),
        lambda sock: aio.recv_many(sock, 1000, 1_000_000),
    ]
    for call in sends + others:
        run(loop, test, call, call in sends)


def test_a_plain_send_is_woken_by_the_loop(file: int) -> None:
    """Without an address, send_fds does not try now and then: the loop watches the socket."""

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair(small=True))
        with left, right:
            fill(left)
            sending = asyncio.create_task(aio.send_fds(left, [b"x"], [file]))
            await asyncio.sleep(0.001)
            assert asyncio.get_running_loop().remove_writer(left.fileno())
            sending.cancel()
            await asyncio.wait([sending])

    run("asyncio", test)


@linux_only
def test_plain_functions_pass_flags_on(file: int) -> None:
    """What is received with MSG_PEEK stays, and a packet refuses MSG_OOB."""
    refused = pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP))

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair(socket.SOCK_SEQPACKET))
        with left, right:
            assert await aio.send_many(left, [b"1", b"2"], [file] * 2) == 2
            for flags in (socket.MSG_PEEK, 0):
                data, fds, _, _ = await aio.recv_fds(right, 10, 1, flags)
                fdpass_c.close_fds(fds)
                assert data == b"1"
            for flags in (socket.MSG_PEEK, 0):
                batch = await aio.recv_many(right, flags=flags)
                assert take_batch(batch) == [(b"2", [identity(file)])]
            with refused:
                await aio.send_fds(left, [b"x"], [file], socket.MSG_OOB)
            for count in (2, 100):
                with refused:
                    await aio.send_many(left, [b"x"] * count, [file] * count, socket.MSG_OOB)

    run("asyncio", test)


@both_backends
def test_send_fd_that_is_cancelled_after_its_first_bytes(loop: str, file: int) -> None:
    """The error says how many bytes were sent, and the descriptor went with the first of them."""

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair(small=True))
        with right:
            with left:
                async with Group(loop) as group:
                    sending = await group.started(aio.send_fd, left, file, bytes(100_000))
                    sending.cancel()
                    await sending.wait()
            data, fds = fdpass_c.recv_fd(right, 100_000)
            assert take((data, fds))[1] == [identity(file)]
            count = len(data)
            while data := right.recv(100_000):
                count += len(data)
            assert is_cancelled(sending.error)
            assert getattr(sending.error, "characters_written", 0) == count < 100_000

    run(loop, test)


@both_backends
def test_plain_functions_need_a_non_blocking_socket(loop: str) -> None:
    """A socket that would keep the loop waiting is a ValueError."""

    async def test() -> None:
        left, right = socket.socketpair()
        with left, right:
            for timeout in (None, 5.0):
                right.settimeout(timeout)
                with pytest.raises(ValueError, match="non-blocking"):
                    await aio.recv_fds(right, 1, 1)
            with pytest.raises(ValueError, match="non-blocking"):
                await aio.recv_fds(left.fileno(), 1, 1)

    run(loop, test)


@both_backends
def test_plain_receives_come_in_turn(loop: str) -> None:
    """Tasks that receive from a plain socket get the messages in the order of their calls, whether
    they name it by its object or its number. One that is cancelled before its turn ends no other's.
    """

    async def test() -> None:
        left, right = (channel.detach() for channel in make_pair())
        with left, right:
            async with Group(loop) as group:
                names = [right.fileno(), right, right, right.fileno()]
                tasks = [await group.started(aio.recv_fds, name, 10, 0) for name in names]
                tasks[1].cancel()
                await tasks[1].wait()
                received: list[bytes] = []
                for task in (tasks[0], *tasks[2:]):
                    left.send(b"%d" % len(received))
                    received.append((await task.wait()).result[0])
                assert received == [b"0", b"1", b"2"]

    run(loop, test)


def test_plain_address(tmp_path: Path, file: int) -> None:
    """send_fds reaches the address given."""
    address = str(tmp_path / "socket")

    async def test() -> None:
        assert await aio.send_fds(sender, [b"x"], [file], 0, address) == 1

    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        sender.setblocking(False)
        receiver.bind(address)
        run("asyncio", test)
        assert take(fdpass_c.recv_fd(receiver)) == (b"x", [identity(file)])
