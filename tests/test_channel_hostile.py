"""Whatever a peer sends that is not the protocol: a typed error, everything closed, for good."""

import os
import socket
import struct
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fdpass_c
from fdpass_c import Channel, ProtocolError
from support.channels import raw_pair
from support.descriptors import identity, list_fds
from support.frames import FIRST, NEXT, ONE_EACH, PACKED, SAME_LENGTH, WITHDRAWN, first, one, pack
from support.marks import linux_only
from support.messages import take
from support.sockets import set_option
from support.tables import table_of

SO_PASSRIGHTS = 83

Packet = tuple[bytes, int]
"""Bytes, and how many descriptors go with their first."""


def lengths(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def counts(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}H", *numbers)


MALFORMED = "something other than a frame"
MISSING = "without all of the descriptors"
SURPLUS = "no frame announced"

# name: (packets, what the error says)
FORGERIES: dict[str, tuple[list[Packet], str]] = {
    "magic": ([(pack(messages=1, body=lengths(0), magic=b"FDQ\1"), 0)], MALFORMED),
    "version": ([(pack(messages=1, body=lengths(0), magic=b"FDP\2"), 0)], MALFORMED),
    "first byte": ([(b"G", 0)], MALFORMED),
    "second byte": ([(b"FX", 0)], MALFORMED),
    "third byte": ([(b"FDX", 0)], MALFORMED),
    "fourth byte": ([(b"FDP\2", 0)], MALFORMED),
    "text": ([(b"GET / HTTP/1.1\r\n\r\n", 0)], MALFORMED),
    "kind 0": ([(pack(0, messages=1, body=lengths(0)), 0)], MALFORMED),
    "kind 5": ([(pack(5), 0)], MALFORMED),
    "unknown flag": ([(pack(PACKED, 4, 0, 1, lengths(0)), 0)], MALFORMED),
    "flags of a first piece": ([(pack(FIRST, 1, 0, 0, struct.pack("<QI", 9, 0)), 0)], MALFORMED),
    "messages of a first piece": ([(pack(FIRST, 0, 0, 1, struct.pack("<QI", 9, 0)), 0)], MALFORMED),
    "short first piece": ([(pack(FIRST, body=bytes(11)), 0)], MALFORMED),
    "no messages": ([(pack(messages=0), 0)], MALFORMED),
    "1025 messages": ([(pack(messages=1025, body=lengths(*[0] * 1025)), 0)], MALFORMED),
    "2**32-1 messages": ([(pack(messages=2**32 - 1, body=lengths(0)), 0)], MALFORMED),
    "2**32-1 of one length": (
        [(pack(PACKED, SAME_LENGTH, 0, 2**32 - 1, lengths(0)), 0)],
        MALFORMED,
    ),
    "254 descriptors": ([(pack(PACKED, 0, 254, 1, lengths(0) + counts(254)), 253)], MALFORMED),
    "65535 descriptors": ([(pack(PACKED, 0, 65535, 1, lengths(0) + counts(9)), 9)], MALFORMED),
    "body of 65521": ([(pack(messages=1, body=lengths(65517), size=65521), 0)], MALFORMED),
    "body of 2**32-1": ([(pack(messages=1, body=lengths(0), size=2**32 - 1), 0)], MALFORMED),
    "no table": ([(pack(messages=1), 0)], MALFORMED),
    "half a table": ([(pack(messages=2, body=lengths(0) + b"\0\0"), 0)], MALFORMED),
    "length too long": ([(pack(messages=1, body=lengths(6) + b"12345"), 0)], MALFORMED),
    "length too short": ([(pack(messages=1, body=lengths(4) + b"12345"), 0)], MALFORMED),
    "length 2**32-1": ([(pack(messages=1, body=lengths(2**32 - 1) + b"12345"), 0)], MALFORMED),
    "lengths that wrap": (
        [(pack(messages=2, body=lengths(2**32 - 1, 6) + b"12345"), 0)],
        MALFORMED,
    ),
    "one length that wraps": (
        [(pack(PACKED, SAME_LENGTH, 0, 4, lengths(2**30) + b""), 0)],
        MALFORMED,
    ),
    "counts too many": ([(pack(PACKED, 0, 1, 1, lengths(0) + counts(2)), 1)], MALFORMED),
    "counts too few": ([(pack(PACKED, 0, 2, 1, lengths(0) + counts(1)), 2)], MALFORMED),
    "counts that wrap": (
        [(pack(PACKED, 0, 1, 2, lengths(0, 0) + counts(65535, 2)), 1)],
        MALFORMED,
    ),
    "one each, but not as many": ([(pack(PACKED, ONE_EACH, 1, 2, lengths(0, 0)), 1)], MALFORMED),
    "one each of none": ([(pack(PACKED, ONE_EACH, 0, 1, lengths(0)), 0)], MALFORMED),
    "254 of one length, one each": (
        [(pack(PACKED, SAME_LENGTH | ONE_EACH, 254, 254, lengths(0)), 253)],
        MALFORMED,
    ),
    "counts without descriptors": (
        [(pack(messages=2, body=lengths(0, 0) + counts(0, 0)), 0)],
        MALFORMED,
    ),
    "counts beside one each": (
        [(pack(PACKED, ONE_EACH, 2, 2, lengths(0, 0) + counts(1, 1)), 2)],
        MALFORMED,
    ),
    "lengths beside the one": ([(pack(PACKED, SAME_LENGTH, 0, 2, lengths(0, 0)), 0)], MALFORMED),
    "next without first": ([(pack(NEXT, body=b"x"), 0)], MALFORMED),
    "next with descriptors without first": ([(pack(NEXT, 0, 2, 0, b"x"), 2)], MALFORMED),
    "withdrawn without first": ([(pack(WITHDRAWN), 0)], MALFORMED),
    "empty next": ([(first(9, 0), 0), (pack(NEXT), 0)], MALFORMED),
    "withdrawn with a body": ([(first(9, 0), 0), (pack(WITHDRAWN, body=b"x"), 0)], MALFORMED),
    "withdrawn with a descriptor": ([(first(9, 1), 0), (pack(WITHDRAWN, 0, 1), 1)], MALFORMED),
    "first inside": ([(first(9, 3, b"x", 2), 2), (first(9, 1, b"x", 1), 1)], MALFORMED),
    "packed inside": ([(first(9, 3, b"x", 2), 2), (one(b"x", 1), 1)], MALFORMED),
    "flags of a next piece": ([(first(9, 0), 0), (pack(NEXT, 1, body=b"x"), 0)], MALFORMED),
    "messages of a next piece": ([(first(9, 0), 0), (pack(NEXT, 0, 0, 1, b"x"), 0)], MALFORMED),
    "flags of a withdrawal": ([(first(9, 0), 0), (pack(WITHDRAWN, 2), 0)], MALFORMED),
    "messages of a withdrawal": ([(first(9, 0), 0), (pack(WITHDRAWN, messages=1), 0)], MALFORMED),
    "withdrawn twice": ([(first(9, 0), 0), (pack(WITHDRAWN), 0), (pack(WITHDRAWN), 0)], MALFORMED),
    "next after withdrawn": (
        [(first(9, 0), 0), (pack(WITHDRAWN), 0), (pack(NEXT, body=b"x"), 0)],
        MALFORMED,
    ),
    "withdrawn after the last": ([(first(2, 0, b"xy"), 0), (pack(WITHDRAWN), 0)], MALFORMED),
    "withdrawn with a descriptor that it hides": (
        [(first(9, 1), 0), (pack(WITHDRAWN), 1)],
        SURPLUS,
    ),
    "next with a descriptor that it hides": (
        [(first(9, 1), 0), (pack(NEXT, body=b"x"), 1)],
        SURPLUS,
    ),
    "next without its descriptor": ([(first(9, 1), 0), (pack(NEXT, 0, 1), 0)], MISSING),
    "first of nothing beyond its totals": ([(first(0, 0, b"x"), 0)], MALFORMED),
    "first beyond its totals": ([(first(1, 0, b"xy"), 0)], MALFORMED),
    "first with more descriptors": ([(first(1, 1, b"", 2), 2)], MALFORMED),
    "next beyond the bytes": ([(first(2, 2, b"x", 1), 1), (pack(NEXT, body=b"xy"), 0)], MALFORMED),
    "next beyond the descriptors": (
        [(first(2, 2, b"x", 1), 1), (pack(NEXT, 0, 2), 2)],
        MALFORMED,
    ),
    "next after the last": ([(first(2, 0, b"xy"), 0), (pack(NEXT, body=b"x"), 0)], MALFORMED),
    "no descriptors at all": ([(one(b"", 1), 0)], MISSING),
    "a descriptor short": ([(one(b"12345", 10), 9)], MISSING),
    "an unannounced descriptor": ([(one(b"12345"), 1)], SURPLUS),
    "a surplus descriptor": ([(one(b"12345", 10), 11)], SURPLUS),
    "a surplus of 252": ([(one(b"12345", 1), 253)], SURPLUS),
    "a flood in a header": ([(one(b"", 1)[at : at + 1], 253) for at in range(3)], SURPLUS),
    "a flood in a body": (
        [(one(b"12345", 1)[:16], 1), *((b"x", 253) for _ in range(3))],
        SURPLUS,
    ),
    "a flood of nothing": ([(b"F", 253), (b"D", 253), (b"P", 253)], SURPLUS),
}


def send_all(peer: socket.socket, packets: list[Packet], file: int) -> None:
    for data, fds in packets:
        try:
            socket.send_fds(peer, [data], [file] * fds)
        except BrokenPipeError:
            return


def receive(channel: Channel) -> list[tuple[bytes, int]]:
    """What comes until an error, which is raised; its descriptors are closed."""
    received = []
    while True:
        payload, fds = channel.recv()
        received.append((payload, len(fds)))
        fds.close()


def assert_poisoned(channel: Channel, text: str) -> None:
    """Every call says the same, no descriptor is left, and closing is fine."""
    calls: list[Callable[[], object]] = [
        channel.recv,
        channel.recv_many,
        lambda: next(iter(channel)),
        lambda: channel.send(b"x"),
        lambda: channel.send(b"x", [0]),
        lambda: channel.send_many([b"x", b"y"], [0, 0]),
        lambda: channel.send_many([b"x", b"yz"]),
        channel.flush,
    ]
    for call in calls:
        with pytest.raises(ProtocolError, match=text):
            call()
    assert channel.pending == 0
    assert not channel.closed


def check_forged(name: str, kind: socket.SocketKind, file: int) -> None:
    packets, text = FORGERIES[name]
    with raw_pair(kind) as (peer, channel):
        before = list_fds()
        send_all(peer, packets, file)
        with pytest.raises(ProtocolError, match=text) as caught:
            receive(channel)
        assert "is closed" in str(caught.value)
        assert list_fds() == before
        assert_poisoned(channel, text)
        # Whatever comes later is not looked at.
        send_all(peer, [(one(b"fine", 1), 1)], file)
        assert_poisoned(channel, text)
        channel.close()
        channel.close()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", FORGERIES)
def test_forged(name: str, file: int) -> None:
    """Frames that are wrong in any one place poison the channel and leave nothing open."""
    check_forged(name, socket.SOCK_STREAM, file)


@pytest.mark.thread_unsafe
def test_forged_in_packets(file: int) -> None:
    """So they do where each comes as a packet of its own."""
    for name in FORGERIES:
        check_forged(name, socket.SOCK_SEQPACKET, file)


def test_peer_hears_of_it() -> None:
    """A violation ends the connection there and then, though the channel is still open."""
    with raw_pair() as (peer, channel):
        peer.sendall(b"rubbish")
        with pytest.raises(ProtocolError):
            channel.recv()
        assert peer.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            peer.send(b"more")


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 0.0])
def test_out_of_band(timeout: float | None) -> None:
    """A byte sent with MSG_OOB is a violation as any other, and keeps no receive waiting."""
    with raw_pair() as (peer, channel):
        channel.settimeout(timeout)
        try:
            peer.send(b"x", socket.MSG_OOB)
        except OSError as error:
            pytest.skip(f"no MSG_OOB: {error}")
        with pytest.raises(ProtocolError, match=MALFORMED):
            channel.recv()


