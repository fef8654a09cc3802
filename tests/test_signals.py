"""Signal handlers run while a call waits, may raise, may use the same functions; nothing leaks."""

import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

import fdpass_c
from fdpass_c import batches, messages
from support.descriptors import Keep, MakeFiles, identities, identity, no_leak
from support.marks import places_known
from support.signals import Interruption, handling, interrupt, interrupt_call, interrupt_main_thread
from support.sockets import Pair, drain, fill
from support.waiting import once_blocked


def recv_fds(sock: socket.socket) -> None:
    fdpass_c.recv_fds(sock, 10, 10)


def recv_fd(sock: socket.socket) -> None:
    fdpass_c.recv_fd(sock)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("receive", [recv_fds, recv_fd])
def test_handler_raises_while_receiving(
    receive: Callable[[socket.socket], None], stream: Pair, file: int, keep: Keep
) -> None:
    """An exception from a handler ends a blocked receive, and the next message still arrives."""
    with (
        handling(signal.SIGUSR1, interrupt),
        once_blocked(stream[1].fileno(), interrupt_main_thread),
        pytest.raises(Interruption),
    ):
        receive(stream[1])
    fdpass_c.send_fds(stream[0], [b"later"], [file])
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 10, 10)
    keep(fds)
    assert data == b"later"
    assert identities(fds) == [identity(file)]


@pytest.mark.thread_unsafe
def test_handler_raises_while_sending(stream: Pair, file: int) -> None:
    """An exception from a handler ends a blocked send, and nothing of it was sent."""
    filled = fill(stream[0])
    with (
        handling(signal.SIGUSR1, interrupt),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
        pytest.raises(Interruption),
    ):
        fdpass_c.send_fds(stream[0], [b"x"], [file])
    stream[0].close()
    received = 0
    while data := stream[1].recv(1 << 20):
        received += len(data)
    assert received == filled


@pytest.mark.thread_unsafe
def test_handler_returns_while_receiving(stream: Pair, file: int, keep: Keep) -> None:
    """A receive goes on waiting after a handler that returns."""
    left, right = stream
    calls = []

    def send_at_last() -> None:
        calls.append(1)
        if len(calls) == 3:
            fdpass_c.send_fds(left, [b"at last"], [file])

    def interrupt_thrice() -> None:
        while len(calls) < 3:
            interrupt_main_thread()

    with (
        handling(signal.SIGUSR1, send_at_last),
        once_blocked(right.fileno(), interrupt_thrice),
    ):
        data, fds, _, _ = fdpass_c.recv_fds(right, 10, 1)
    keep(fds)
    assert data == b"at last"
    assert identities(fds) == [identity(file)]
    assert len(calls) >= 3


@pytest.mark.thread_unsafe
def test_handler_returns_while_sending(stream: Pair, file: int, keep: Keep) -> None:
    """A send goes on after a handler that made room."""
    fill(stream[0])
    with (
        handling(signal.SIGUSR1, lambda: drain(stream[1])),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
    ):
        assert fdpass_c.send_fds(stream[0], [b"x"], [file]) == 1
    fds = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    assert identities(fds) == [identity(file)]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("receive", [recv_fds, recv_fd])
def test_signals_do_not_extend_a_timeout(
    receive: Callable[[socket.socket], None], stream: Pair
) -> None:
    """A timeout ends however often a handler ran in between."""
    calls = []
    stream[1].settimeout(0.1)
    with handling(signal.SIGALRM, lambda: calls.append(1)):
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            with pytest.raises(TimeoutError):
                receive(stream[1])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert calls


@pytest.mark.thread_unsafe
def test_handler_receives_too(
    stream: Pair, seqpacket: Pair, make_files: MakeFiles, keep: Keep
) -> None:
    """A handler that receives with the same function disturbs the interrupted call in nothing."""
    outer_file, inner_file = make_files(2)
    fdpass_c.send_fds(seqpacket[0], [b"inner"], [inner_file] * 3)
    inner: list[tuple[bytes, list[int]]] = []

    def receive_and_reply() -> None:
        data, fds, _, _ = fdpass_c.recv_fds(seqpacket[1], 100, 3)
        inner.append((data, keep(fds)))
        fdpass_c.send_fds(stream[0], [b"the outer one"], [outer_file] * 2)

    with (
        handling(signal.SIGUSR1, receive_and_reply),
        once_blocked(stream[1].fileno(), interrupt_main_thread),
    ):
        data, fds, _, _ = fdpass_c.recv_fds(stream[1], 100, 2)
    keep(fds)
    assert data == b"the outer one"
    assert identities(fds) == identities([outer_file] * 2)
    ((inner_data, inner_fds),) = inner
    assert inner_data == b"inner"
    assert identities(inner_fds) == identities([inner_file] * 3)


@pytest.mark.thread_unsafe
@places_known
@pytest.mark.parametrize(("receive", "count"), [(recv_fds, 2), (recv_fd, 1), (recv_fd, 2)])
def test_handler_raises_right_after_the_arrival(
    receive: Callable[[socket.socket], None], count: int, stream: Pair, file: int
) -> None:
    """A handler that raises when the descriptors are in the process leaves none of them open."""

    def raise_and_send() -> None:
        # Taken by this thread, the signal interrupts no system call of the main one, which runs
        # the handler when it is back in Python: with the message.
        signal.raise_signal(signal.SIGUSR1)
        fdpass_c.send_fds(stream[0], [b"x"], [file] * count)

    with (
        no_leak(),
        handling(signal.SIGUSR1, interrupt),
        once_blocked(stream[1].fileno(), raise_and_send),
        pytest.raises(Interruption),
    ):
        receive(stream[1])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("name", "bufsize", "count"),
    [("recv_fds", 10, 5), ("recv_fds", 10_000, 1), ("recv_fd", 10, 1), ("recv_fd", 10_000, 2)],
)
def test_exception_after_every_call(
    name: str, bufsize: int, count: int, tmp_path: Any, file: int
) -> None:
    """Wherever in a receive a handler may raise, no descriptor stays open."""

    def receive() -> None:
        try:
            if name == "recv_fd":
                fdpass_c.recv_fd(right, bufsize)[1].close()
            else:
                fdpass_c.close_fds(fdpass_c.recv_fds(right, bufsize, 5)[1])
        except fdpass_c.ProtocolError:
            assert count > 1

    number = 1
    interrupted = True
    while interrupted:
        with no_leak(), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as right:
            right.bind(str(tmp_path / f"receiver{number}"))
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
                left.bind(str(tmp_path / f"sender{number}"))
                left.connect(right.getsockname())
                fdpass_c.send_fds(left, [b"x"], [file] * count)
            module = batches if name == "recv_fd" else messages
            interrupted = interrupt_call(module, number, receive)
        number += 1
    assert number > 3
