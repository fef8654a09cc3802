"""A signal handler's exception ends a call as it is, even of a type that the call expects."""

import errno
import itertools
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

import fdpass_c
from fdpass_c import Channel, Listener, batches, close_fds, unix, waiting
from fdpass_c.testing import hostile_peers
from support.channels import full_backlog
from support.descriptors import list_fds
from support.marks import linux_only
from support.signals import handling, interrupt_call, interrupt_main_thread
from support.sockets import Pair, drain, fill
from support.waiting import once_blocked

pytestmark = pytest.mark.thread_unsafe

KINDS = [BlockingIOError, TimeoutError, ConnectionResetError, PermissionError]
timeouts = pytest.mark.parametrize("timeout", [None, 1000.0])
kinds = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def raising(fd: int, kind: type[OSError]) -> Iterator[None]:
    """Expects the very error, unchanged, that a handler raises once the block waits for fd."""
    error = kind(errno.EAGAIN, "of the handler")

    def handler() -> None:
        raise error

    with (
        handling(signal.SIGUSR1, handler),
        once_blocked(fd, interrupt_main_thread),
        pytest.raises(kind, match="of the handler") as caught,
    ):
        yield
    assert caught.value is error
    assert error.filename is None
    assert not hasattr(error, "characters_written")


@kinds
@timeouts
@pytest.mark.parametrize("buffers", [[b"x"], [b"x"] * 2, [bytes(300)] * 2, [b"x"] * 3000])
def test_writev(
    buffers: list[bytes], timeout: float | None, kind: type[OSError], stream: Pair
) -> None:
    """Also where the system would say that the descriptor is full."""
    filled = fill(stream[0])
    stream[0].settimeout(timeout)
    with raising(stream[0].fileno(), kind):
        fdpass_c.writev(stream[0], buffers)
    assert len(drain(stream[1])) == filled


@kinds
@pytest.mark.parametrize("buffers", [[b"x"] * 2, [bytes(300)] * 2, [bytes(300)] * 3])
def test_writev_to_a_number(buffers: list[bytes], kind: type[OSError], stream: Pair) -> None:
    """Nor does what is written fastest."""
    filled = fill(stream[0])
    with raising(stream[0].fileno(), kind):
        fdpass_c.writev(stream[0].fileno(), buffers)
    assert len(drain(stream[1])) == filled


@kinds
@timeouts
def test_writev_of_the_rest(timeout: float | None, kind: type[OSError], stream: Pair) -> None:
    """Nor does a call that has written a part."""
    stream[0].settimeout(timeout)
    with raising(stream[0].fileno(), kind):
        fdpass_c.writev(stream[0], [bytes(5_000_000), bytes(5_000_000)])


@kinds
@timeouts
def test_send_fd(timeout: float | None, kind: type[OSError], stream: Pair, file: int) -> None:
    """Nor does a send of which a part has left."""
    stream[0].settimeout(timeout)
    with raising(stream[0].fileno(), kind):
        fdpass_c.send_fd(stream[0], file, bytes(5_000_000))


@pytest.mark.untraced
@pytest.mark.parametrize("rows", [False, True])
def test_progress_is_true(rows: bool, stream: Pair, file: int) -> None:
    """Where it raises an OSError right after a send, the error does not say that less was sent."""
    payloads = [b"one", b"two", b"six"]
    fds = [[file]] * 3 if rows else [file] * 3
    caught: list[OSError] = []

    def send() -> None:
        try:
            fdpass_c.send_many(stream[0], payloads, fds)
        except OSError as error:
            caught.append(error)
            raise

    while interrupt_call(batches, len(caught) + 1, send, OSError):
        progress = getattr(caught[-1], "progress", None)
        arrived = drain(stream[1])
        assert progress is None or arrived == b"".join(payloads[: progress.messages])
    assert len(caught) > 3


