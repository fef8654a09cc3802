"""A socket closed while a call waits for it: the call ends, and leaves a stranger's alone."""

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, Listener, outcomes, vectors
from support.channels import raw_pair
from support.frames import one
from support.processes import run_in_child
from support.signals import handling, interrupt_main_thread
from support.sockets import Pair, drain, fill
from support.waiting import once_blocked

pytestmark = pytest.mark.thread_unsafe

Operation = Callable[[Any, int], object]

RECEIVES: dict[str, Operation] = {
    "recv_fds": lambda sock, _: fdpass_c.recv_fds(sock, 10, 1),
    "recv_fds, long": lambda sock, _: fdpass_c.recv_fds(sock, 100_000, 1),
    "recv_fd": lambda sock, _: fdpass_c.recv_fd(sock),
    "recv_many": lambda sock, _: fdpass_c.recv_many(sock),
}

SENDS: dict[str, Operation] = {
    "send_fds": lambda sock, fd: fdpass_c.send_fds(sock, [b"x"], [fd]),
    "send_fd": lambda sock, fd: fdpass_c.send_fd(sock, fd),
    "send_many": lambda sock, fd: fdpass_c.send_many(sock, [b"x"], [fd]),
    "send_many, long": lambda sock, fd: fdpass_c.send_many(sock, [bytes(99_999)] * 3, [fd] * 3),
}

LONG: dict[str, Operation] = {
    "send_fd": lambda sock, fd: fdpass_c.send_fd(sock, fd, bytes(3_000_000)),
    "send_many": lambda sock, fd: fdpass_c.send_many(sock, [bytes(99_999)] * 30, [fd] * 30),
    "writev": lambda sock, _: fdpass_c.writev(sock, [bytes(3_000_000)]),
}

CHANNEL_RECEIVES: dict[str, Operation] = {
    "recv": lambda channel, _: channel.recv(),
    "recv_many": lambda channel, _: channel.recv_many(),
}

CHANNEL_SENDS: dict[str, Operation] = {
    "send": lambda channel, fd: channel.send(b"x", [fd]),
    "send, large": lambda channel, fd: channel.send(bytes(300_000), [fd] * 300),
    "send_many": lambda channel, fd: channel.send_many([b"x"], [fd]),
}


def named(*operations: dict[str, Operation]) -> pytest.MarkDecorator:
    """A test for each."""
    together = {name: each for some in operations for name, each in some.items()}
    return pytest.mark.parametrize("operation", together.values(), ids=together)


class Stranger:
    """A connection that gets the number of a socket that a handler closes."""

    def __init__(self, hello: bytes, is_full: bool = False) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.send(hello)
        self.sent = fill(self.ours) if is_full else 0
        self.number = -1

    def replace(self, sock: Any) -> None:
        """Closes sock, and has its number."""
        self.number = sock.fileno()
        sock.close()
        os.dup2(self.ours.fileno(), self.number)

    def is_untouched(self, hello: bytes) -> bool:
        """Nothing was received from it, nor sent to it."""
        with self.ours, self.theirs:
            os.close(self.number)
            return drain(self.ours) == hello and drain(self.theirs) == bytes(self.sent)


@named(RECEIVES, SENDS)
def test_plain(operation: Operation, file: int) -> None:
    """A handler closes the socket: EBADF, and who has its number now notices nothing."""
    for timeout in (None, 1000):
        left, right = socket.socketpair()
        with left, right:
            if operation in SENDS.values():
                fill(left)
            left.settimeout(timeout)
            stranger = Stranger(b"hello")
            with (
                handling(signal.SIGUSR1, partial(stranger.replace, left)),
                once_blocked(left.fileno(), interrupt_main_thread),
                pytest.raises(OSError, match=os.strerror(errno.EBADF)),
            ):
                operation(left, file)
            assert stranger.is_untouched(b"hello")


@named(RECEIVES, SENDS)
def test_a_stranger_that_is_not_ready(operation: Operation, file: int) -> None:
    """The same at once, not when time is over, though the stranger has nothing to receive, and no
    room to send."""
    left, right = socket.socketpair()
    with left, right:
        if operation in SENDS.values():
            fill(left)
        left.settimeout(1000)
        stranger = Stranger(b"", is_full=True)
        with (
            handling(signal.SIGUSR1, partial(stranger.replace, left)),
            once_blocked(left.fileno(), interrupt_main_thread),
            pytest.raises(OSError, match=os.strerror(errno.EBADF)),
        ):
            operation(left, file)
        assert stranger.is_untouched(b"")


@pytest.mark.parametrize("timeout", [None, 1000])
@named(LONG)
def test_after_a_part(operation: Operation, timeout: float | None, stream: Pair, file: int) -> None:
    """The same after a part was sent: the rest does not go to who has the number now."""
    stream[0].settimeout(timeout)
    stranger = Stranger(b"hello")
    stranger.ours.setblocking(False)
    with (
        handling(signal.SIGUSR1, lambda: stranger.replace(stream[0])),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
        pytest.raises(OSError, match=os.strerror(errno.EBADF)),
    ):
        operation(stream[0], file)
    assert stream[1].recv(1)
    assert stranger.is_untouched(b"hello")