@pytest.mark.thread_unsafe  # Beside other receives, one may bring a single frame.
@pytest.mark.parametrize("many", [False, True], ids=["recv", "recv_many"])
def test_good_messages_before_a_violation(many: bool, file: int) -> None:
    """What came whole before the violation is handed out first."""
    with raw_pair() as (peer, channel):
        peer.send(one(b"one") + one(b"two"))
        socket.send_fds(peer, [one(b"three", 1) + b"rubbish"], [file])
        if many:
            with channel.recv_many() as batch:
                assert batch.payloads == [b"one", b"two", b"three"]
                assert [len(fds) for _, fds in batch] == [0, 0, 1]
        else:
            got = [take(channel.recv()) for _ in range(3)]
            assert got == [(b"one", []), (b"two", []), (b"three", [identity(file)])]
        assert_poisoned(channel, MALFORMED)


def test_half_a_frame(file: int) -> None:
    """A peer that closes inside a frame: ProtocolError, and its descriptors are closed."""
    for fds, size in product((0, 2), (1, 15, 16, 20, 24)):
        with raw_pair() as (peer, channel):
            send_all(peer, [(one(b"12345", fds)[:size], fds)], file)
            peer.close()
            with pytest.raises(ProtocolError, match="inside a message"):
                channel.recv()
            assert_poisoned(channel, "inside a message")


