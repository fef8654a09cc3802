"""What counts as a descriptor, and by which number it goes: the same in every call."""

import os
import socket
from collections.abc import Callable, Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, Descriptors
from support.channels import channels
from support.descriptors import MakeFiles, identity, is_open
from support.messages import take, take_batch
from support.processes import run_in_child
from support.sockets import Pair, assert_empty, drain

Send = Callable[[socket.socket, Any], object]


def in_channel(use: Callable[[Channel, Any], object]) -> Send:
    """The same over a Channel on a copy of the socket."""

    def send(sock: socket.socket, fd: Any) -> None:
        with Channel(sock.dup()) as channel:
            use(channel, fd)

    return send


SENDS: dict[str, Send] = {
    "send_fds": lambda sock, fd: fdpass_c.send_fds(sock, [b"x"], [fd]),
    "send_fds, among ints": lambda sock, fd: fdpass_c.send_fds(sock, [b"x"], [fd, 0]),
    "send_fd": lambda sock, fd: fdpass_c.send_fd(sock, fd),
    "send_many": lambda sock, fd: fdpass_c.send_many(sock, [b"x"], [fd]),
    "send_many, among ints": lambda sock, fd: fdpass_c.send_many(sock, [b"x", b"y"], [fd, 0]),
    "send_many, rows": lambda sock, fd: fdpass_c.send_many(sock, [b"x"], [[fd, 0]]),
    "Channel.send": in_channel(lambda channel, fd: channel.send(b"x", [fd])),
    "Channel.send, among ints": in_channel(lambda channel, fd: channel.send(b"x", [fd, 0])),
    "Channel.send, no bytes": in_channel(lambda channel, fd: channel.send(bytearray(1), [fd])),
    "Channel.send_many": in_channel(lambda channel, fd: channel.send_many([b"x"], [fd])),
    "Channel.send_many, among ints": in_channel(
        lambda channel, fd: channel.send_many([b"x", b"y"], [fd, 0])
    ),
    "Channel.send_many, rows": in_channel(lambda channel, fd: channel.send_many([b"x"], [[fd, 0]])),
    "Channel.send_many, long": in_channel(
        lambda channel, fd: channel.send_many([bytes(999)], [fd])
    ),
}

by_send = pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)


def sent_first(sock: socket.socket) -> int:
    """The first descriptor that comes, which the caller closes."""
    fds = socket.recv_fds(sock, 10_000, 10)[1]
    fdpass_c.close_fds(fds[1:])
    return fds[0]


class OnlyInt:
    """Converts to int, and is none."""

    def __init__(self, fd: int, _other: int = -1) -> None:
        self.fd = fd

    def __int__(self) -> int:
        return self.fd


class Trunc:
    """The same, in the way of Python 3.10."""

    def __init__(self, fd: int, _other: int = -1) -> None:
        self.fd = fd

    def __trunc__(self) -> int:
        return self.fd


class IntAndFileno(OnlyInt):
    """Converts to one number, and has another as a descriptor."""

    def __init__(self, fd: int, other: int) -> None:
        super().__init__(other)
        self.right = fd

    def fileno(self) -> int:
        return self.right


class IndexAndOther:
    """Is one number, converts to another, and has that as a descriptor."""

    def __init__(self, fd: int, other: int) -> None:
        self.fd = fd
        self.other = other

    def __index__(self) -> int:
        return self.fd

    def __int__(self) -> int:
        return self.other

    def fileno(self) -> int:
        return self.other


class IntWithFileno(int):
    """An int, whatever else it has."""

    def fileno(self) -> int:
        raise AssertionError("not asked")


def subclass(fd: int, _other: int) -> IntWithFileno:
    return IntWithFileno(fd)


@by_send
def test_what_only_converts_to_int(send: Send, file: int, stream: Pair) -> None:
    """A number that is no integer, or text, is no descriptor: TypeError, and nothing is sent."""
    make: Callable[[int], Any]
    for make in (Decimal, OnlyInt, Trunc, str):
        with pytest.raises(TypeError, match=make.__name__):
            send(stream[0], make(file))
    assert_empty(stream[1])


def test_is_not_closed(file: int) -> None:
    """What is no descriptor to send is none to close either, nor to own."""
    makes: list[Callable[[int], Any]] = [Decimal, Fraction, OnlyInt, Trunc, float]
    for make in makes:
        with pytest.raises(TypeError):
            fdpass_c.close_fds([make(file)])
        with pytest.raises(TypeError):
            Descriptors([make(file)])
    assert is_open(file)


@by_send
def test_several_numbers(send: Send, make_files: MakeFiles, stream: Pair) -> None:
    """What is an int by __index__ goes by that, everything else by fileno(), in every call."""
    right, wrong = make_files(2)
    makes: list[Callable[[int, int], Any]] = [IntAndFileno, IndexAndOther, subclass]
    for make in makes:
        send(stream[0], make(right, wrong))
        received = sent_first(stream[1])
        try:
            assert identity(received) == identity(right)
        finally:
            os.close(received)
        drain(stream[1])


class UsesTheChannel:
    """Its fileno() sends and receives on the channel that it is sent over."""

    def __init__(self, fd: int, channel: Channel, other: Channel) -> None:
        self.fd = fd
        self.channel = channel
        self.other = other

    def fileno(self) -> int:
        self.channel.send(b"from inside", [self.fd])
        self.other.send(b"to inside")
        assert take(self.channel.recv()) == (b"to inside", [])
        return self.fd


