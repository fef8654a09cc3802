"""At every limit of the system: a clear error, and nothing lost or left open in silence."""

import ctypes
import errno
import os
import resource
import socket
from functools import partial
from pathlib import Path

import pytest

import fdpass_c
from fdpass_c import Channel
from support.descriptors import Keep, MakeFiles, identities, identity
from support.marks import linux_only
from support.messages import take
from support.processes import become_nobody, run_in_child
from support.sockets import Pair, assert_empty
from support.tables import leave_free, open_numbers
from support.waiting import once_blocked

CTRUNC = socket.MSG_CTRUNC


def test_too_many_to_send(stream: Pair, file: int) -> None:
    """More than 253 descriptors is EINVAL, the text names the limit, and nothing is sent."""
    for count in (254, 255, 1000):
        with pytest.raises(OSError, match=rf"{count} descriptors.*at most 253") as caught:
            fdpass_c.send_fds(stream[0], [b"x"], [file] * count)
        assert caught.value.errno == errno.EINVAL
    assert_empty(stream[1])


def test_too_many_objects_to_send(stream: Pair) -> None:
    """The limit holds for objects with fileno() too."""
    with pytest.raises(OSError, match="at most 253"):
        fdpass_c.send_fds(stream[0], [b"x"], [stream[0]] * 254)
    assert_empty(stream[1])