def test_half_a_large_message(file: int) -> None:
    """A peer that closes, or ends its sending, between the pieces: ProtocolError too."""
    for fds in (0, 2):
        with raw_pair() as (peer, channel):
            send_all(peer, [(first(9, 300, b"x", fds), fds)], file)
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(ProtocolError, match="inside a message"):
                channel.recv()
            assert_poisoned(channel, "inside a message")


def test_empty_packets(file: int) -> None:
    """A packet of no bytes is neither a frame nor taken for the end of the connection."""
    for inside, fds in product((False, True), (0, 3)):
        with raw_pair(socket.SOCK_SEQPACKET) as (peer, channel):
            if inside:
                peer.send(first(9, 0))
            send_all(peer, [(b"", fds)], file)
            with pytest.raises(ProtocolError, match=MALFORMED):
                channel.recv()
            assert_poisoned(channel, MALFORMED)


@linux_only
@pytest.mark.thread_unsafe
@pytest.mark.parametrize("full", [False, True])
def test_empty_packet_before_the_last(full: bool, file: int) -> None:
    """An empty packet is not taken for the end while another is queued behind it."""
    with (
        table_of(700 if full else 1024),
        raw_pair(socket.SOCK_SEQPACKET) as (peer, channel),
    ):
        send_all(peer, [(one(b"first", 1), 1), (b"", 0), (one(b"last", 1), 1)], file)
        peer.close()
        assert take(channel.recv()) == (b"first", [identity(file)])
        with pytest.raises(ProtocolError, match=MALFORMED):
            channel.recv()
        assert_poisoned(channel, MALFORMED)


