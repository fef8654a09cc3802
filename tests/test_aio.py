"""fdpass_c.aio: what the blocking channel promises holds under every event loop."""

import asyncio
import contextlib
import contextvars
import errno
import gc
import importlib.util
import logging
import os
import random
import signal
import socket
import stat
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from inspect import isawaitable
from logging.handlers import BufferingHandler
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fdpass_c
from fdpass_c import (
    Channel,
    DescriptorTableFullError,
    Listener,
    PeerClosedError,
    Progress,
    ProtocolError,
    aio,
)
from fdpass_c.aio import asyncio_loop
from fdpass_c.aio.directions import growing_pauses
from support.descriptors import identity
from support.frames import first, one
from support.loops import (
    Group,
    asyncio_loops,
    both_backends,
    every_loop,
    loops_and_kinds,
    new_loop,
    pause,
    run,
)
from support.marks import linux_only
from support.messages import Message, progress_of, take, take_batch
from support.processes import become_nobody, run_in_child
from support.sockets import fill
from support.tables import fill_table, limit_table, many_allowed, table_of
from support.threads import beside

pytestmark = pytest.mark.thread_unsafe


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """libuv opens a pipe for signals once in a process."""
    if importlib.util.find_spec("uvloop"):
        run("uvloop", asyncio.sleep, 0)


def make_pair(
    kind: socket.SocketKind = socket.SOCK_STREAM, small: bool = False
) -> tuple[aio.Channel, aio.Channel]:
    """A sender, perhaps with a small buffer, and a receiver."""
    try:
        left, right = socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        pytest.skip(f"no {kind.name}: {error}")
    if small:
        # A packet has to fit into it.
        size = 4608 if kind == socket.SOCK_STREAM else 70_000
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return aio.Channel(left), aio.Channel(right)


async def receive_all(channel: aio.Channel) -> list[bytes]:
    """The payloads of all that comes until the peer closes."""
    received = []
    async for payload, fds in channel:
        fds.close()
        received.append(payload)
    return received


def is_cancelled(error: BaseException | None) -> bool:
    if parts := getattr(error, "exceptions", ()):
        return all(map(is_cancelled, parts))
    return type(error).__name__ in ("CancelledError", "Cancelled")


# -- the same as blocking --------------------------------------------------------------------------


@loops_and_kinds
def test_whole(loop: str, kind: socket.SocketKind, file: int) -> None:
    """Messages of all sizes arrive whole and in order, with their descriptors, each way of sending
    and each way of receiving."""
    payloads = [b"", b"x", b"y" * 70_000, b"z" * 300_000, b"end"]

    async def test() -> None:
        left, right = make_pair(kind)
        async with Group(loop) as group, left, right:
            sending = group.start(send_all, left)
            for _ in range(2):
                for payload in payloads:
                    assert take(await right.recv()) == (payload, [identity(file)] * 2)
            many: list[Message] = []
            while len(many) < 5000:
                many += take_batch(await right.recv_many())
            assert many == [(b"%d" % number, [identity(file)]) for number in range(5000)]
            assert (await sending.wait()).error is None
            assert sending.result == 5000
            left.close()
            with pytest.raises(PeerClosedError):
                await right.recv()

    async def send_all(channel: aio.Channel) -> int:
        for payload in payloads:
            await channel.send(payload, [file, file])
        await channel.send_many(payloads, [[file, file]] * len(payloads))
        return await channel.send_many([b"%d" % number for number in range(5000)], [file] * 5000)

    with many_allowed(20_000):
        run(loop, test)


@both_backends
def test_with_a_blocking_peer(loop: str, file: int) -> None:
    """A blocking Channel in a thread understands it, and the other way round."""

    def answer(peer: fdpass_c.Channel) -> None:
        with peer:
            for payload, fds in peer:
                with fds:
                    peer.send(payload, fds)

    async def test(sock: socket.socket) -> None:
        async with aio.Channel(sock) as channel:
            for size in (0, 10, 100_000):
                await channel.send(b"p" * size, [file])
                assert take(await channel.recv()) == (b"p" * size, [identity(file)])

    left, right = socket.socketpair()
    thread = threading.Thread(target=answer, args=[fdpass_c.Channel(right)])
    thread.start()
    run(loop, test, left)
    thread.join()


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


# -- turns and cancellation ------------------------------------------------------------------------


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


# -- closing ---------------------------------------------------------------------------------------


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


# -- limits ----------------------------------------------------------------------------------------


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


# -- fairness and scale ----------------------------------------------------------------------------


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


# -- processes and signals -------------------------------------------------------------------------


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


# -- handing over ----------------------------------------------------------------------------------


@every_loop
def test_detach(loop: str, file: int) -> None:
    """The socket is the caller's, nobody watches it, and who waited is woken."""

    async def main() -> None:
        left, right = make_pair()
        async with left, Group(loop) as group:
            waiting = await group.started(right.recv)
            with right.detach() as sock:
                assert right.closed
                await waiting.wait()
                await left.send(b"for the socket", [file])
                assert b"for the socket" in sock.recv(1000)
        assert isinstance(waiting.error, OSError)
        assert waiting.error.errno == errno.EBADF

    run(loop, main)


@loops_and_kinds
def test_detach_would_cut_a_send(loop: str, kind: socket.SocketKind) -> None:
    """A message that another task is sending keeps the socket where it is, and arrives whole."""

    async def main() -> None:
        left, right = make_pair(kind, small=True)
        async with right, Group(loop) as group:
            sending = await group.started(left.send, bytes(200_000))
            with pytest.raises(ValueError, match="lost"):
                left.detach()
            assert len(take(await right.recv())[0]) == 200_000
            assert (await sending.wait()).error is None
            left.detach().close()

    run(loop, main)


@both_backends
def test_shutdown(loop: str) -> None:
    """The peer learns that nothing more comes, and may answer."""

    async def main() -> None:
        left, right = make_pair()
        async with left, right:
            left.shutdown(socket.SHUT_WR)
            with pytest.raises(PeerClosedError):
                await right.recv()
            await right.send(b"answer")
            assert take(await left.recv()) == (b"answer", [])

    run(loop, main)


@every_loop
def test_shutdown_wakes(loop: str) -> None:
    """Who waits for room or for messages learns that its direction was ended, whatever the peer
    does."""

    async def main() -> None:
        left, right = make_pair(small=True)
        async with Group(loop) as group:
            sending = await group.started(left.send, bytes(200_000))
            receiving = await group.started(left.recv)
            left.shutdown(socket.SHUT_WR)
            await group.turn(5)
            assert isinstance(sending.error, BrokenPipeError)
            assert not receiving.done
            left.shutdown(socket.SHUT_RD)
            await group.turn(5)
            assert isinstance(receiving.error, PeerClosedError)
        left.close()
        right.close()

    run(loop, main)


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
