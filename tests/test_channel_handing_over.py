"""A Channel ends one direction, hands its socket over, and goes on with a batch it has begun."""

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from fdpass_c import Channel, Listener, PeerClosedError, Progress
from support.channels import channels, raw_pair
from support.descriptors import identity


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_shutdown(kind: socket.SocketKind, file: int) -> None:
    """The peer learns that nothing more comes, and may still answer."""
    with channels(kind) as (one, other):
        one.send(b"last", [file])
        one.shutdown(socket.SHUT_WR)
        with other.recv()[1]:
            pass
        with pytest.raises(PeerClosedError):
            other.recv()
        other.send(b"answer")
        with one.recv()[1]:
            pass
        with pytest.raises(BrokenPipeError):
            one.send(b"more")


def test_detach(file: int) -> None:
    """The socket is the caller's, as it was set; the channel is closed."""
    left, right = socket.socketpair()
    with left:
        channel = Channel(right)
        channel.settimeout(30)
        number = channel.fileno()
        with channel.detach() as sock:
            assert channel.closed
            assert channel.fileno() == -1
            assert (sock.fileno(), sock.gettimeout()) == (number, 30)
            assert channel.gettimeout() == 30
            with pytest.raises(OSError, match="the channel is closed"):
                channel.send(b"", [file])
            with pytest.raises(OSError, match="the channel is closed"):
                channel.recv()
            with pytest.raises(OSError, match="the channel is closed"):
                channel.detach()
            left.sendall(b"plain")
            assert sock.recv(5) == b"plain"
        channel.close()


class _Named(socket.socket):
    """A socket whose class makes it of something else than a descriptor's kind."""

    def __init__(self, name: str, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.name = name


def test_detach_of_a_class_of_its_own() -> None:
    """The caller gets the very socket that the channel was made of, whatever its class is."""
    left, right = socket.socketpair()
    with left, _Named("mine", right) as given, Channel(given).detach() as sock:
        assert sock is given


def test_detach_would_lose_what_came(file: int) -> None:
    """A message that waits, whole or in part, keeps the socket where it is."""
    with channels() as (sender, receiver):
        sender.send_many([b"one", b"two"], [file, file])
        with receiver.recv()[1]:
            pass
        with pytest.raises(ValueError, match="lost"):
            receiver.detach()
        payload, owner = receiver.recv()
        with owner:
            assert payload == b"two"
        with receiver.detach():
            pass


def test_detach_would_lose_what_has_not_left() -> None:
    """So does the rest of a frame that is begun."""
    with raw_pair() as (sock, channel):
        channel.setblocking(False)
        while not channel.unsent:
            channel.send(bytes(50_000))
        with pytest.raises(ValueError, match="lost"):
            channel.detach()
        while channel.unsent:
            sock.recv(1 << 20)
            try:
                channel.flush()
            except BlockingIOError:
                continue
        with channel.detach():
            pass


@pytest.mark.parametrize("width", [8, 30_000])
def test_a_batch_goes_on_from_its_progress(width: int, file: int) -> None:
    """start=error.progress sends the rest: every message once."""
    payloads = [bytes([number]) * width for number in range(100)]
    with channels(buffer=5000) as (sender, receiver):
        sender.setblocking(False)
        receiver.setblocking(False)
        start = Progress()
        received: list[bytes] = []
        while start.messages < 100:
            try:
                sender.send_many(payloads, [file] * 100, start=start)
                start = Progress(100)
            except BlockingIOError as error:
                start = Progress.of(error)
            received += receive_all(receiver)
        while len(received) < 100:
            with contextlib.suppress(BlockingIOError):
                sender.flush()
            received += receive_all(receiver)
        assert received == payloads


def receive_all(channel: Channel) -> list[bytes]:
    payloads: list[bytes] = []
    while True:
        try:
            payload, owner = channel.recv()
        except BlockingIOError:
            return payloads
        payloads.append(payload)
        with owner:
            assert len(owner) == 1


def test_a_start_outside_of_the_batch(file: int) -> None:
    """What no error of the batch could have said sends nothing."""
    with channels() as (sender, receiver):
        for start in (Progress(-1, 0), Progress(3, 0), Progress(0, 1)):
            with pytest.raises(ValueError, match="start"):
                sender.send_many([b"one", b"two"], [file] * 2, start=start)
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv()
        assert sender.send_many([b"one", b"two"], [file] * 2, start=Progress(2, 0)) == 2
        with pytest.raises(BlockingIOError):
            receiver.recv()


def test_unequal_lengths_behind_the_start(file: int) -> None:
    """Where the descriptors end before the start, no message goes without them."""
    with channels() as (sender, receiver):
        for fds in ([file], [file] * 2, [[file]] * 2, [file] * 4):
            with pytest.raises(ValueError, match=f"3 payloads, but descriptors for {len(fds)}"):
                sender.send_many([b"one", b"two", b"three"], fds, start=Progress(2, 0))
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv()


def test_what_is_no_socket(tmp_path: Path) -> None:
    """A number, too: its timeout would be nobody's. A channel and a listener have one."""
    wrong: Any
    with channels() as (one, _), Listener(tmp_path / "socket") as listener:
        for wrong in (3, "socket", None, one, listener):
            name = type(wrong).__name__
            with pytest.raises(TypeError, match=f"needs a socket.socket, not {name}"):
                Channel(wrong)


def test_identity_of_a_copy(file: int) -> None:
    """dup gives the caller a descriptor of its own."""
    with channels() as (sender, receiver):
        sender.send(b"", [file])
        with receiver.recv()[1] as owner:
            copy = owner.dup()
        with open(copy, "rb") as opened:
            assert identity(opened.fileno()) == identity(file)


def test_slices_of_a_batch(file: int) -> None:
    """A slice is a list of what the indices give."""
    with channels() as (sender, receiver):
        sender.send_many([b"0", b"1", b"2"], [[file], [], [file, file]])
        with receiver.recv_many() as batch:
            assert batch[1:] == [batch[1], batch[2]]
            assert [payload for payload, _ in batch[::-1]] == [b"2", b"1", b"0"]
            assert batch[::-2] == [batch[2], batch[0]]
