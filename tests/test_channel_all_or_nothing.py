"""A message of any size arrives whole or, after an error, not at all; nothing of it stays open."""

import errno
import itertools
import os
import signal
import socket
from functools import partial

import pytest

import fdpass_c
from fdpass_c import Channel
from fdpass_c.channel import end_of
from support.channels import channels, raw_pair
from support.descriptors import MakeFiles, identities, identity, repeat
from support.frames import NEXT, WITHDRAWN, first, one, pack
from support.marks import linux_only
from support.messages import take, take_batch
from support.processes import become_nobody, fork, run_in_child
from support.sockets import Pair
from support.tables import many_allowed, table_of
from support.threads import beside

TYPES = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]
CLOSED = 1_000_000_000
"""A descriptor that is not open."""


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("kind", TYPES)
def test_ten_thousand_descriptors(kind: socket.SocketKind, make_files: MakeFiles) -> None:
    """One send of 10,000 descriptors is one message of 10,000, in order."""
    files = make_files(5)
    sent = repeat(files, 10_000)
    with table_of(20_000), channels(kind) as (sender, receiver):
        with beside(lambda: sender.send(b"all of them", sent)):
            payload, owner = receiver.recv()
        with owner:
            assert payload == b"all of them"
            assert identities([*owner]) == repeat_of(files, 10_000)


def repeat_of(files: list[int], count: int) -> list[tuple[int, int]]:
    known = identities(files)
    return [known[position % len(known)] for position in range(count)]


def test_large_payload() -> None:
    """A payload of max_payload, 16 MiB, arrives in one piece."""
    data = os.urandom(1 << 12) * (1 << 12)
    with channels() as (sender, receiver):
        with beside(lambda: sender.send(data)):
            payload, owner = receiver.recv()
        assert len(payload) == 1 << 24
        assert payload in (data,)
        assert len(owner) == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("many", "kind"),
    [(False, socket.SOCK_STREAM), (False, socket.SOCK_SEQPACKET), (True, socket.SOCK_STREAM)],
)
def test_a_closed_descriptor_in_the_middle(many: bool, kind: socket.SocketKind, file: int) -> None:
    """EBADF late in a large message: nothing of it arrives, and the channel goes on."""
    fds = [file] * 700 + [CLOSED] + [file] * 700

    def send(sender: Channel) -> None:
        if many:
            sender.send_many([b"whole", b"large", b"behind"], [[file] * 260, fds, [file]])
        else:
            sender.send(b"large", fds)

    with many_allowed(3000), channels(kind) as (sender, receiver):
        sender.send(b"before", [file])
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            send(sender)
        assert caught.value.errno == errno.EBADF
        progress = caught.value.progress  # type: ignore[attr-defined]
        assert progress == fdpass_c.Progress(1 if many else 0, 0)
        sender.send(b"after", [file])
        received = [take(receiver.recv()) for _ in range(3 if many else 2)]
        assert sender.unsent == 0
    this = identity(file)
    whole = [(b"whole", [this] * 260)] if many else []
    assert received == [(b"before", [this]), *whole, (b"after", [this])]


def test_a_closed_descriptor_in_the_only_frame(file: int) -> None:
    """EBADF in a batch that fits one frame: progress says that none of its messages arrives."""
    with channels() as (sender, receiver):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            sender.send_many([b"one", b"two"], [file, CLOSED])
        assert caught.value.progress == fdpass_c.Progress(0, 0)  # type: ignore[attr-defined]
        sender.send(b"after")
        assert receiver.recv()[0] == b"after"


def test_a_closed_descriptor_in_a_later_frame(file: int) -> None:
    """EBADF in a long batch: the messages of earlier frames arrive, as progress says."""
    fds = [file] * 1000
    fds[600] = CLOSED
    with channels() as (sender, receiver):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            sender.send_many([b"%d" % number for number in range(1000)], fds)
        done = caught.value.progress.messages  # type: ignore[attr-defined]
        assert 0 < done <= 600
        sender.send(b"after")
        received = [take(receiver.recv())[0] for _ in range(done + 1)]
    assert received == [*(b"%d" % number for number in range(done)), b"after"]


