"""A socket's blocking, timeout and non-blocking modes fail as in the standard library."""

import errno
import socket
import struct
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

import fdpass_c
from fdpass_c.waiting import READABLE, Deadline
from support.descriptors import Keep, identities, identity
from support.sockets import Pair, fill
from support.waiting import once_blocked

Operation = Callable[[socket.socket], object]


def error_of(operation: Operation, sock: socket.socket) -> OSError:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        operation(sock)
    return caught.value


def assert_same_error(ours: Operation, theirs: Operation, sock: socket.socket) -> None:
    mine, reference = error_of(ours, sock), error_of(theirs, sock)
    assert type(mine) is type(reference)
    assert mine.args == reference.args
    assert str(mine) == str(reference)


MODES: list[tuple[float, type[OSError]]] = [
    (0, BlockingIOError),
    (0.01, TimeoutError),
    (1e-9, TimeoutError),
]
receivers = pytest.mark.parametrize(
    "receive",
    [lambda sock: fdpass_c.recv_fds(sock, 1, 1), fdpass_c.recv_fd],
    ids=["recv_fds", "recv_fd"],
)


@receivers
def test_receive(receive: Operation, stream: Pair) -> None:
    """A receive that finds nothing raises the same error with the same text."""
    for timeout, expected in MODES:
        stream[1].settimeout(timeout)
        assert_same_error(receive, lambda sock: socket.recv_fds(sock, 1, 1), stream[1])
        with pytest.raises(expected):
            receive(stream[1])


def test_send(stream: Pair) -> None:
    """A send into a full socket raises the same error with the same text."""
    senders: list[Operation] = [
        lambda sock: fdpass_c.send_fds(sock, [b"x"], [0]),
        lambda sock: fdpass_c.send_fds(sock, [b"x"], [0, 0]),
        lambda sock: fdpass_c.send_fds(sock, [b"x"], [sock]),
        lambda sock: fdpass_c.send_fd(sock, 0),
    ]
    fill(stream[0])
    for send, (timeout, expected) in product(senders, MODES):
        stream[0].settimeout(timeout)
        assert_same_error(send, lambda sock: socket.send_fds(sock, [b"x"], [0]), stream[0])
        with pytest.raises(expected):
            send(stream[0])


def test_send_to_an_address(tmp_path: Path) -> None:
    """A send to an address whose receiver is full raises the same error with the same text."""
    address = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(address)
        sender.connect(address)
        fill(sender)
        for timeout, _ in MODES:
            sender.settimeout(timeout)
            assert_same_error(
                lambda sock: fdpass_c.send_fds(sock, [b"x"], [0], 0, address),
                lambda sock: sock.sendto(b"x", address),
                sender,
            )


@receivers
def test_timeout_of_the_kernel(receive: Operation, stream: Pair) -> None:
    """SO_RCVTIMEO on a blocking socket ends in the same error."""
    stream[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000))
    assert_same_error(receive, lambda sock: socket.recv_fds(sock, 1, 1), stream[1])


def test_receive_within_the_timeout(stream: Pair, file: int, keep: Keep) -> None:
    """A message that comes in time is received."""
    stream[1].settimeout(60)
    sender = threading.Thread(target=fdpass_c.send_fds, args=(stream[0], [b"x"], [file]))
    sender.start()
    fds = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    sender.join()
    assert identities(fds) == [identity(file)]


def test_a_timeout_of_months(stream: Pair, file: int) -> None:
    """A timeout of more milliseconds than an int holds is waited for as any other."""
    months = 10_000_000.0
    stream[1].settimeout(months)
    with once_blocked(stream[1].fileno(), lambda: fdpass_c.send_fd(stream[0], file)):
        fdpass_c.recv_fd(stream[1])[1].close()
    with (
        fdpass_c.Channel(stream[0]) as sender,
        fdpass_c.Channel(stream[1]) as receiver,
        once_blocked(receiver.fileno(), lambda: sender.send(b"x")),
    ):
        assert receiver.recv()[0] == b"x"


def test_a_part_of_a_millisecond(stream: Pair) -> None:
    """A wait does not end before the timeout, although poll counts whole milliseconds."""
    stream[1].settimeout(0.0019)
    for _ in range(10):
        with pytest.raises(TimeoutError):
            Deadline(stream[1], READABLE).handle(errno.EAGAIN)


def test_send_within_the_timeout(stream: Pair, file: int, keep: Keep) -> None:
    """Room that comes in time is used."""
    filled = fill(stream[0])
    stream[0].settimeout(60)
    received = []

    def drain() -> None:
        left = filled
        while left:
            left -= len(stream[1].recv(min(left, 65536)))
        received.extend(fdpass_c.recv_fds(stream[1], 1, 1)[1])

    receiver = threading.Thread(target=drain)
    receiver.start()
    assert fdpass_c.send_fds(stream[0], [b"x"], [file]) == 1
    receiver.join()
    assert identities(keep(received)) == [identity(file)]


def test_int_is_taken_as_blocking(stream: Pair) -> None:
    """An int has no timeout: where its socket does not block, the answer is BlockingIOError."""
    stream[1].settimeout(60)
    with pytest.raises(BlockingIOError):
        fdpass_c.recv_fds(stream[1].fileno(), 1, 1)


def test_non_blocking_success(stream: Pair, file: int, keep: Keep) -> None:
    """A non-blocking pair passes a descriptor that is there."""
    for sock in stream:
        sock.setblocking(False)
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    fds = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    assert identities(fds) == [identity(file)]
