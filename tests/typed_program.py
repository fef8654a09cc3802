"""What programs write, for type checkers to read: nobody runs it.

mypy and pyright, both strict, accept each line. Where a line is wrong on purpose, they must find
that, because a comment that ignores nothing is an error too.
"""
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import array
import socket
from pathlib import Path

from typing_extensions import assert_type

import fdpass_c
from fdpass_c import (
    Batch,
    Channel,
    Credentials,
    Descriptors,
    FdpassError,
    Listener,
    Progress,
    TruncatedBatchError,
    aio,
)
from fdpass_c.pool import Pool, Status


def pass_messages(channel: Channel, sock: socket.socket) -> None:
    channel.send(b"payload")
    channel.send(bytearray(3), [sock, 1])
    channel.send(memoryview(b"payload"), (one for one in [sock]))
    channel.send(array.array("i", [1]))
    assert_type(channel.send_many([b"one", b"two"], [sock, sock]), int)
    assert_type(channel.send_many([b"one", b"two"], [[sock], []], start=Progress()), int)
    channel.send_many([b"one", b"two"], [sock, 1])
    channel.send_many([b"one", b"two"], [[1], [sock, 1]])
    channel.send("text")  # type: ignore[arg-type]
    channel.send(b"payload", sock)  # type: ignore[arg-type]
    channel.send(b"payload", ["0"])  # type: ignore[list-item]
    channel.send_many(["text"])  # type: ignore[list-item]
    with channel:
        for payload, fds in channel:
            assert_type(payload, bytes)
            assert_type(fds, Descriptors)
        assert_type(channel.recv(), tuple[bytes, Descriptors])
        assert_type(channel.peer, Credentials)
        assert_type(channel.peer_pidfd(), int | None)
        assert_type(channel.detach(), socket.socket)


def take(channel: Channel) -> None:
    try:
        batch = channel.recv_many(max_messages=10)
    except TruncatedBatchError as error:
        batch = error.batch
    except FdpassError as error:
        assert_type(Progress.of(error), Progress)
        return
    assert_type(batch, Batch)
    assert_type(batch[1:], list[tuple[bytes, list[int]]])
    with batch:
        assert_type(batch[0], tuple[bytes, list[int]])
        assert_type(batch.payloads, list[bytes])
        assert_type(batch.fds, Descriptors)
        assert_type(batch.fds[0], int)
        assert_type(batch.fds.take(0), int)
        batch.payloads = "text"  # type: ignore[assignment]


def listen(path: Path) -> None:
    with Listener(path, allow_uids={0}, max_fds=10) as listener:
        assert_type(listener.accept(), Channel)
        for channel in listener:
            assert_type(channel, Channel)
    assert_type(Listener(socket.socket()).detach(), socket.socket)
    Listener(path, allow_uid={0})  # type: ignore[call-arg]
    Channel.connect(path, timeout="soon")  # type: ignore[arg-type]


def pass_plain_messages(sock: socket.socket) -> None:
    assert_type(fdpass_c.send_fds(sock, [b"payload"], [sock.fileno()]), int)
    payload, numbers, _, _ = fdpass_c.recv_fds(sock, 10, 10)
    assert_type(payload, bytes)
    assert_type(numbers, list[int])
    assert_type(fdpass_c.send_fd(sock, sock), None)
    assert_type(fdpass_c.recv_fd(sock, 10), tuple[bytes, Descriptors])
    assert_type(fdpass_c.send_many(sock, [b"payload"], [1]), int)
    fdpass_c.send_many(sock, [b"one", b"two"], [sock, 1])
    fdpass_c.send_many(sock, [b"one", b"two"], [[1], [sock, 1]])
    assert_type(fdpass_c.recv_many(sock, 10, 10), Batch)
    assert_type(fdpass_c.writev(sock, [b"one", memoryview(b"two")]), int)
    fdpass_c.close_fds([1])
    fdpass_c.send_fd(sock, "0")  # type: ignore[arg-type]
    fdpass_c.writev(sock, ["text"])  # type: ignore[list-item]


async def pass_under_a_loop(path: Path, sock: socket.socket) -> None:
    async with await aio.Channel.connect(path, max_payload=10) as channel:
        await channel.send(b"payload", [0])
        assert_type(await channel.recv(), tuple[bytes, Descriptors])
        assert_type(await channel.recv_many(), Batch)
        async for payload, fds in channel:
            assert_type(payload, bytes)
            assert_type(fds, Descriptors)
        await channel.send_many([b"one", b"two"], [[1], [sock, 1]])
        await aio.send_many(sock, [b"one", b"two"], [[1], [sock, 1]])
        await channel.send("text")  # type: ignore[arg-type]

    async def handle(channel: aio.Channel) -> None:
        await channel.flush()

    async with aio.Listener(path) as listener:
        await listener.serve(handle)


def serve() -> None:
    def handler(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"hello\n")

    async def handler_in_a_loop(sock: socket.socket, _address: object) -> None: ...

    pool = Pool(handler, workers=4)
    assert_type(pool.status(), Status)
    pool.serve("127.0.0.1:8000")
    Pool(handler_in_a_loop, workers=4, capacity=100)
    Pool("module:handler", workers=1)  # type: ignore[arg-type]
