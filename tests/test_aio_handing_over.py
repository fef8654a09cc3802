"""Sockets that leave a channel of fdpass_c.aio, and directions that are shut down."""

import errno
import socket

import pytest

from fdpass_c import PeerClosedError
from support.aio_channels import make_pair
from support.loops import Group, both_backends, every_loop, loops_and_kinds, run
from support.messages import take

pytestmark = [pytest.mark.thread_unsafe, pytest.mark.usefixtures("warm_loops")]


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