@pytest.mark.parametrize(
    "use",
    [
        lambda channel, fd: channel.send(b"x", [fd]),
        lambda channel, fd: channel.send_many([b"x"], [fd]),
        lambda channel, fd: channel.send_many([b"x"], [[fd]]),
        lambda channel, fd: channel.send_many([bytearray(1)], [fd]),
    ],
)
def test_element_that_uses_the_channel(use: Callable[[Channel, Any], object], file: int) -> None:
    """A fileno() that uses the channel it is sent over waits for nobody: its own comes first."""
    with channels() as (sender, receiver):
        use(sender, UsesTheChannel(file, sender, receiver))
        assert take(receiver.recv()) == (b"from inside", [identity(file)])
        assert len(take(receiver.recv())[1]) == 1


class Liar(bytes):
    """Bytes that say to be as many as they are not."""

    told = 0

    def __len__(self) -> int:
        return self.told


class LyingArray(bytearray):
    """The same, that can change."""

    told = 0

    def __len__(self) -> int:
        return self.told


class LyingRow(list[int]):
    """Descriptors, too."""

    told = 0

    def __len__(self) -> int:
        return self.told


def lie(kind: Any, content: Iterable[Any], told: int) -> Any:
    made = kind(content)
    made.told = told
    return made


@pytest.mark.parametrize(("kind", "wrap"), [(Liar, lambda data: data), (LyingArray, memoryview)])
def test_lengths_that_lie(
    kind: type, wrap: Callable[[Any], Any], seqpacket: Pair, make_files: MakeFiles
) -> None:
    """What len() says of a payload or of a row counts for nothing, also where the sum is right."""
    files = make_files(3)

    def make() -> list[Any]:
        return [wrap(lie(kind, b"aaa", 1)), wrap(lie(kind, b"b", 3)), wrap(lie(kind, b"cc", 2))]

    rows = [lie(LyingRow, files[:1], 2), lie(LyingRow, files[1:], 1), []]
    wanted = [
        (b"aaa", [identity(files[0])]),
        (b"b", [identity(fd) for fd in files[1:]]),
        (b"cc", []),
    ]
    fdpass_c.send_many(seqpacket[0], make(), rows)
    assert take_batch(fdpass_c.recv_many(seqpacket[1], maxfds=2)) == wanted
    fdpass_c.send_many(seqpacket[0], make(), files)
    batch = take_batch(fdpass_c.recv_many(seqpacket[1]))
    assert [payload for payload, _ in batch] == [b"aaa", b"b", b"cc"]
    with channels() as (sender, receiver):
        sender.send_many(make(), rows)
        assert [take(receiver.recv()) for _ in range(3)] == wanted
        sender.send_many(make(), files)
        assert [take(receiver.recv())[0] for _ in range(3)] == [b"aaa", b"b", b"cc"]
        for payload in make():
            sender.send(payload, files)
            assert take(receiver.recv())[0] == bytes(memoryview(payload))
    assert fdpass_c.send_fds(seqpacket[0], make(), files[:1]) == 6
    assert take_batch(fdpass_c.recv_many(seqpacket[1])) == [(b"aaabcc", [identity(files[0])])]
    fdpass_c.send_fd(seqpacket[0], files[0], make()[0])
    assert take_batch(fdpass_c.recv_many(seqpacket[1])) == [(b"aaa", [identity(files[0])])]


class Growing(list[bytes]):
    """A sequence that says to have fewer elements than it has."""

    def __len__(self) -> int:
        return 1


@pytest.mark.thread_unsafe
def test_number_zero() -> None:
    """In a program without a standard input, 0 is the number of a socket like any other."""

    def receive() -> None:
        os.close(0)
        left, right = socket.socketpair()
        assert left.fileno() == 0
        with Channel(left) as channel, right:
            channel.settimeout(0)
            with pytest.raises(BlockingIOError):
                channel.recv()
        left, right = socket.socketpair()
        ours = left.dup()
        left.close()
        with ours, right:
            fdpass_c.send_many(right, [b"x"] * 3, [1, 1, 1])
            calls: list[Callable[[], int | None]] = [
                lambda: fdpass_c.recv_fds(ours, 1, 1)[1][0],
                lambda: fdpass_c.recv_fd(ours, 1)[1].take(),
                lambda: fdpass_c.recv_many(ours, 1, 1).fds.take(),
                lambda: fdpass_c.peer_pidfd(ours),
            ]
            for find in calls:
                fd = find()
                assert fd in (0, None)  # Not every system has a pidfd for it.
                if fd is not None:
                    os.close(fd)

    run_in_child(receive)


class OldSequence:
    """Can be iterated because its positions can be read, as before there was __iter__."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds

    def __getitem__(self, position: int) -> int:
        return self._fds[position]


def test_old_sequence(file: int, stream: Pair) -> None:
    left, right = stream
    fds: Any = OldSequence(file, file)
    fdpass_c.send_fds(left, [b"x"], fds)
    with Descriptors(socket.recv_fds(right, 1, 10)[1]) as received:
        assert [*map(identity, received)] == [identity(file)] * 2


def test_sequences_that_lie(seqpacket: Pair, make_files: MakeFiles) -> None:
    """What len() says of the payloads counts for nothing either."""
    files = make_files(3)
    payloads = Growing([b"a", b"b", b"c"])
    assert fdpass_c.send_many(seqpacket[0], payloads, files) == 3
    assert len(take_batch(fdpass_c.recv_many(seqpacket[1]))) == 3
    with channels() as (sender, receiver):
        assert sender.send_many(payloads, files) == 3
        assert [take(receiver.recv())[0] for _ in range(3)] == [b"a", b"b", b"c"]
        with pytest.raises(ValueError, match="3 payloads"):
            sender.send_many(payloads, files[:1])