@contextmanager
def once_over(function: Callable[..., object], action: Callable[[], object]) -> Iterator[None]:
    """Runs action as the first call of function ends, as a signal handler may run there."""
    actions = [action]

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code is not function.__code__:
            return None
        if event == "return" and actions:
            actions.pop()()
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


@pytest.mark.untraced
def test_between_two_writes(stream: Pair) -> None:
    """The same where the handler runs when one write of several is over."""
    stranger = Stranger(b"hello")
    with (
        once_over(vectors._write_part, lambda: stranger.replace(stream[0])),
        pytest.raises(OSError, match=os.strerror(errno.EBADF)) as raised,
    ):
        fdpass_c.writev(stream[0], [b"x"] * 3000)
    assert raised.value.characters_written == 1024  # type: ignore[attr-defined]
    assert stranger.is_untouched(b"hello")


@pytest.mark.untraced
def test_between_two_receives(file: int) -> None:
    """The same where it runs when a part of a batch is here, which is returned."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        fdpass_c.send_many(left, [b"x"] * 100, [file] * 100)
        stranger = Stranger(b"hello")
        with once_over(outcomes.read_messages, lambda: stranger.replace(right)):
            batch = fdpass_c.recv_many(right, 200)
        with batch:
            assert [*batch.payloads] == [b"x"] * 64
        assert stranger.is_untouched(b"hello")


class ClosedMeanwhile(socket.socket):
    """Is closed when a call has found that it must wait, as another thread may do."""

    def gettimeout(self) -> float | None:
        timeout = super().gettimeout()
        self.close()
        return timeout


@named(RECEIVES, SENDS)
def test_closed_before_it_waits(operation: Operation, file: int) -> None:
    """A socket that is closed just before its call waits is EBADF."""
    left, right = socket.socketpair()
    with right, ClosedMeanwhile(fileno=left.detach()) as sock:
        if operation in SENDS.values():
            fill(sock)
        sock.settimeout(1000)
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            operation(sock, file)


def fill_channel(channel: Channel) -> None:
    """Sends until it would wait."""
    before = channel.gettimeout()
    channel.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            channel.send(bytes(1000))
    channel.settimeout(before)


@named(CHANNEL_RECEIVES, CHANNEL_SENDS)
def test_channel(operation: Operation, file: int) -> None:
    """The same for a Channel that a handler closes."""
    hello = one(b"hello")
    for timeout in (None, 1000):
        with raw_pair() as (_, channel):
            channel.settimeout(timeout)
            if operation in CHANNEL_SENDS.values():
                fill_channel(channel)
            stranger = Stranger(hello)
            with (
                handling(signal.SIGUSR1, partial(stranger.replace, channel)),
                once_blocked(channel.fileno(), interrupt_main_thread),
                pytest.raises(OSError, match=os.strerror(errno.EBADF)),
            ):
                operation(channel, file)
            assert stranger.is_untouched(hello)


@named(CHANNEL_RECEIVES, CHANNEL_SENDS)
def test_channel_whose_stranger_is_not_ready(operation: Operation, file: int) -> None:
    """The same at once, not when time is over."""
    with raw_pair() as (_, channel):
        channel.settimeout(1000)
        if operation in CHANNEL_SENDS.values():
            fill_channel(channel)
        stranger = Stranger(b"", is_full=True)
        with (
            handling(signal.SIGUSR1, partial(stranger.replace, channel)),
            once_blocked(channel.fileno(), interrupt_main_thread),
            pytest.raises(OSError, match=os.strerror(errno.EBADF)),
        ):
            operation(channel, file)
        assert stranger.is_untouched(b"")


def test_listener_whose_stranger_is_not_ready(tmp_path: Path) -> None:
    """The same for a Listener."""
    with Listener(tmp_path / "socket") as listener:
        listener.settimeout(1000)
        stranger = Stranger(b"")
        with (
            handling(signal.SIGUSR1, partial(stranger.replace, listener)),
            once_blocked(listener.fileno(), interrupt_main_thread),
            pytest.raises(OSError, match=os.strerror(errno.EBADF)),
        ):
            listener.accept()
        assert stranger.is_untouched(b"")


@named(CHANNEL_RECEIVES, CHANNEL_SENDS)
def test_closed_by_another_thread(operation: Operation, file: int) -> None:
    """A thread that waits in a call of a channel is woken where another one closes it."""
    for timeout in (None, 1000):
        with raw_pair() as (_, channel):
            channel.settimeout(timeout)
            if operation in CHANNEL_SENDS.values():
                fill_channel(channel)
            with (
                once_blocked(channel.fileno(), channel.close),
                pytest.raises(OSError, match=os.strerror(errno.EBADF)),
            ):
                operation(channel, file)


@pytest.mark.parametrize("timeout", [None, 1000])
def test_child_closes_its_copy(timeout: float | None) -> None:
    """A forked child closes its copy of a channel at once, though the parent waits in its own."""
    with raw_pair() as (peer, channel):
        channel.settimeout(timeout)

        def fork_and_answer() -> None:
            run_in_child(channel.close)
            peer.send(one(b"undisturbed"))

        with once_blocked(channel.fileno(), fork_and_answer):
            assert channel.recv()[0] == b"undisturbed"
