"""fdpass_c.aio.Channel passes what the blocking channel passes, and to it."""

import socket
import threading

import pytest

import fdpass_c
from fdpass_c import PeerClosedError, aio
from support.aio_channels import make_pair
from support.descriptors import identity
from support.loops import Group, both_backends, loops_and_kinds, run
from support.messages import Message, take, take_batch
from support.tables import many_allowed

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


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