@pytest.mark.thread_unsafe
@linux_only
def test_too_many_in_flight(stream: Pair) -> None:
    """ETOOMANYREFS in the middle: nothing arrives, and a message that is allowed goes on."""

    def child() -> None:
        become_nobody()
        with table_of(512), Channel(stream[0]) as sender:
            with pytest.raises(OSError, match="in flight") as caught:
                sender.send(b"large", [0] * 2000)
            assert caught.value.errno == errno.ETOOMANYREFS
            assert caught.value.progress == (0, 0)  # type: ignore[attr-defined]
            sender.send(b"after")
            assert sender.unsent == 0

    with table_of(4000), Channel(stream[1]) as receiver:
        run_in_child(child)
        assert take(receiver.recv()) == (b"after", [])


@pytest.mark.thread_unsafe
@linux_only
def test_waits_while_too_many_are_in_flight(stream: Pair) -> None:
    """Where it is told to, a send goes on as the receiver takes; or its time runs out."""

    def child() -> None:
        become_nobody()
        with table_of(512), Channel(stream[0]) as sender:
            sender.wait_in_flight = True
            sender.send(b"large", [0] * 2000)
            sender.settimeout(0.05)
            with pytest.raises(TimeoutError):
                sender.send(b"nobody takes it", [0] * 2000)
            sender.setblocking(False)
            with pytest.raises(BlockingIOError):
                sender.send(b"nobody takes it", [0] * 2000)

    with table_of(4500), Channel(stream[1]) as receiver:
        received = []

        def receive() -> None:
            payload, owner = receiver.recv()
            with owner:
                received.append((payload, len(owner)))

        with beside(receive):
            run_in_child(child)
        assert received == [(b"large", 2000)]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("count", [0, 2000], ids=["bytes", "descriptors"])
def test_the_sender_is_killed_in_the_middle(count: int, file: int, stream: Pair) -> None:
    """A sender killed inside a large message: ProtocolError, and no descriptor stays."""
    ours, theirs = stream
    with table_of(4000):
        told, tell = os.pipe()
        pid = fork()
        if pid == 0:
            try:
                ours.close()
                theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
                channel = Channel(theirs)
                channel.send(b"whole")
                os.write(tell, b"x")
                channel.send(bytes(10_000_000), [file] * count)
            finally:
                os._exit(1)
        theirs.close()
        with Channel(ours) as receiver:
            assert os.read(told, 1) == b"x"
            assert receiver.recv()[0] == b"whole"
            receiver.setblocking(False)
            # Until pieces of the large one are here.
            while not end_of(receiver).inbox.large.is_open:
                with pytest.raises(BlockingIOError):
                    receiver.recv()
            os.kill(pid, signal.SIGKILL)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
            for _ in range(2):
                with pytest.raises(fdpass_c.ProtocolError, match="inside a message"):
                    receiver.recv()
        os.close(told)
        os.close(tell)


def test_a_payload_beyond_the_limit(file: int) -> None:
    """max_payload is refused, in one frame and in many, and everything is closed."""
    for size, receive in itertools.product((101, 100_000), ("recv", "recv_many")):
        with channels(max_payload=100) as (sender, receiver):
            sender.send(bytes(100), [file])
            assert len(take(receiver.recv())[0]) == 100
            sender.send(bytes(size), [file])
            with pytest.raises(fdpass_c.ProtocolError, match=f"{size} bytes, max_payload is 100"):
                getattr(receiver, receive)()
            with pytest.raises(fdpass_c.ProtocolError, match="max_payload is 100"):
                getattr(receiver, receive)()


def test_descriptors_beyond_the_limit(file: int) -> None:
    """max_fds is refused, in one frame and in many, and everything is closed."""
    for count, receive in itertools.product((3, 300), ("recv", "recv_many")):
        with channels(max_fds=2) as (sender, receiver):
            sender.send_many([b"", b""], [[file] * 2, [file]])
            assert len(take_batch(receiver.recv_many())) == 2
            sender.send(b"", [file] * count)
            with pytest.raises(fdpass_c.ProtocolError, match=f"{count} descriptors, max_fds is 2"):
                getattr(receiver, receive)()
            assert receiver.pending == 0


def test_limits_count_each_message(file: int) -> None:
    """Many messages within the limits may together be beyond them."""
    with channels(max_payload=10, max_fds=1) as (sender, receiver):
        sender.send_many([bytes(10)] * 100, [file] * 100)
        assert len(take_batch(receiver.recv_many())) == 100
        sender.send_many([bytes(10), bytes(11)], [file] * 2)
        with pytest.raises(fdpass_c.ProtocolError, match="11 bytes"):
            receiver.recv_many()


