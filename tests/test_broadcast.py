"""broadcast writes the same to many; each has its own result, and none disturbs the others."""

import array
import errno
import fcntl
import os
import resource
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import fdpass_c
from support.marks import linux_only
from support.sockets import Pair, assert_empty, fill


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    """Five connected pairs of blocking stream sockets."""
    made = [socket.socketpair() for _ in range(5)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def senders(pairs: list[Pair]) -> list[socket.socket]:
    return [left for left, _ in pairs]


def assert_error(result: int | OSError, expected: type[OSError], code: int) -> None:
    assert type(result) is expected
    assert result.errno == code
    assert str(result) == str(OSError(code, os.strerror(code)))
    assert result.__traceback__ is None


def test_everybody_gets_everything(pairs: list[Pair]) -> None:
    """Each target gets the buffers one after the other."""
    assert fdpass_c.broadcast(senders(pairs), [b"head ", b"", bytearray(b"body")]) == [9] * 5
    assert [right.recv(100) for _, right in pairs] == [b"head body"] * 5


def test_no_target() -> None:
    """Without a target there is no result."""
    assert fdpass_c.broadcast([], [b"x"]) == []


def test_nothing_to_write(pairs: list[Pair]) -> None:
    """Without a byte every target takes none of it."""
    buffers: list[bytes]
    for buffers in ([], [b""], [b"", b""]):
        assert fdpass_c.broadcast(senders(pairs), buffers) == [0] * 5
    for _, right in pairs:
        assert_empty(right)


def test_many_buffers(stream: Pair) -> None:
    """Any number of buffers arrives in order."""
    for count in (1, 2, 255, 256, 257, 1024, 1025, 10_000):
        buffers = [b"%d," % k for k in range(count)]
        data = b"".join(buffers)
        assert fdpass_c.broadcast([stream[0]], iter(buffers)) == [len(data)]
        assert stream[1].recv(len(data), socket.MSG_WAITALL) == data
    assert_empty(stream[1])


def test_no_empty_packet(seqpacket: Pair) -> None:
    """A packet socket gets no packet for buffers that are empty, however many there are."""
    buffers = [array.array("b")] * 2048
    assert fdpass_c.broadcast([seqpacket[0]], [*buffers, b"end", *buffers]) == [3]
    assert seqpacket[1].recv(100) == b"end"
    assert_empty(seqpacket[1])


def test_buffers_of_any_type(pairs: list[Pair]) -> None:
    """All the bytes of wide items are written."""
    wide = array.array("d", [1.5, 2.5])
    assert fdpass_c.broadcast(senders(pairs), [wide, memoryview(b"abcd")[::1]]) == [20] * 5
    assert [right.recv(100) for _, right in pairs] == [wide.tobytes() + b"abcd"] * 5


@pytest.mark.thread_unsafe
def test_result_order(pairs: list[Pair]) -> None:
    """Results stand in the order of the targets, whatever happened to each of them."""
    gone, full, closed, fine, number = pairs
    gone[1].close()
    filled = fill(full[0])
    stale = os.dup(0)
    os.close(stale)
    targets: list[int | socket.socket] = [
        fine[0],
        gone[0],
        number[0].fileno(),
        full[0],
        stale,
        fine[0],
    ]
    results = fdpass_c.broadcast(targets, [b"same"])
    assert [results[k] for k in (0, 2, 5)] == [4, 4, 4]
    assert_error(results[1], BrokenPipeError, errno.EPIPE)
    assert_error(results[3], BlockingIOError, errno.EAGAIN)
    assert_error(results[4], OSError, errno.EBADF)
    assert fine[1].recv(100) == b"samesame"
    assert number[1].recv(100) == b"same"
    assert_empty(closed[1])
    left = filled
    while left:
        left -= len(full[1].recv(left))
    assert_empty(full[1])


@pytest.mark.thread_unsafe
def test_closed_object(pairs: list[Pair]) -> None:
    """A socket that was closed has an error in its slot alone."""
    pairs[1][0].close()
    results = fdpass_c.broadcast(senders(pairs), [b"x"])
    assert_error(results[1], OSError, errno.EBADF)
    assert results[:1] + results[2:] == [1] * 4


@pytest.mark.parametrize("timeout", [None, 0])
def test_never_waits(timeout: float | None, pairs: list[Pair]) -> None:
    """A blocking socket that fills up on the way takes what it can, one that is full nothing."""
    for left, _ in pairs:
        left.settimeout(timeout)
    data = os.urandom(1_000_000)
    results = fdpass_c.broadcast(senders(pairs), [data])
    for (left, right), taken in zip(pairs, results, strict=True):
        assert isinstance(taken, int)
        assert 0 < taken < len(data)
        left.close()
        received = bytearray()
        while piece := right.recv(1 << 20):
            received += piece
        assert received in (data[:taken],)


def test_full_stays_blocking(stream: Pair) -> None:
    """A target keeps its own mode."""
    filled = fill(stream[0])
    for blocking in (True, False):
        stream[0].setblocking(blocking)
        (result,) = fdpass_c.broadcast([stream[0]], [b"x"])
        assert isinstance(result, BlockingIOError)
        assert os.get_blocking(stream[0].fileno()) is blocking
    stream[0].close()
    received = 0
    while piece := stream[1].recv(1 << 20):
        received += len(piece)
    assert received == filled


@linux_only
def test_pipes() -> None:
    """Pipes, blocking or not, take what they have room for; one has no reader."""
    ends = [os.pipe() for _ in range(4)]
    (room, writer), (empty, other), (full, stuffed), (reader, orphan) = ends
    os.set_blocking(stuffed, False)
    try:
        while True:
            os.write(stuffed, bytes(4096))
    except BlockingIOError:
        os.set_blocking(stuffed, True)
    os.close(reader)
    data = b"0123456789" * 100_000
    results = fdpass_c.broadcast([writer, orphan, stuffed, other], [data])
    assert_error(results[1], BrokenPipeError, errno.EPIPE)
    assert_error(results[2], BlockingIOError, errno.EAGAIN)
    for taken, end in ((results[0], room), (results[3], empty)):
        assert isinstance(taken, int)
        assert 0 < taken < len(data)
        assert os.read(end, len(data)) == data[:taken]
        os.set_blocking(end, False)
        with pytest.raises(BlockingIOError):
            os.read(end, 1)
    for fd in (room, writer, empty, other, full, stuffed, orphan):
        os.close(fd)


@pytest.mark.parametrize("size", [1, 5000, 5_000_000])
def test_files(size: int, pairs: list[Pair]) -> None:
    """Regular files take everything, at their position."""
    data = os.urandom(size)
    with (
        tempfile.TemporaryFile(buffering=0) as first,
        tempfile.TemporaryFile(buffering=0) as second,
    ):
        second.write(b"before")
        results = fdpass_c.broadcast([first, pairs[0][0], second], [data[:10], data[10:]])
        assert results[0] == results[2] == size
        first.seek(0)
        assert first.read() in (data,)
        second.seek(0)
        assert second.read() in (b"before" + data,)


@linux_only
def test_memfd_and_devices() -> None:
    """A memfd takes everything, a full device nothing, a null device all."""
    memory = os.memfd_create("broadcast")
    full = os.open("/dev/full", os.O_WRONLY)
    null = os.open("/dev/null", os.O_WRONLY)
    results = fdpass_c.broadcast([memory, full, null], [b"x" * 100_000, b"y"])
    assert results[0] == 100_001
    assert_error(results[1], OSError, errno.ENOSPC)
    assert results[2] == 100_001
    assert os.pread(memory, 200_000, 0) == b"x" * 100_000 + b"y"
    for fd in (memory, full, null):
        os.close(fd)


@linux_only
def test_sealed_memfd() -> None:
    """A sealed memfd has EPERM in its slot, in the words of the system alone."""
    fd = os.memfd_create("broadcast", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    (refused,) = fdpass_c.broadcast([fd], [b"x"])
    assert_error(refused, PermissionError, errno.EPERM)
    os.close(fd)


@pytest.mark.thread_unsafe
def test_read_only(pairs: list[Pair]) -> None:
    """A descriptor that cannot be written has EBADF in its slot."""
    fd = os.open(os.devnull, os.O_RDONLY)
    results = fdpass_c.broadcast([pairs[0][0], fd, pairs[1][0]], [b"x"])
    assert results[::2] == [1, 1]
    assert_error(results[1], OSError, errno.EBADF)
    os.close(fd)


def test_packets(seqpacket: Pair, datagram: Pair) -> None:
    """Each call is one packet; one too long for its socket is an error of that socket."""
    targets = [seqpacket[0], datagram[0]]
    assert fdpass_c.broadcast(targets, [b"a"] * 2000) == [2000, 2000]
    assert seqpacket[1].recv(5000) == datagram[1].recv(5000) == b"a" * 2000
    for result in fdpass_c.broadcast(targets, [bytes(50_000_000)]):
        assert_error(result, OSError, errno.EMSGSIZE)


def test_same_target_twice(stream: Pair) -> None:
    """A target that stands twice gets it twice."""
    assert fdpass_c.broadcast([stream[0]] * 3, [b"x"]) == [1] * 3
    assert stream[1].recv(10) == b"xxx"


def test_many_targets() -> None:
    """Any number of targets."""
    fd = os.open(os.devnull, os.O_WRONLY)
    assert fdpass_c.broadcast([fd] * 1000, [b"four"]) == [4] * 1000
    os.close(fd)


def test_wrong_target(pairs: list[Pair]) -> None:
    """What is no descriptor is a TypeError that says where it stands; nothing is written."""
    for position in (0, 2, 5):
        for wrong in (None, "text", 1.5, [0], object()):
            targets: list[Any] = [*senders(pairs)]
            targets.insert(position, wrong)
            with pytest.raises(TypeError, match=rf"fds\[{position}\]"):
                fdpass_c.broadcast(targets, [b"x"])
    for _, right in pairs:
        assert_empty(right)


def test_wrong_buffer(pairs: list[Pair]) -> None:
    """What has no buffer is a TypeError, and nothing is written."""
    wrong: Any
    for wrong in ([None], ["text"], [b"x", 1], [b"x", [b"y"]], 5, "text"):
        with pytest.raises(TypeError):
            fdpass_c.broadcast(senders(pairs), wrong)
    for _, right in pairs:
        assert_empty(right)


def test_number_beyond_an_int(pairs: list[Pair]) -> None:
    """An int too large for any descriptor is an OverflowError, and nothing is written."""
    with pytest.raises(OverflowError):
        fdpass_c.broadcast([pairs[0][0], 2**40], [b"x"])
    assert_empty(pairs[0][1])


def test_more_targets_than_one_call_tries() -> None:
    """Each of 70,000 has its own result, also where one call of the core ends."""
    with open(os.devnull, "wb", buffering=0) as null:
        targets = [null.fileno()] * 70_000
        assert fdpass_c.broadcast(targets, [b"four"]) == [4] * len(targets)
        wrong = (0, 1, 32_767, 32_768, 65_535, 69_999)
        for position in wrong:
            targets[position] = -1
        results = fdpass_c.broadcast(targets, [b"four"])
    assert len(results) == len(targets)
    assert {position for position, result in enumerate(results) if result != 4} == {*wrong}
    for position in wrong:
        assert_error(results[position], OSError, errno.EBADF)


@linux_only
def test_one_byte_short(pairs: list[Pair]) -> None:
    """A target that takes all but one byte is told apart from those that take all."""
    page = resource.getpagesize()
    reader, writer = os.pipe()
    assert fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, page) == page
    targets: list[Any] = [pairs[0][0], writer, pairs[1][0]]
    assert fdpass_c.broadcast(targets, [bytes(page), b"x"]) == [page + 1, page, page + 1]
    os.close(reader)
    os.close(writer)