def test_descriptors_too_late(file: int) -> None:
    """Descriptors go with the first byte of their frame; with a later one they are missing."""
    data = one(b"12345", 10)
    with raw_pair(socket.SOCK_SEQPACKET) as (peer, channel):
        send_all(peer, [(data[:16], 0), (data[16:], 10)], file)
        with pytest.raises(ProtocolError, match=MISSING):
            channel.recv()
        assert_poisoned(channel, MISSING)


def test_oversized_packet(file: int) -> None:
    """A packet longer than a frame can be is a violation, not a truncated frame."""
    with raw_pair(socket.SOCK_SEQPACKET) as (peer, channel):
        send_all(peer, [(one(bytes(65_507 + 5), 1) + bytes(100), 1)], file)
        with pytest.raises(ProtocolError, match=MALFORMED):
            channel.recv()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_largest_frames(kind: socket.SocketKind, file: int) -> None:
    """Frames as large as they may be, in every dimension, are fine."""
    full = pack(PACKED, 0, 253, 1024, lengths(*[0] * 1024) + counts(253, *[0] * 1023))
    single = one(bytes(65_520 - 6), 1)
    assert len(single) == 65_536
    with raw_pair(kind) as (peer, channel):
        send_all(peer, [(full, 253), (single, 1), (pack(NEXT, body=b"x"), 0)], file)
        with channel.recv_many(2000) as batch:
            assert len(batch) == 1024
            assert len(batch.fds) == 253
            assert len(batch[0][1]) == 253
        with channel.recv()[1] as fds:
            assert len(fds) == 1
        with pytest.raises(ProtocolError, match=MALFORMED):
            channel.recv()


def test_byte_by_byte(file: int) -> None:
    """A frame may come a byte at a time; its descriptors come with the first."""
    data = one(b"hello", 2)
    with raw_pair() as (peer, channel):
        channel.setblocking(False)
        send_all(peer, [(data[:1], 2)], file)
        for at in range(1, len(data)):
            with pytest.raises(BlockingIOError):
                channel.recv()
            peer.send(data[at : at + 1])
        assert take(channel.recv()) == (b"hello", [identity(file)] * 2)