def test_a_forged_size_allocates_nothing() -> None:
    """A large message's size is checked before anything of it is allocated."""
    for payload in (2**40, 2**64 - 1):
        with raw_pair() as (peer, channel):
            peer.send(first(payload, 0, b"x"))
            with pytest.raises(fdpass_c.ProtocolError, match=f"{payload} bytes"):
                channel.recv()


@pytest.mark.thread_unsafe
def test_does_not_fit_a_non_blocking_send(file: int) -> None:
    """BlockingIOError for a message larger than the buffer: it never arrives, and one that fits
    does."""
    with channels() as (sender, receiver), table_of(8000):
        sender.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            sender.send(bytes(10_000_000), [file] * 1000)
        assert caught.value.progress == (0, 0)  # type: ignore[attr-defined]
        assert sender.unsent > 0
        with pytest.raises(BlockingIOError):
            sender.send(b"nor this")
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv()
        sender.flush()
        assert sender.unsent == 0
        sender.send(b"after", [file])
        assert take(receiver.recv()) == (b"after", [identity(file)])


def test_non_blocking_send_many() -> None:
    """What progress counts arrives whole, also the frame that was begun; the rest does not."""
    payloads = [b"%06d" % number for number in range(200_000)]
    with channels() as (sender, receiver):
        sender.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            sender.send_many(payloads)
        done = caught.value.progress.messages  # type: ignore[attr-defined]
        assert 0 < done < len(payloads)
        received: list[bytes] = []
        receiver.setblocking(False)
        while len(received) < done:
            try:
                received += receiver.recv_many(100_000).payloads
            except BlockingIOError:
                sender.flush()
        sender.send(b"after")
        assert receiver.recv()[0] == b"after"
    assert received == payloads[:done]


def test_withdrawn_between_two_large_ones(file: int) -> None:
    """A large message that was withdrawn leaves nothing behind for the next large one."""
    with raw_pair() as (peer, channel):
        socket.send_fds(peer, [first(10, 3, b"12345", 2)], [file, file])
        peer.send(pack(WITHDRAWN))
        socket.send_fds(peer, [first(4, 1, b"ab", 1)], [file])
        peer.send(pack(NEXT, body=b"cd"))
        assert take(channel.recv()) == (b"abcd", [identity(file)])


def test_large_ones_of_nothing(file: int) -> None:
    """A large message may be as small as it likes, and end in descriptors alone."""
    with raw_pair() as (peer, channel):
        peer.send(first(0, 0))
        socket.send_fds(peer, [first(1, 2, b"x", 1)], [file])
        socket.send_fds(peer, [pack(NEXT, 0, 1)], [file])
        assert take(channel.recv()) == (b"", [])
        assert take(channel.recv()) == (b"x", [identity(file)] * 2)


def test_closing_inside_a_large_message(file: int) -> None:
    """A receiver that closes with half a large message and unread ones closes all of it."""
    with raw_pair() as (peer, channel):
        channel.setblocking(False)
        socket.send_fds(peer, [first(10, 300, b"1234", 253)], [file] * 253)
        with pytest.raises(BlockingIOError):
            channel.recv()
        socket.send_fds(peer, [one(b"", 2)], [file] * 2)


def test_unread_messages_are_closed(file: int) -> None:
    """Closing a channel closes what came with messages that nobody took."""
    with channels() as (sender, receiver):
        sender.send_many([b""] * 100, [file] * 100)
        sender.send(b"", [file] * 300)
        with receiver.recv()[1] as fds:
            assert receiver.pending == 99
            receiver.close()
            assert receiver.pending == 0
            assert identities([*fds]) == [identity(file)]


def test_a_forged_number_receives_nothing() -> None:
    """A large message's number of descriptors is checked before any of them is received."""
    with raw_pair() as (peer, channel):
        peer.send(first(0, 65_537))
        with pytest.raises(fdpass_c.ProtocolError, match="65537 descriptors, max_fds is 65536"):
            channel.recv()


def test_around_the_largest_frame(file: int) -> None:
    """A payload at the edge of what one frame takes arrives either way."""
    for size, count in itertools.product(
        (65_514, 65_515, 65_516, 65_520, 65_521), (0, 1, 2, 253, 254)
    ):
        data = os.urandom(size)
        with channels() as (sender, receiver):
            for _ in range(2):
                with beside(partial(sender.send, data, [file] * count)):
                    payload, fds = take(receiver.recv())
                assert payload in (data,)
                assert len(fds) == count
                with beside(partial(sender.send_many, [data], [[file] * count])):
                    payload, fds = take(receiver.recv())
                assert payload in (data,)
                assert len(fds) == count
