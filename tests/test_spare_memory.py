"""The memory that a receive leaves for the next one is little, however many ran at one time."""

import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fdpass_c
from fdpass_c import batches, messages, scratch
from fdpass_c._native import ffi
from support.threads import beside


class Meanwhile(socket.socket):
    """When it is asked for its timeout, which is while it receives, something else comes first."""

    first: Callable[[], object] | None = None

    def gettimeout(self) -> float | None:
        first, self.first = self.first, None
        if first is not None:
            first()
        return super().gettimeout()


def _recv(sock: Meanwhile) -> None:
    with fdpass_c.Channel(sock) as channel:
        channel.recv()[1].close()


def _recv_many(sock: Meanwhile) -> None:
    with fdpass_c.Channel(sock) as channel:
        channel.recv_many().close()


def _recv_fd(sock: Meanwhile) -> None:
    with pytest.raises(fdpass_c.ProtocolError):
        fdpass_c.recv_fd(sock)


def _nest(receive: Callable[[Meanwhile], object], depth: int) -> None:
    """Receives that many messages, each while the one before it is being received."""
    left, right = socket.socketpair()
    with left, Meanwhile(fileno=right.detach()) as sock:
        sock.settimeout(30)

        def arrive() -> None:
            if depth > 1:
                _nest(receive, depth - 1)
            with fdpass_c.Channel(left.dup()) as ours:
                ours.send(b"x")

        sock.first = arrive
        receive(sock)


@pytest.fixture
def _deep() -> Iterator[None]:
    """Room for the frames of many receives inside each other; mutmut makes three of one."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.thread_unsafe
@pytest.mark.usefixtures("_deep")
@pytest.mark.parametrize(
    ("receive", "spare"),
    [
        (_recv, scratch.spare),
        (_recv_many, scratch.spare),
        (lambda sock: fdpass_c.recv_fds(sock, 100, 1), messages._idle),
        (fdpass_c.recv_many, batches._idle),
        (_recv_fd, batches._idle),
    ],
    ids=["Channel.recv", "Channel.recv_many", "recv_fds", "recv_many", "recv_fd"],
)
def test_many_at_one_time(receive: Callable[[Meanwhile], object], spare: list[Any]) -> None:
    """After 80 receives at one time, the next one that waits leaves memory for few of them."""
    _nest(receive, 80)
    _nest(receive, 1)
    assert len(spare) <= scratch.MOST + 1


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("receive", [_recv, _recv_many])
def test_large_messages(receive: Callable[[Meanwhile], object]) -> None:
    """Memory that is left for the next receive holds no large payload."""
    left, right = socket.socketpair()
    with fdpass_c.Channel(left) as sender, Meanwhile(fileno=right.detach()) as sock:
        sock.settimeout(30)
        with beside(lambda: sender.send(bytes(1_000_000))):
            receive(sock)
    assert all(kept.large == ffi.NULL for kept, _ in scratch.spare)
