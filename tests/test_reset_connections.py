"""A peer that closes without reading all: what it sent comes first, then the error, once."""

import socket
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from types import FrameType

import pytest

import fdpass_c
from fdpass_c import Channel, PeerClosedError, ProtocolError
from fdpass_c.buffers import Buffer
from fdpass_c.outcomes import Progress, read_messages
from support.channels import raw_pair
from support.descriptors import MakeFiles, identity
from support.frames import NEXT, first, one, pack
from support.marks import linux_only
from support.messages import Message, take, take_batch
from support.processes import run_in_child
from support.sockets import Pair
from support.tables import limit_table
from support.waiting import once_blocked

pytestmark = linux_only


@pytest.fixture(params=["stream", "seqpacket"])
def connection(request: pytest.FixtureRequest) -> Pair:
    """A connected pair of each type that can be reset."""
    pair: Pair = request.getfixturevalue(request.param)
    return pair


def reset(pair: Pair, fds: list[int], timeout: float | None) -> list[Message]:
    """Sends a message with each descriptor and closes without having read; what has to arrive."""
    pair[1].sendall(b"never read")
    for number, fd in enumerate(fds):
        socket.send_fds(pair[0], [b"%03d" % number], [fd])
    pair[0].close()
    pair[1].settimeout(timeout)
    return [(b"%03d" % number, [identity(fd)]) for number, fd in enumerate(fds)]


@pytest.mark.parametrize(
    ("count", "most", "timeout"), [(0, 1000, 1000), (3, 1, 0), (3, 1, 1000), (150, 1000, 1000)]
)
def test_recv_many(
    count: int, most: int, timeout: float | None, connection: Pair, make_files: MakeFiles
) -> None:
    """recv_many loses none: those that one call finds with the error are in its batch."""
    wanted = reset(connection, make_files(count), timeout)
    received: list[Message] = []
    resets = 0
    while True:
        try:
            batch = fdpass_c.recv_many(connection[1], most)
        except ConnectionResetError as error:
            batch = getattr(error, "batch", None) or fdpass_c.Batch([], fdpass_c.Descriptors([]))
            resets += 1
            if most > 1:
                assert len(batch) == min(count, most)
        else:
            if not batch:
                break
            # A stream's single message comes without the error, which is still to come.
            assert most > 1 or resets == (connection[1].type == socket.SOCK_SEQPACKET)
        received += take_batch(batch)
        assert len(received) <= count
    assert received == wanted
    assert resets == 1
    assert take_batch(fdpass_c.recv_many(connection[1])) == []


@pytest.mark.parametrize("count", [3, 150])
def test_recv_many_waits_for_all(count: int, stream: Pair, make_files: MakeFiles) -> None:
    """The same with MSG_WAITALL on a blocking socket."""
    wanted = reset(stream, make_files(count), None)
    with pytest.raises(ConnectionResetError) as caught:
        fdpass_c.recv_many(stream[1], 1000, 3, flags=socket.MSG_WAITALL)
    assert take_batch(caught.value.batch) == wanted  # type: ignore[attr-defined]


@pytest.mark.thread_unsafe
@pytest.mark.untraced
@pytest.mark.parametrize("count", [64, 100])
def test_recv_many_meanwhile(count: int, connection: Pair, make_files: MakeFiles) -> None:
    """The same where the peer closes between two system calls of one recv_many."""
    connection[1].sendall(b"never read")
    files = make_files(count)
    fdpass_c.send_many(connection[0], [b"x"] * count, files)

    def close(frame: FrameType, event: str, _called: object) -> None:
        if event == "call" and frame.f_code is read_messages.__code__:
            connection[0].close()

    sys.setprofile(close)
    try:
        with pytest.raises(ConnectionResetError) as caught:
            fdpass_c.recv_many(connection[1], 1000)
    finally:
        sys.setprofile(None)
    batch: fdpass_c.Batch = caught.value.batch  # type: ignore[attr-defined]
    assert take_batch(batch) == [(b"x", [identity(fd)]) for fd in files]
    assert take_batch(fdpass_c.recv_many(connection[1])) == []


def receive_fd(sock: socket.socket) -> Message:
    return take(fdpass_c.recv_fd(sock))


def receive_fds(sock: socket.socket) -> Message:
    data, fds, _, _ = fdpass_c.recv_fds(sock, 3, 3)
    if not data:
        raise PeerClosedError
    return take((data, fdpass_c.Descriptors(fds)))