@kinds
@timeouts
@pytest.mark.parametrize(
    "receive",
    [lambda sock: fdpass_c.recv_fds(sock, 10, 10), fdpass_c.recv_fd, fdpass_c.recv_many],
    ids=["recv_fds", "recv_fd", "recv_many"],
)
def test_receiving(
    receive: Callable[[socket.socket], object],
    timeout: float | None,
    kind: type[OSError],
    stream: Pair,
) -> None:
    """Also where the system would say that the peer has reset the connection."""
    stream[1].settimeout(timeout)
    with raising(stream[1].fileno(), kind):
        receive(stream[1])


@pytest.mark.untraced
@kinds
@pytest.mark.parametrize(
    "receive",
    [
        lambda sock: close_fds(fdpass_c.recv_fds(sock, 5000, 10)[1]),
        lambda sock: fdpass_c.recv_fd(sock, 300_000)[1].close(),
        lambda sock: fdpass_c.recv_many(sock, bufsize=5000).close(),
    ],
    ids=["recv_fds", "recv_fd", "recv_many"],
)
def test_what_has_come_is_closed(
    receive: Callable[[socket.socket], object],
    kind: type[OSError],
    stream: Pair,
    file: int,
) -> None:
    """Where it raises an OSError although the system has handed a message out."""
    for number in itertools.count(1):
        fdpass_c.send_fds(stream[0], [b"x"], [file])
        before = len(list_fds())
        was_interrupted = interrupt_call(waiting, number, partial(receive, stream[1]), kind)
        assert len(list_fds()) == before
        drain(stream[1])
        if not was_interrupted:
            break
    assert number > 1


@kinds
@timeouts
def test_accept(timeout: float | None, kind: type[OSError], tmp_path: Path) -> None:
    """Also where accept would wait for the next connection."""
    with Listener(tmp_path / "socket") as listener:
        listener.settimeout(timeout)
        with raising(listener.fileno(), kind):
            listener.accept()


@pytest.mark.untraced
def test_accept_of_a_refused_peer(tmp_path: Path) -> None:
    """Also where accept would go on, because it has just refused a peer's user."""
    path = tmp_path / "socket"

    def raise_after_closing(frame: FrameType, event: str, _argument: object) -> None:
        closes = event == "return" and frame.f_code is socket.socket.close.__code__
        if closes and frame.f_back and frame.f_back.f_code is Channel.__init__.__code__:
            raise PermissionError("of the handler")

    with Listener(path, allow_uids=[]) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.settimeout(0)
        client.connect(str(path))
        sys.setprofile(raise_after_closing)
        try:
            with pytest.raises(PermissionError, match="of the handler"):
                listener.accept()
        finally:
            sys.setprofile(None)


@kinds
def test_accept_of_what_the_handler_closed(kind: type[OSError], tmp_path: Path) -> None:
    """Also where accept would say that the listener is closed."""
    with Listener(tmp_path / "socket") as listener:
        error = kind("of the handler")

        def close() -> None:
            listener.close()
            raise error

        with (
            handling(signal.SIGUSR1, close),
            once_blocked(listener.fileno(), interrupt_main_thread),
            pytest.raises(kind, match="of the handler") as caught,
        ):
            listener.accept()
        assert caught.value is error


@linux_only
@kinds
@timeouts
def test_connect(timeout: float | None, kind: type[OSError], tmp_path: Path) -> None:
    """Also where the backlog is full; and it does not name the path."""
    path = tmp_path / "socket"
    error = kind(errno.EAGAIN, "of the handler")

    def handler(_signum: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code is unix._connect.__code__:
            raise error

    with full_backlog(path):
        before = signal.signal(signal.SIGALRM, handler)
        timer = signal.setitimer(signal.ITIMER_REAL, 0.05, 0.01)
        try:
            with pytest.raises(kind, match="of the handler") as caught:
                Channel.connect(path, timeout=timeout)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            signal.setitimer(signal.ITIMER_REAL, *timer)
    assert caught.value is error
    assert error.filename is None


@linux_only
@kinds
def test_attacks(kind: type[OSError]) -> None:
    """An alarm ends an attack that waits, and is no failure of the attacked."""
    left, right = socket.socketpair()
    fill(left)
    with right, raising(left.fileno(), kind), suppress(StopIteration):
        next(hostile_peers(lambda: left, ["text"], timeout=1000))