def test_too_many_to_send_to_an_address(tmp_path: Path, file: int) -> None:
    """The limit holds for an unconnected socket too."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        pytest.raises(OSError, match="at most 253"),
    ):
        fdpass_c.send_fds(sender, [b"x"], [file] * 254, 0, str(tmp_path / "anywhere"))


def test_more_room_than_a_message_can_use(stream: Pair, make_files: MakeFiles) -> None:
    """maxfds beyond 253 counts as 253."""
    files = make_files(253)
    for maxfds in (254, 10_000, 2**31, 2**70):
        fdpass_c.send_fds(stream[0], [b"x"], files)
        fds = fdpass_c.recv_fds(stream[1], 1, maxfds)[1]
        assert identities(fds) == identities(files)
        fdpass_c.close_fds(fds)
        fdpass_c.send_fds(stream[0], [b"x"], files)
        with fdpass_c.recv_many(stream[1], maxfds=maxfds) as batch:
            assert identities([*batch.fds]) == identities(files)


def test_max_fds_is_the_kernel_s(stream: Pair, file: int) -> None:
    """MAX_FDS is what the kernel takes: one more is its own EINVAL."""
    socket.send_fds(stream[0], [b"x"], [file] * fdpass_c.MAX_FDS)
    with pytest.raises(OSError, match=r"[Ii]nvalid argument|[Tt]oo many"):
        socket.send_fds(stream[0], [b"x"], [file] * (fdpass_c.MAX_FDS + 1))


@linux_only
def test_surplus_of_a_call_that_waits(stream: Pair, make_files: MakeFiles) -> None:
    """A call that already waits keeps maxfds descriptors, closes the others, and says so."""
    files = make_files(3)
    with once_blocked(stream[1].fileno(), lambda: fdpass_c.send_fds(stream[0], [b"x"], files)):
        data, fds, flags, _ = fdpass_c.recv_fds(stream[1], 100, 2)
    assert (data, identities(fds), flags) == (b"x", identities(files[:2]), CTRUNC)
    fdpass_c.close_fds(fds)


LIMIT = 64


@pytest.mark.thread_unsafe
@linux_only
def test_full_descriptor_table(stream: Pair, make_files: MakeFiles) -> None:
    """With room for fewer, recv_fds hands over those that fit and flags MSG_CTRUNC."""
    files = make_files(5)

    def child(free: int) -> None:
        fdpass_c.send_fds(stream[0], [b"payload"], files)
        wanted = identities(files)[:free]
        leave_free(free)
        before = open_numbers()
        data, fds, flags, _ = fdpass_c.recv_fds(stream[1], 100, 253)
        assert data == b"payload"
        assert flags & CTRUNC
        assert identities(fds) == wanted
        fdpass_c.close_fds(fds)
        assert open_numbers() == before

    for free in (0, 1, 2, 4):
        run_in_child(partial(child, free))


@pytest.mark.thread_unsafe
@linux_only
def test_table_just_large_enough(stream: Pair, make_files: MakeFiles) -> None:
    """With room for exactly as many as were sent, nothing is flagged."""
    files = make_files(5)

    def child() -> None:
        fdpass_c.send_fds(stream[0], [b"x"], files)
        leave_free(5)
        _, fds, flags, _ = fdpass_c.recv_fds(stream[1], 100, 253)
        assert len(fds) == 5
        assert not flags & CTRUNC

    run_in_child(child)


@pytest.mark.thread_unsafe
@linux_only
def test_recv_fd_with_a_full_table(stream: Pair, file: int) -> None:
    """recv_fd raises TruncatedError that names the limit, and closes what did fit."""

    def child(sent: int, free: int) -> None:
        fdpass_c.send_fds(stream[0], [b"x"], [file] * sent)
        leave_free(free)
        before = open_numbers()
        with pytest.raises(fdpass_c.TruncatedError, match=r"RLIMIT_NOFILE.*all are closed"):
            fdpass_c.recv_fd(stream[1])
        assert open_numbers() == before

    for sent, free in ((1, 0), (2, 1), (2, 0), (5, 1)):
        run_in_child(partial(child, sent, free))


@pytest.mark.thread_unsafe
@linux_only
def test_sending_needs_no_room(stream: Pair, file: int) -> None:
    """A full table does not hinder sending."""

    def child() -> None:
        leave_free(0)
        fdpass_c.send_fds(stream[0], [b"x"], [file])

    run_in_child(child)


@pytest.mark.thread_unsafe
@linux_only
def test_too_many_in_flight(stream: Pair, file: int) -> None:
    """An ordinary user with RLIMIT_NOFILE descriptors in flight gets ETOOMANYREFS, explained."""

    def child() -> None:
        become_nobody()
        resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
        sent = 0
        with pytest.raises(OSError, match="in flight as RLIMIT_NOFILE allows") as caught:  # noqa: PT012
            while sent <= LIMIT + 20:
                fdpass_c.send_fds(stream[0], [b"x"], [file] * 10)
                sent += 10
        assert caught.value.errno == errno.ETOOMANYREFS

        while sent > 0:
            data, fds, flags, _ = fdpass_c.recv_fds(stream[1], 1, 10)
            assert (data, len(fds), flags) == (b"x", 10, 0)
            fdpass_c.close_fds(fds)
            sent -= 10
        assert_empty(stream[1])
        fdpass_c.send_fds(stream[0], [b"x"], [file])

    run_in_child(child)


@linux_only
@pytest.mark.parametrize(("kind", "count"), [("stream", 1), ("stream", 254), ("datagram", 1)])
def test_io_uring(
    kind: str, count: int, stream: Pair, datagram: Pair, file: int, keep: Keep
) -> None:
    """The kernel refuses a descriptor of io_uring, and nothing of its message stays."""
    pair = stream if kind == "stream" else datagram
    call = ctypes.CDLL(None, use_errno=True).syscall
    ring = call(425, 1, ctypes.create_string_buffer(120))  # io_uring_setup
    if ring < 0:
        pytest.skip(f"no io_uring: {os.strerror(ctypes.get_errno())}")
    keep([ring])
    if count == 1:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            fdpass_c.send_fd(pair[0], ring)
        assert_empty(pair[1])
    if pair[0].type == socket.SOCK_DGRAM:
        return
    with Channel(pair[0]) as sender, Channel(pair[1]) as receiver:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            sender.send(b"x", [file] * (count - 1) + [ring])
        sender.send(b"fine", [file])
        assert take(receiver.recv()) == (b"fine", [identity(file)])


def test_packet_longer_than_the_buffer(seqpacket: Pair, file: int) -> None:
    """What is longer than SO_SNDBUF is EMSGSIZE, and the next message of a Channel arrives."""
    seqpacket[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        fdpass_c.send_fd(seqpacket[0], file, bytes(60_000))
    assert_empty(seqpacket[1])
    with Channel(seqpacket[0]) as sender, Channel(seqpacket[1]) as receiver:
        for size in (60_000, 200_000):
            with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
                sender.send(bytes(size), [file])
        sender.send(b"fits", [file])
        assert take(receiver.recv()) == (b"fits", [identity(file)])