@pytest.mark.parametrize("packets", [[(one(b"x", 1), 1)], [(one(b"x"), 1)], [(first(1, 2), 0)]])
def test_unwanted_descriptors(packets: list[Packet], file: int) -> None:
    """With receive_fds=False descriptors that come all the same, or are announced, are closed."""
    with raw_pair(receive_fds=False) as (peer, channel):
        # As on a kernel without the option.
        set_option(channel._sock, SO_PASSRIGHTS, 1)
        peer.send(one(b"fine"))
        assert take(channel.recv()) == (b"fine", [])
        send_all(peer, packets, file)
        with pytest.raises(ProtocolError, match="receive_fds=False"):
            channel.recv()
        assert_poisoned(channel, "receive_fds=False")


def test_refused_at_the_sender(file: int) -> None:
    """Where the kernel can refuse descriptors, the sender is told and the channel goes on."""
    with raw_pair(receive_fds=False) as (raw, channel):
        set_option(channel._sock, SO_PASSRIGHTS, 0)
        with Channel(raw) as peer:
            for fds in ([file], [file] * 300):
                with pytest.raises(PermissionError, match="may refuse descriptors"):
                    peer.send(b"", fds)
            with pytest.raises(PermissionError, match="may refuse descriptors"):
                peer.send_many([b""], [file])
            peer.send(b"fine")
            assert take(channel.recv()) == (b"fine", [])
            channel.send(b"back", [file])
            assert take(peer.recv()) == (b"back", [identity(file)])


def test_other_control_data(file: int) -> None:
    """Credentials and pidfds that socket options add are no part of the protocol, and closed."""
    with raw_pair() as (peer, channel):
        set_option(channel._sock, socket.SO_PASSCRED, 1)
        set_option(channel._sock, 76, 1)  # SO_PASSPIDFD, Linux 6.5
        send_all(peer, [(one(b"x", 253), 253), (one(b"y"), 0)], file)
        assert len(take(channel.recv())[1]) == 253
        assert take(channel.recv()) == (b"y", [])


def mutate(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    changed = bytearray(data)
    for at, value in changes:
        changed[at % len(changed)] = value
    return bytes(changed[: len(changed) - cut % 3])


def drain(channel: Channel, many: bool) -> None:
    while True:
        if many:
            channel.recv_many().close()
        else:
            take(channel.recv())


GOOD = [
    one(b"hello", 2),
    pack(PACKED, SAME_LENGTH | ONE_EACH, 3, 3, lengths(4) + b"onetwo123456"[:12]),
    pack(PACKED, ONE_EACH, 2, 2, lengths(1, 2) + b"abb"),
    first(10, 4, b"12345", 2),
    pack(NEXT, 0, 2, 0, b"12345"),
    pack(WITHDRAWN),
]


@pytest.mark.thread_unsafe
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    frames=st.lists(st.sampled_from(GOOD), min_size=1, max_size=4),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 2),
    fds=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    many=st.booleans(),
)
@example(frames=GOOD[3:4], changes=[(25, 79)], cut=0, fds=[2] * 4, many=False)
def test_mutated(
    file: int,
    frames: list[bytes],
    changes: list[tuple[int, int]],
    cut: int,
    fds: list[int],
    many: bool,
) -> None:
    """Anything near a frame is a message, or a typed error; no descriptor is ever left."""
    before = list_fds()
    # What announces more than this process may open is another error, and a matter of its limit.
    with raw_pair(max_fds=500) as (peer, channel):
        for frame, count in zip(frames, fds, strict=False):
            socket.send_fds(peer, [mutate(frame, changes, cut)], [file] * count)
        peer.close()
        with pytest.raises((ProtocolError, fdpass_c.PeerClosedError)):
            drain(channel, many)
    assert list_fds() == before


def test_closed_by_the_peer_with_unread_messages(file: int) -> None:
    """A peer that closes without having read everything: what it sent comes, then the error."""
    with raw_pair() as (peer, channel):
        channel.send(b"never read", [file])
        send_all(peer, [(one(b"last", 1), 1)], file)
        peer.close()
        assert take(channel.recv()) == (b"last", [identity(file)])
        with pytest.raises(ConnectionResetError):
            channel.recv()
        with pytest.raises(fdpass_c.PeerClosedError):
            channel.recv()


def test_the_table_of_this_process_is_untouched() -> None:
    """Forged counts never close descriptors of this process."""
    standard = [os.fstat(fd) for fd in (0, 1, 2)]
    with raw_pair() as (peer, channel):
        peer.send(pack(PACKED, 0, 3, 1, lengths(0) + counts(3)))
        with pytest.raises(ProtocolError, match=MISSING):
            channel.recv()
    assert [os.fstat(fd) for fd in (0, 1, 2)] == standard
