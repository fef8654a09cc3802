"""The memory that a receive leaves for the next one is little, however many ran at one time."""

import gc
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fdpass_c
from fdpass_c import batches, messages, scratch
from fdpass_c._native import ffi
from support.channels import channels
from support.sockets import Pair
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


def _run_short_of_memory(receive: Callable[[], object], number: int) -> bool:
    """Returns whether the number-th allocation was one of receive, and failed."""
    testcapi: Any = pytest.importorskip("_testcapi")
    gc.collect()  # CPython keeps tuples for later ones, too.
    testcapi.set_nomemory(number, number + 1)
    try:
        taken = (receive, number), (number, receive)  # What that call has left.
        taken[0][0]()
    except MemoryError:
        return True
    finally:
        testcapi.remove_mem_hooks()
    return False


def _look_for_doubles(
    send: Callable[[], object], receive: Callable[[], object], spare: list[Any]
) -> None:
    failed = 0
    for number in range(1, 60):
        send()
        failed += _run_short_of_memory(receive, number)
        assert len({*map(id, spare)}) == len(spare)
    assert failed > 5


short_of_memory = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11),
    reason="with CPython's own means; others fail in their own code too",
)


@short_of_memory
@pytest.mark.untraced
@pytest.mark.thread_unsafe
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("receive", "spare"),
    [
        (lambda sock: fdpass_c.recv_fds(sock, 10, 0), messages._idle),
        (lambda sock: fdpass_c.recv_fd(sock)[1].close(), batches._idle),
        (lambda sock: fdpass_c.recv_many(sock).close(), batches._idle),
    ],
    ids=["recv_fds", "recv_fd", "recv_many"],
)
def test_memory_for_plain_messages_is_kept_once(
    receive: Callable[[socket.socket], object], spare: list[Any], datagram: Pair, file: int
) -> None:
    """Where Python finds no memory, what was received into is not kept twice, for two receives."""
    _look_for_doubles(
        lambda: fdpass_c.send_fds(datagram[0], [b"x"], [file]),
        lambda: receive(datagram[1]),
        spare,
    )


@short_of_memory
@pytest.mark.untraced
@pytest.mark.thread_unsafe
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "receive",
    [lambda channel: channel.recv()[1].close(), lambda channel: channel.recv_many(1).close()],
    ids=["recv", "recv_many"],
)
def test_memory_of_a_channel_is_kept_once(
    receive: Callable[[fdpass_c.Channel], object], file: int
) -> None:
    """Nor that of a channel."""
    with channels() as (sender, receiver):
        _look_for_doubles(
            lambda: sender.send(b"x", [file]), lambda: receive(receiver), scratch.spare
        )