@pytest.mark.parametrize("receive", [receive_fd, receive_fds])
@pytest.mark.parametrize(("count", "timeout"), [(0, 1000), (5, 0)])
def test_one_at_a_time(
    count: int,
    receive: Callable[[socket.socket], Message],
    timeout: float | None,
    connection: Pair,
    make_files: MakeFiles,
) -> None:
    """What receives one message loses none, and says so as the kernel does: on a stream at last, on
    a seqpacket socket at first."""
    wanted = reset(connection, make_files(count), timeout)
    if connection[1].type == socket.SOCK_SEQPACKET:
        with pytest.raises(ConnectionResetError):
            receive(connection[1])
    assert [receive(connection[1]) for _ in range(count)] == wanted
    if connection[1].type == socket.SOCK_STREAM:
        with pytest.raises(ConnectionResetError):
            receive(connection[1])
    with pytest.raises(PeerClosedError):
        receive(connection[1])


def receive_many(channel: Channel) -> list[Message]:
    return take_batch(channel.recv_many(3))


def receive_one(channel: Channel) -> list[Message]:
    return [take(channel.recv())]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("receive", [receive_one, receive_many])
def test_channel(
    receive: Callable[[Channel], list[Message]], kind: socket.SocketKind, file: int
) -> None:
    """A Channel hands out all that came whole, in a small table too, then says so, once."""
    begun, ended = (first(2, 2, b"l", 1), 1), (pack(NEXT, 0, 1, 0, b"l"), 1)
    packets = [(one(b"a", 1), 1), begun, ended, (one(b"b"), 0), (one(b"c", 2), 2), begun, ended]
    whole = [0, 1, 1, 2, 3, 4, 4, 5]

    def child(limit: int, timeout: float) -> None:
        limit_table(limit)
        for count in range(len(packets) + 1):
            with raw_pair(kind) as (peer, channel):
                channel.settimeout(timeout)
                channel.send(b"never read")
                for packet, fds in packets[:count]:
                    socket.send_fds(peer, [packet], [file] * fds)
                peer.close()
                received: list[Message] = []
                while len(received) < whole[count]:
                    received += receive(channel)
                payloads = [b"a", b"ll", b"b", b"c", b"ll"][: whole[count]]
                assert [payload for payload, _ in received] == payloads
                with pytest.raises(ConnectionResetError):
                    receive(channel)
                # Inside a large message it has ended in the middle, too.
                is_torn = count in (2, 6)
                for _ in range(2):
                    with pytest.raises(ProtocolError if is_torn else PeerClosedError):
                        receive(channel)

    for limit, timeout in product((300, 2000), (1000, 0)):
        run_in_child(partial(child, limit, timeout))


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("receive", [receive_one, receive_many])
def test_while_a_channel_waits(
    receive: Callable[[Channel], list[Message]], kind: socket.SocketKind
) -> None:
    """It says so, once, where the error ends the wait of a blocking receive, too."""
    with raw_pair(kind) as (peer, channel):
        channel.send(b"never read")
        with once_blocked(channel.fileno(), peer.close), pytest.raises(ConnectionResetError):
            receive(channel)
        with pytest.raises(PeerClosedError):
            receive(channel)


def unread_pair() -> socket.socket:
    """A packet socket whose peer has closed without having read what was sent to it."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left.send(b"never read")
    right.close()
    return left


@pytest.mark.parametrize(
    ("data", "count"),
    [([b"x"], 1), ((b"x",), 2), ([b"x", b"y"], 0), ([bytes(5000)], 1), ([memoryview(b"xy")], 1)],
)
def test_send_fds(data: list[Buffer], count: int, make_files: MakeFiles) -> None:
    """A packet socket tells its sender of the reset, once, as with socket.send_fds."""
    fds = make_files(count)
    for send in (socket.send_fds, fdpass_c.send_fds):
        with unread_pair() as left:
            for expected in (ConnectionResetError, BrokenPipeError):
                with pytest.raises(expected):
                    send(left, data, fds)


@pytest.mark.parametrize("size", [1, 5000])
def test_send_many(size: int, make_files: MakeFiles) -> None:
    """So does send_many, whatever the size of its messages."""
    fds = make_files(3)
    with unread_pair() as left:
        for expected in (ConnectionResetError, BrokenPipeError):
            with pytest.raises(expected) as caught:
                fdpass_c.send_many(left, [bytes(size)] * 3, fds)
            assert Progress.of(caught.value) == Progress(0, 0)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (1, 2), (5000, 1), (100_000, 300)])
def test_channel_sends(size: int, count: int, make_files: MakeFiles) -> None:
    """A channel has one error for a peer that has gone, whatever it sends."""
    fds = make_files(2) * (count // 2) or make_files(1)
    with Channel(unread_pair()) as channel:
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                channel.send(bytes(size), fds)
    with Channel(unread_pair()) as channel, pytest.raises(BrokenPipeError):
        channel.send_many([bytes(size)] * 3, [fds] * 3)
