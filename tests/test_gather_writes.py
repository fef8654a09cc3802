"""writev writes everything, or says exactly how much it wrote."""

import array
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import pickle
import resource
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fdpass_c
from support.marks import linux_only
from support.processes import run_in_child
from support.signals import Interruption, handling, interrupt_main_thread
from support.sockets import Pair, assert_empty, drain, fill, read_all
from support.threads import beside
from support.waiting import once_blocked

# Each example empties the file.
quick = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
COUNTS = [0, 1, 2, 16, 17, 1024, 1025, 2048, 2049, 100_000]


@pytest.fixture
def target() -> Iterator[IO[bytes]]:
    """An empty file."""
    with tempfile.TemporaryFile(buffering=0) as opened:
        yield opened


def read_back(target: IO[bytes]) -> bytes:
    target.seek(0)
    return target.read()


def numbered(count: int, size: int) -> list[bytes]:
    """Buffers of about that size, no two neighbours the same."""
    return [(b"%d " % k) * (size // 3 + 1) for k in range(count)]


@contextmanager
def full_pipe(room: int) -> Iterator[tuple[int, int, int]]:
    """A non-blocking pipe with room for so many bytes, a page or none: both ends, what is in it."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        inside = 0
        try:
            while True:
                inside += os.write(writer, bytes(mmap.PAGESIZE))
        except BlockingIOError:
            pass
        if room:
            assert len(os.read(reader, room)) == room
        yield reader, writer, inside - room
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("offset", [None, 5])
def test_any_number(offset: int | None, target: IO[bytes]) -> None:
    """Any number of buffers is written in order; with an offset the position stays."""
    for count in COUNTS:
        target.seek(0)
        target.truncate()
        target.write(b"before")
        buffers = [b"%d," % k for k in range(count)]
        data = b"".join(buffers)
        assert fdpass_c.writev(target, buffers, offset) == len(data)
        assert target.tell() == 6 + (len(data) if offset is None else 0)
        at = 6 if offset is None else offset
        expected = b"before"[:at] + data + b"before"[at + len(data) :]
        assert read_back(target) == expected


@quick
@given(count=st.integers(1, 1100), size=st.integers(1, 2000) | st.integers(1, 70_000))
@example(count=16, size=65_536)
@example(count=17, size=1024)
@example(count=17, size=1025)
@example(count=1024, size=5000)
@example(count=1025, size=1)
def test_any_size(count: int, size: int, target: IO[bytes]) -> None:
    """Small and large buffers are written alike."""
    target.truncate(0)
    target.seek(0)
    buffers = numbered(count, size)
    assert fdpass_c.writev(target.fileno(), buffers) == sum(map(len, buffers))
    assert read_back(target) in (b"".join(buffers),)


@quick
@given(
    count=st.integers(3, 2500),
    period=st.integers(2, 30) | st.integers(2, 1100),
    offset=st.none() | st.just(3),
)
@example(count=16, period=2, offset=None)
@example(count=17, period=5, offset=3)
@example(count=1030, period=1023, offset=None)
@example(count=2500, period=256, offset=3)
def test_mixed_sizes(offset: int | None, period: int, count: int, target: IO[bytes]) -> None:
    """A large buffer here and there, empty ones between, wherever they stand."""
    for first in (0, 1, period - 1):
        target.truncate(0)
        target.seek(0)
        buffers = [
            b"L" * 20_000 if k % period == first else b"" if k % 3 else b"small"
            for k in range(count)
        ]
        data = b"".join(buffers)
        assert fdpass_c.writev(target, buffers, offset) == len(data)
        assert read_back(target) == (b"\0" * (offset or 0) + data if data else b"")


def make_buffers(scale: int) -> tuple[list[Any], mmap.mmap]:
    mapped = mmap.mmap(-1, mmap.PAGESIZE * scale)
    mapped[:6] = b"mapped"
    buffers = [
        b"bytes" * scale,
        bytearray(b"bytearray") * scale,
        memoryview(b"memoryview" * scale)[4:],
        memoryview(b"every" * scale)[2:-1],
        array.array("i", range(3 * scale)),
        array.array("d", [1.5, 2.5]) * scale,
        memoryview(array.array("H", range(20 * scale))).cast("B").cast("H", (2, 10 * scale)),
        (ctypes.c_int * (2 * scale))(*range(2 * scale)),
        ctypes.c_double(3.5),
        pickle.PickleBuffer(b"pickled" * scale),
        mapped,
        b"",
        bytearray(),
        array.array("q"),
    ]
    return buffers, mapped


@pytest.mark.parametrize(("repeat", "scale"), [(1, 1), (1, 1000), (100, 10)])
def test_any_buffer(repeat: int, scale: int, target: IO[bytes]) -> None:
    """Anything with a buffer is written with all its bytes, however wide its items are."""
    buffers, mapped = make_buffers(scale)
    expected = b"".join(buffers * repeat)
    assert fdpass_c.writev(target, buffers * repeat) == len(expected)
    assert read_back(target) == expected
    if repeat == 1:
        for buffer in buffers:
            target.seek(0)
            target.truncate()
            alone = b"".join([buffer])
            assert fdpass_c.writev(target.fileno(), (buffer,)) == len(alone)
            assert read_back(target) == alone
    mapped.close()


def test_any_iterable(target: IO[bytes]) -> None:
    """Buffers may stand in whatever can be iterated, a generator too."""
    buffers: list[bytes] = []
    kinds: list[Callable[[Any], Any]] = [
        list,
        tuple,
        iter,
        deque,
        lambda buffers: (buffer for buffer in buffers),
    ]
    for count, kind in itertools.product((3, 3000), kinds):
        more = numbered(count, 3)
        assert fdpass_c.writev(target, kind(more)) == sum(map(len, more))
        buffers += more
    assert read_back(target) == b"".join(buffers)


def test_generator_that_fails(target: IO[bytes]) -> None:
    """The error of a generator passes, and nothing was written."""

    def generate() -> Iterator[bytes]:
        yield b"x" * 5000
        raise Interruption

    with pytest.raises(Interruption):
        fdpass_c.writev(target, generate())
    assert read_back(target) == b""


@pytest.mark.parametrize(
    ("count", "size", "form"), [(1, 3 << 20, "object"), (40, 70_000, "int"), (3000, 1500, "int")]
)
def test_through_a_socket(count: int, size: int, form: str, stream: Pair) -> None:
    """Far more than a socket buffers arrives whole: short writes are resumed."""
    buffers = numbered(count, size)
    with beside(lambda: read_all(stream[1]), stream[1]) as received:
        fd = stream[0] if form == "object" else stream[0].fileno()
        assert fdpass_c.writev(fd, buffers) == sum(map(len, buffers))
        stream[0].shutdown(socket.SHUT_WR)
    assert len(received[0]) == sum(map(len, buffers))
    assert received[0] in (b"".join(buffers),)


def test_within_a_timeout(stream: Pair) -> None:
    """A socket with a timeout waits for its reader, time and again."""
    stream[0].settimeout(60)
    buffers = [b"x" * 100_000, b"y" * 100_000] * 20 + numbered(3000, 100)
    with beside(lambda: read_all(stream[1]), stream[1]) as received:
        assert fdpass_c.writev(stream[0], buffers) == sum(map(len, buffers))
        stream[0].shutdown(socket.SHUT_WR)
    assert received[0] in (b"".join(buffers),)


SHAPES = [
    (1, 5_000_000),
    (2, 400_000),
    (3, 400_000),
    (17, 100_000),
    (1000, 16),
    (1000, 3000),
    (5000, 3000),
]


@pytest.mark.parametrize(
    ("timeout", "expected"), [(0, BlockingIOError), (0.01, TimeoutError)], ids=["full", "timeout"]
)
def test_full_socket(timeout: float, expected: type[OSError], stream: Pair) -> None:
    """characters_written is exactly what arrived, and with the rest nothing is lost."""
    stream[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4000)
    stream[0].settimeout(timeout)
    for count, size in SHAPES:
        buffers = numbered(count, size)
        data = b"".join(buffers)
        with pytest.raises(expected) as caught:
            fdpass_c.writev(stream[0], buffers)
        written = caught.value.characters_written  # type: ignore[attr-defined]
        arrived = drain(stream[1])
        assert 0 < written < len(data)
        assert written == len(arrived)
        assert arrived in (data[:written],)


def test_full_pipe() -> None:
    """A non-blocking pipe without room is a BlockingIOError that says what it took."""
    for room, (count, size) in itertools.product((0, mmap.PAGESIZE), SHAPES):
        buffers = numbered(count, size)
        with full_pipe(room) as (reader, writer, inside):
            with pytest.raises(BlockingIOError) as caught:
                fdpass_c.writev(writer, buffers)
            written = caught.value.characters_written
            assert os.read(reader, inside + room)[inside:] == b"".join(buffers)[:written]
            assert written == room


@linux_only
def test_short_write_of_wide_items() -> None:
    """A short write of as many bytes as there are items is not taken for all."""
    for code, count in itertools.product("Hiq", (1, 2, 16, 64)):
        items = mmap.PAGESIZE // count
        wide = [array.array(code, [k] * items) for k in range(count)]
        room = items * count
        with full_pipe(mmap.PAGESIZE) as (reader, writer, inside):
            with pytest.raises(BlockingIOError) as caught:
                fdpass_c.writev(writer, wide)
            assert caught.value.characters_written == room
            assert os.read(reader, inside + room)[inside:] == b"".join(wide)[:room]


@linux_only
@pytest.mark.parametrize("scale", [1, 1000])
def test_short_write_of_any_buffer(scale: int, stream: Pair) -> None:
    """What is left after a short write is found in a buffer of any type."""
    buffers, mapped = make_buffers(scale)
    repeat = 1_000 // scale
    stream[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    stream[0].settimeout(60)
    expected = b"".join(buffers * repeat)
    with beside(lambda: read_all(stream[1]), stream[1]) as received:
        assert fdpass_c.writev(stream[0], buffers * repeat) == len(expected)
        stream[0].shutdown(socket.SHUT_WR)
    assert received[0] in (expected,)
    mapped.close()


@pytest.mark.thread_unsafe
def test_timeout_counts_in_all(stream: Pair) -> None:
    """Thousands of buffers have one timeout together, not one each time the socket is full."""
    stream[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    stream[0].settimeout(0.2)
    received = []

    def take_a_little() -> None:
        with suppress(BlockingIOError):  # Two alarms can come before the next write.
            received.append(stream[1].recv(5000, socket.MSG_DONTWAIT))

    # 200 parts of 10 kB, of which the handler takes 100 times 5 kB a second.
    buffers = [b"0123456789"] * 1024 * 200
    with handling(signal.SIGALRM, take_a_little):
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        try:
            with pytest.raises(TimeoutError, match="timed out") as caught:
                fdpass_c.writev(stream[0], buffers)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    received.append(drain(stream[1]))
    written = caught.value.characters_written  # type: ignore[attr-defined]
    assert b"".join(received) == (b"0123456789" * 1024 * 200)[:written]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("size", [1, 50_000])
def test_handler_returns(size: int, stream: Pair) -> None:
    """A blocked write goes on after a handler that made room."""
    filled = fill(stream[0])
    received = []
    with (
        handling(signal.SIGUSR1, lambda: received.append(drain(stream[1]))),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
    ):
        assert fdpass_c.writev(stream[0], [b"a" * size, b"b"]) == size + 1
    received.append(drain(stream[1]))
    assert b"".join(received)[filled:] == b"a" * size + b"b"


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("count", "raised"), [(1, Interruption), (2, TimeoutError), (3000, TypeError)]
)
def test_handler_raises(count: int, raised: type[Exception], stream: Pair) -> None:
    """An exception from a handler ends a blocked write, whatever its type."""

    def fail() -> None:
        raise raised("from the handler")

    filled = fill(stream[0])
    with (
        handling(signal.SIGUSR1, fail),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
        pytest.raises(raised, match="from the handler"),
    ):
        fdpass_c.writev(stream[0], [b"x"] * count)
    assert len(drain(stream[1])) == filled


@pytest.mark.thread_unsafe
def test_storm_of_signals(stream: Pair) -> None:
    """However often a handler runs, everything is written once."""
    calls = []
    buffers = numbered(4000, 3000)
    with (
        handling(signal.SIGALRM, lambda: calls.append(1)),
        beside(lambda: read_all(stream[1]), stream[1]) as received,
    ):
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            assert fdpass_c.writev(stream[0], buffers) == sum(map(len, buffers))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        stream[0].shutdown(socket.SHUT_WR)
    assert calls
    assert received[0] in (b"".join(buffers),)


BUFFERS: list[list[bytes]] = [[], [b"x"], [b"x"] * 20, [b"x" * 5000] * 3, [b"x" * 5000] * 20]


@pytest.mark.thread_unsafe
def test_closed_descriptor() -> None:
    """A descriptor that is not open is EBADF, with nothing written."""
    fd = os.dup(0)
    os.close(fd)
    for buffers, offset in itertools.product(BUFFERS, (None, 0)):
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
            fdpass_c.writev(fd, buffers, offset)
        assert caught.value.characters_written == 0  # type: ignore[attr-defined]


def test_reader_gone(stream: Pair) -> None:
    """A socket without its peer is a BrokenPipeError, with nothing written."""
    stream[1].close()
    targets: list[Any] = [stream[0], stream[0].fileno()]
    for buffers, target in itertools.product(BUFFERS[1:], targets):
        with pytest.raises(BrokenPipeError) as caught:
            fdpass_c.writev(target, buffers)
        assert caught.value.characters_written == 0  # type: ignore[attr-defined]


def test_reader_leaves(stream: Pair) -> None:
    """Where the peer goes in the middle, what was written before is counted."""
    received = []

    def read_and_leave() -> None:
        received.append(stream[1].recv(1))
        stream[1].close()

    thread = threading.Thread(target=read_and_leave)
    thread.start()
    with pytest.raises((BrokenPipeError, ConnectionResetError)) as caught:
        fdpass_c.writev(stream[0], [b"x" * 100_000] * 2000)
    thread.join()
    assert received == [b"x"]
    assert caught.value.characters_written > 0  # type: ignore[attr-defined]


def test_first_error_is_reported() -> None:
    """An error that the system tells only once is raised."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        gone.bind(("127.0.0.1", 0))
        sock.connect(gone.getsockname())
        gone.close()
        sock.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            fdpass_c.writev(sock.fileno(), [b"x"])


def test_no_buffer(target: IO[bytes]) -> None:
    """What has no buffer is a TypeError; among the first 1024 nothing is written then."""
    places = [(0, 1), (15, 16), (16, 17), (1023, 1024), (700, 3000)]
    wrongs: list[Any] = ["text", None, 1, 1.5, object(), [b"x"]]
    for (position, count), wrong in itertools.product(places, wrongs):
        buffers: list[Any] = [b"x"] * count
        buffers[position] = wrong
        with pytest.raises(TypeError):
            fdpass_c.writev(target.fileno(), buffers)
    assert read_back(target) == b""


def test_no_iterable_of_buffers(target: IO[bytes]) -> None:
    """A buffer itself is not an iterable of buffers."""
    wrong: Any
    for wrong in (b"bytes", bytearray(b"x" * 5000), "text", None, 5):
        with pytest.raises(TypeError):
            fdpass_c.writev(target, wrong)
    assert read_back(target) == b""


def test_not_contiguous(target: IO[bytes]) -> None:
    """A buffer with gaps is refused, or written as its items; never the bytes in the gaps."""
    with_gaps = memoryview(bytes(range(200)) * 100)[::2]
    try:
        fdpass_c.writev(target, [with_gaps])
    except (BufferError, TypeError, ValueError):
        assert read_back(target) == b""
    else:
        assert read_back(target) == bytes(with_gaps)


@linux_only
def test_sealed_memfd() -> None:
    """A refused write has the system's own words, however many buffers there are."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        for count in (1, 2, 3, 2000):
            with pytest.raises(PermissionError) as caught:
                fdpass_c.writev(fd, [b"x"] * count)
            # Not args, of which PyPy's errors have more.
            assert caught.value.errno == errno.EPERM
            assert str(caught.value) == str(OSError(errno.EPERM, os.strerror(errno.EPERM)))
            assert caught.value.characters_written == 0  # type: ignore[attr-defined]
    finally:
        os.close(fd)


def test_no_descriptor() -> None:
    """What has no fileno() is a TypeError."""
    wrong: Any
    for wrong in (None, "text", 1.5):
        with pytest.raises(TypeError, match="fileno"):
            fdpass_c.writev(wrong, [b"x"])


def test_offset_errors(target: IO[bytes], stream: Pair) -> None:
    """A negative offset is EINVAL; a socket has none: ESPIPE; nothing is written."""
    for buffers in BUFFERS[1:]:
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)) as caught:
            fdpass_c.writev(target, buffers, -1)
        assert caught.value.characters_written == 0  # type: ignore[attr-defined]
        with pytest.raises(OSError, match=os.strerror(errno.ESPIPE)) as caught:
            fdpass_c.writev(stream[0], buffers, 0)
        assert caught.value.characters_written == 0  # type: ignore[attr-defined]
    assert read_back(target) == b""
    assert_empty(stream[1])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("offset", [None, 1000])
def test_file_size_limit(offset: int | None, target: IO[bytes]) -> None:
    """At the largest size of a file, what fits is written and counted."""
    limit = 12_345
    start = offset or 0

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for count, size in SHAPES:
            buffers = numbered(count, size)
            target.seek(0)
            target.truncate()
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
                fdpass_c.writev(target, buffers, offset)
            assert caught.value.errno == errno.EFBIG
            written = caught.value.characters_written  # type: ignore[attr-defined]
            assert written == limit - start
            assert read_back(target) == bytes(start) + b"".join(buffers)[: limit - start]

    run_in_child(child)


@pytest.mark.thread_unsafe
def test_file_size_limit_after_1024(target: IO[bytes]) -> None:
    """An error says what earlier system calls of the same writev wrote, too."""

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for size, more in itertools.product((16, 3000), (0, 5)):
            buffers = numbered(2000, size)
            limit = len(b"".join(buffers[:1024])) + more
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            target.seek(0)
            target.truncate()
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
                fdpass_c.writev(target, buffers)
            assert caught.value.characters_written == limit  # type: ignore[attr-defined]
            assert read_back(target) == b"".join(buffers)[:limit]

    run_in_child(child)


@linux_only
def test_full_device() -> None:
    """A device without space is ENOSPC, with nothing written."""
    with open("/dev/full", "wb", buffering=0) as device:
        for buffers in BUFFERS[1:]:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
                fdpass_c.writev(device, buffers)
            assert caught.value.characters_written == 0  # type: ignore[attr-defined]
