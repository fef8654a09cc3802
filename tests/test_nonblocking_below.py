"""A socket says to wait and its descriptor does not, or the opposite: the object's word counts."""

import os
import socket
from collections.abc import Callable, Iterator

import pytest

import fdpass_c
from fdpass_c import Channel
from support.channels import channels, raw_pair
from support.frames import one
from support.sockets import Pair, fill, read_all
from support.waiting import once_blocked

pytestmark = pytest.mark.thread_unsafe


@pytest.fixture
def below(stream: Pair) -> Iterator[socket.socket]:
    """What as_socket() makes of one that an event loop has sent; stream[1] is its other end."""
    left, right = socket.socketpair()
    with left, right:
        stream[0].setblocking(False)
        fdpass_c.send_fd(left, stream[0])
        with fdpass_c.recv_fd(right)[1] as fds:
            made = fds.as_socket()
    with made:
        assert made.gettimeout() is None
        assert not os.get_blocking(made.fileno())
        yield made


RECEIVES: list[Callable[[socket.socket], object]] = [
    lambda sock: fdpass_c.close_fds(fdpass_c.recv_fds(sock, 1, 1)[1]),
    lambda sock: fdpass_c.recv_fd(sock, 1)[1].close(),
    lambda sock: fdpass_c.recv_many(sock, 1).close(),
    lambda sock: fdpass_c.recv_many(sock).close(),
]


@pytest.mark.parametrize("receive", RECEIVES)
def test_receiving(
    receive: Callable[[socket.socket], object], below: socket.socket, stream: Pair, file: int
) -> None:
    """Plain receives wait."""
    with once_blocked(below.fileno(), lambda: fdpass_c.send_fds(stream[1], [b"x"], [file])):
        receive(below)


SENDS: list[Callable[[socket.socket, int], object]] = [
    lambda sock, fd: fdpass_c.send_fds(sock, [b"x"], [fd]),
    lambda sock, fd: fdpass_c.send_fd(sock, fd, bytes(100_000)),
    lambda sock, fd: fdpass_c.send_many(sock, [b"x"] * 500, [fd] * 500),
    lambda sock, _: fdpass_c.writev(sock, [bytes(100_000)]),
]


@pytest.mark.parametrize("send", SENDS)
def test_sending(
    send: Callable[[socket.socket, int], object], below: socket.socket, stream: Pair, file: int
) -> None:
    """Plain sends wait for room, for all that they have to send."""
    fill(below)
    with once_blocked(below.fileno(), lambda: read_all(stream[1])):
        send(below, file)
        below.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("receive", ["recv", "recv_many"])
def test_channel_receives(receive: str, below: socket.socket, stream: Pair) -> None:
    """A Channel waits for a message."""
    with Channel(below) as channel, Channel(stream[1]) as other:
        with once_blocked(channel.fileno(), lambda: other.send(b"later")):
            found = getattr(channel, receive)()
        payload = found[0] if receive == "recv" else found.payloads[0]
    assert payload == b"later"


@pytest.mark.parametrize("size", [10, 100_000])
def test_channel_sends(size: int, below: socket.socket, stream: Pair) -> None:
    """A Channel waits for room."""
    received: list[bytes] = []
    with Channel(below) as channel, Channel(stream[1]) as other:
        frame = bytes(1000)
        channel.setblocking(False)
        while True:
            try:
                channel.send(frame)
            except BlockingIOError:
                break
        channel.settimeout(None)
        os.set_blocking(channel.fileno(), False)

        def receive() -> None:
            while received[-1:] != [b"end"]:
                received.append(other.recv()[0])

        with once_blocked(channel.fileno(), receive):
            channel.send(b"x" * size)
            channel.send(b"end")
    assert received[-2:] == [b"x" * size, b"end"]


@pytest.mark.parametrize("receive", RECEIVES)
@pytest.mark.parametrize(("timeout", "error"), [(0, BlockingIOError), (0.01, TimeoutError)])
def test_receiving_waits_no_longer(
    timeout: float, error: type[OSError], receive: Callable[[socket.socket], object], stream: Pair
) -> None:
    """Plain receives keep to the timeout where somebody has made the descriptor blocking."""
    stream[0].settimeout(timeout)
    os.set_blocking(stream[0].fileno(), True)
    with pytest.raises(error):
        receive(stream[0])


@pytest.mark.parametrize(
    "send",
    [
        *SENDS[:3],
        lambda sock, fd: fdpass_c.send_fds(sock, [b"x", b"y"], [fd]),
        lambda sock, fd: fdpass_c.send_fd(sock, fd, bytes(9_000_000)),
        lambda sock, fd: fdpass_c.send_many(sock, [b"x"], [fd]),
        lambda sock, fd: fdpass_c.send_many(sock, [b"x"], [[fd, fd]]),
    ],
)
@pytest.mark.parametrize(("timeout", "error"), [(0, BlockingIOError), (0.01, TimeoutError)])
def test_sending_waits_no_longer(
    timeout: float,
    error: type[OSError],
    send: Callable[[socket.socket, int], object],
    stream: Pair,
    file: int,
) -> None:
    """So do plain sends."""
    fill(stream[0])
    stream[0].settimeout(timeout)
    os.set_blocking(stream[0].fileno(), True)
    with pytest.raises(error):
        send(stream[0], file)


@pytest.mark.parametrize(
    "use",
    [
        Channel.recv,
        Channel.recv_many,
        lambda channel: channel.send(bytes(9_000_000)),
        lambda channel: channel.send_many([bytes(50_000)] * 99),
        lambda channel: [channel.send(bytes(1000)) for _ in range(99)],
    ],
    ids=["recv", "recv_many", "send", "send_many", "sends"],
)
@pytest.mark.parametrize(("timeout", "error"), [(0, BlockingIOError), (0.01, TimeoutError)])
def test_channel_waits_no_longer(
    timeout: float, error: type[OSError], use: Callable[[Channel], object]
) -> None:
    """A Channel with a timeout keeps to it where somebody has made its descriptor blocking."""
    with channels(buffer=5000) as (channel, _):
        channel.settimeout(timeout)
        os.set_blocking(channel.fileno(), True)
        with pytest.raises(error):
            use(channel)


@pytest.mark.parametrize("receive", [Channel.recv, Channel.recv_many])
def test_channel_waits_no_longer_for_the_rest(receive: Callable[[Channel], object]) -> None:
    """Nor does it where a message has arrived in part."""
    with raw_pair() as (peer, channel):
        channel.settimeout(0.01)
        os.set_blocking(channel.fileno(), True)
        peer.send(one(b"hello")[:9])
        with pytest.raises(TimeoutError):
            receive(channel)


def test_the_call_s_own_word(below: socket.socket, file: int) -> None:
    """MSG_DONTWAIT in the flags of a call goes on to mean that it does not wait."""
    flag = socket.MSG_DONTWAIT
    receives: list[Callable[[], object]] = [
        lambda: fdpass_c.recv_fds(below, 1, 1, flag),
        lambda: fdpass_c.recv_many(below, flags=flag),
    ]
    sends: list[Callable[[], object]] = [
        lambda: fdpass_c.send_fds(below, [b"x"], [file], flag),
        lambda: fdpass_c.send_many(below, [b"x"], [file], flag),
    ]
    fill(below)
    for call in receives + sends:
        with pytest.raises(BlockingIOError):
            call()
