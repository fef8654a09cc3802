"""A batch that stops on its way says how far it came, and goes on without loss or repeat."""

import errno
import os
import resource
import signal
import socket
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fdpass_c
from fdpass_c import Progress
from fdpass_c.outcomes import NOTHING_SENT
from support.descriptors import MakeFiles
from support.marks import linux_only
from support.messages import (
    Message,
    assert_stream,
    described,
    measure_room,
    progress_of,
    recv_present,
    recv_until_closed,
)
from support.processes import become_nobody, run_in_child
from support.signals import Interruption, handling, interrupt, interrupt_main_thread
from support.sockets import Pair, assert_empty
from support.threads import beside
from support.waiting import once_blocked


def send_in_parts(
    pair: Pair, payloads: list[bytes], fds: Sequence[int] | Sequence[list[int]]
) -> tuple[list[Message], list[Progress]]:
    """Sends a batch, receiving whenever the socket is full; what came, and every stop."""
    received: list[Message] = []
    stops: list[Progress] = []
    progress = Progress()
    while True:
        try:
            assert fdpass_c.send_many(pair[0], payloads, fds, start=progress) == len(payloads)
            break
        except (BlockingIOError, TimeoutError) as error:
            progress = progress_of(error)
            stops.append(progress)
            present = recv_present(pair[1])
            received += present
            whole = sum(map(len, payloads[: progress.messages]))
            assert sum(len(payload) for payload, _ in received) == whole + progress.bytes
    return received + recv_present(pair[1]), stops


@pytest.mark.parametrize(
    ("timeout", "expected"), [(0, BlockingIOError), (0.01, TimeoutError)], ids=["full", "timeout"]
)
def test_full_socket(
    timeout: float, expected: type[OSError], stream: Pair, make_files: MakeFiles
) -> None:
    """A full socket says how many messages left: exactly those are there for the receiver."""
    files = make_files(7)
    stream[0].settimeout(timeout)
    payloads = [b"message %d" % k for k in range(2000)]
    fds = [files[k % 7] for k in range(2000)]
    with pytest.raises(expected) as caught:
        fdpass_c.send_many(stream[0], payloads, fds)
    messages, part = progress_of(caught.value)
    assert 0 < messages < 2000
    assert part == 0
    expected_messages = described(payloads[:messages], [[fd] for fd in fds[:messages]])
    assert recv_present(stream[1]) == expected_messages


def test_going_on(pair: Pair, make_files: MakeFiles) -> None:
    """start=error.progress sends what is left, and nothing twice."""
    files = make_files(7)
    pair[0].setblocking(False)
    count = 2000
    payloads = [b"message %d" % k for k in range(count)]
    fds = [files[k % 7] for k in range(count)]
    received, stops = send_in_parts(pair, payloads, fds)
    assert stops
    assert received == described(payloads, [[fd] for fd in fds])


def test_going_on_with_lists(stream: Pair, make_files: MakeFiles) -> None:
    """It goes on with the right descriptors where their number differs by message."""
    files = make_files(7)
    stream[0].setblocking(False)
    count = 2000
    payloads = [b"message %d" % k for k in range(count)]
    rows = [files[: k % 3 + 1] for k in range(count)]
    received, stops = send_in_parts(stream, payloads, rows)
    assert stops
    assert received == described(payloads, rows)


def test_short_write_in_the_middle(stream: Pair, make_files: MakeFiles) -> None:
    """Bytes of the half-sent message are counted; its descriptor left with the first of them."""
    files = make_files(3)
    stream[0].setblocking(False)
    payloads = [b"a" * 10, b"b" * 2_000_000, b"c" * 10]
    with pytest.raises(BlockingIOError) as caught:
        fdpass_c.send_many(stream[0], payloads, files)
    messages, part = progress_of(caught.value)
    assert messages == 1
    assert 0 < part < 2_000_000
    first = recv_present(stream[1])
    assert_stream(first, described([payloads[0], b"b" * part], [files[:1], files[1:2]]))

    with beside(lambda: recv_until_closed(stream[1]), stream[1]) as received:
        stream[0].setblocking(True)
        fdpass_c.send_many(stream[0], payloads, files, start=progress_of(caught.value))
        stream[0].shutdown(socket.SHUT_WR)
    assert_stream(first + received[0], described(payloads, [[fd] for fd in files]))


def test_long_payloads_in_parts(stream: Pair, make_files: MakeFiles) -> None:
    """Payloads longer than the socket's buffer, each stopped many times, arrive once."""
    files = make_files(4)
    stream[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    stream[0].setblocking(False)
    payloads = [bytes([k]) * 50_000 for k in range(4)]
    rows = [files[:k] or files for k in range(4)]
    received, stops = send_in_parts(stream, payloads, rows)
    assert sum(stop.bytes > 0 for stop in stops) > 4
    assert_stream(received, described(payloads, rows))


def test_timeout_leaves_the_rest(stream: Pair, file: int) -> None:
    """After a timeout in the middle of a payload, as after a full socket, progress is exact."""
    stream[0].settimeout(0.01)
    with pytest.raises(TimeoutError, match="timed out") as caught:
        fdpass_c.send_many(stream[0], [b"a", b"b" * 2_000_000], [file, file])
    messages, part = progress_of(caught.value)
    assert messages == 1
    assert_stream(recv_present(stream[1]), described([b"a", b"b" * part], [[file], [file]]))


def test_room_in_time(stream: Pair, make_files: MakeFiles) -> None:
    """A timeout long enough is no hindrance."""
    files = make_files(7)
    stream[0].settimeout(60)
    payloads = [b"x" * (k % 5000 + 1) for k in range(2000)]
    fds = [files[k % 7] for k in range(2000)]
    with beside(lambda: recv_until_closed(stream[1]), stream[1]) as received:
        assert fdpass_c.send_many(stream[0], payloads, fds) == 2000
        stream[0].shutdown(socket.SHUT_WR)
    assert_stream(received[0], described(payloads, [[fd] for fd in fds]))


@pytest.mark.thread_unsafe
@linux_only
def test_handler_returns(stream: Pair, make_files: MakeFiles) -> None:
    """A handler runs at once in a blocked batch that has begun, then the batch goes on."""
    files = make_files(7)
    room = measure_room(*stream)
    count = room + room // 2
    payloads = [b"%d" % k for k in range(count)]
    fds = [files[k % 7] for k in range(count)]
    received: list[Message] = []

    def make_room() -> None:
        received.extend(recv_present(stream[1]))

    with (
        handling(signal.SIGUSR1, make_room),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
    ):
        assert fdpass_c.send_many(stream[0], payloads, fds) == count
    assert received
    assert received + recv_present(stream[1]) == described(payloads, [[fd] for fd in fds])


@pytest.mark.thread_unsafe
@linux_only
def test_handler_returns_in_a_long_payload(stream: Pair, make_files: MakeFiles) -> None:
    """The same where the batch is blocked in the middle of a message."""
    files = make_files(2)
    payloads = [b"a" * 300_000, b"b"]
    received: list[Message] = []

    def make_room() -> None:
        received.extend(recv_present(stream[1]))

    with (
        handling(signal.SIGUSR1, make_room),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
    ):
        assert fdpass_c.send_many(stream[0], payloads, files) == 2
    assert received
    received += recv_present(stream[1])
    assert_stream(received, described(payloads, [[fd] for fd in files]))


@pytest.mark.thread_unsafe
@linux_only
def test_handler_raises(stream: Pair, make_files: MakeFiles) -> None:
    """An exception from a handler ends a blocked batch; what left is whole and there once."""
    files = make_files(7)
    payloads = [b"%d" % k for k in range(2000)]
    fds = [files[k % 7] for k in range(2000)]
    with (
        handling(signal.SIGUSR1, interrupt),
        once_blocked(stream[0].fileno(), interrupt_main_thread),
        pytest.raises(Interruption),
    ):
        fdpass_c.send_many(stream[0], payloads, fds)
    received = recv_present(stream[1])
    assert received == described(payloads, [[fd] for fd in fds])[: len(received)]


@pytest.mark.thread_unsafe
def test_storm_of_signals(stream: Pair, make_files: MakeFiles) -> None:
    """However often a handler runs, every message arrives once."""
    files = make_files(7)
    payloads = [bytes([k % 256]) * (1 + k * 37 % 30_000) for k in range(1500)]
    fds = [files[k % 7] for k in range(1500)]
    calls = []
    with (
        handling(signal.SIGALRM, lambda: calls.append(1)),
        beside(lambda: recv_until_closed(stream[1]), stream[1]) as received,
    ):
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            assert fdpass_c.send_many(stream[0], payloads, fds) == 1500
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        stream[0].shutdown(socket.SHUT_WR)
    assert calls
    assert_stream(received[0], described(payloads, [[fd] for fd in fds]))


def closed_fd() -> int:
    """A number of a descriptor that is not open."""
    fd = os.dup(0)
    os.close(fd)
    return fd


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("rows", [False, True], ids=["one", "lists"])
@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_bad_descriptor(
    kind: str, rows: bool, request: pytest.FixtureRequest, make_files: MakeFiles
) -> None:
    """EBADF in message k: the first k are delivered, progress says k, the rest can follow."""
    left, right = request.getfixturevalue(kind)
    files = make_files(7)
    payloads = [b"%d" % k for k in range(200)]
    good = [[files[k % 7]] * (1 + k % 2 * rows) for k in range(200)]
    for wrong in (0, 63, 64, 199):
        bad = [*good]
        bad[wrong] = [*good[wrong][1:], closed_fd()]
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
            fdpass_c.send_many(left, payloads, bad if rows else [fd for row in bad for fd in row])
        assert caught.value.errno == errno.EBADF
        assert progress_of(caught.value) == Progress(wrong, 0)
        assert recv_present(right) == described(payloads[:wrong], good[:wrong])

        assert fdpass_c.send_many(left, payloads, good, start=progress_of(caught.value)) == 200
        assert recv_present(right) == described(payloads[wrong:], good[wrong:])


def test_too_long_a_packet(seqpacket: Pair, file: int) -> None:
    """EMSGSIZE in message k says k; the message after it can follow."""
    payloads = [b"a", b"b" * 100_000_000, b"c"]
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)) as caught:
        fdpass_c.send_many(seqpacket[0], payloads, [file] * 3)
    assert progress_of(caught.value) == Progress(1, 0)
    fdpass_c.send_many(seqpacket[0], payloads, [file] * 3, start=Progress(2))
    assert recv_present(seqpacket[1]) == described([b"a", b"c"], [[file]] * 2)


def test_reader_gone(stream: Pair, file: int) -> None:
    """BrokenPipeError says how far the batch came, from where it started."""
    stream[0].setblocking(False)
    with pytest.raises(BlockingIOError) as full:
        fdpass_c.send_many(stream[0], [b"x"] * 2000, [file] * 2000)
    stream[1].close()
    with pytest.raises(BrokenPipeError) as caught:
        fdpass_c.send_many(stream[0], [b"x"] * 2000, [file] * 2000, start=progress_of(full.value))
    assert progress_of(caught.value) == progress_of(full.value)


class Broken:
    """Has lost its descriptor."""

    def fileno(self) -> int:
        raise OSError(errno.EBADF, "gone")


def test_found_before_sending(file: int, stream: Pair) -> None:
    """An error that is found before anything is sent leaves the progress where it was."""
    calls: list[tuple[Any, Any]] = [
        (file, [file] * 3),
        (file, [[file]] * 3),
        (stream[0], [[file] * 300] * 3),
        (stream[0], [Broken()] * 3),
    ]
    for (sock, fds), start in product(calls, (NOTHING_SENT, Progress(1), Progress(1, 2))):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fdpass_c.send_many(sock, [b"xyz"] * 3, fds, start=start)
        assert progress_of(caught.value) == start
    assert_empty(stream[1])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("rows", [False, True])
def test_closed_socket(rows: bool, file: int) -> None:
    """Also an error found before anything is sent has its progress."""
    sock = socket.socket(socket.AF_UNIX)
    sock.close()
    fds = [[file]] * 3 if rows else [file] * 3
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
        fdpass_c.send_many(sock, [b"x"] * 3, fds)
    assert progress_of(caught.value) == Progress(0, 0)


@pytest.mark.thread_unsafe
@linux_only
def test_too_many_in_flight(stream: Pair, file: int) -> None:
    """ETOOMANYREFS says how many messages left, and once they are taken the rest follows."""

    def child() -> None:
        become_nobody()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        payloads = [b"%d" % k for k in range(150)]
        received: list[Message] = []
        progress = Progress()
        stops = 0
        while progress.messages < 150:
            try:
                sent = fdpass_c.send_many(stream[0], payloads, [file] * 150, start=progress)
                progress = Progress(sent)
            except OSError as error:
                assert error.errno == errno.ETOOMANYREFS  # noqa: PT017
                progress = progress_of(error)
                stops += 1
            received += recv_present(stream[1])
            assert len(received) == progress.messages
        assert stops
        assert received == described(payloads, [[file]] * 150)

    run_in_child(child)


def test_nothing_left_to_send(stream: Pair, file: int) -> None:
    """Starting at the end sends nothing."""
    assert fdpass_c.send_many(stream[0], [b"x"], [file], start=Progress(1)) == 1
    assert_empty(stream[1])


def test_impossible_start(stream: Pair, file: int) -> None:
    """A start outside the batch is a ValueError: no byte beyond a payload is ever sent."""
    for start in ((0, 1), (0, 2), (1, -1), (2, 0), (3, 0), (-1, 0), (1, 1), (0, 2**63)):
        with pytest.raises(ValueError, match="start"):
            fdpass_c.send_many(stream[0], [b"x"], [file], start=Progress(*start))
    assert_empty(stream[1])


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, int]]:
    """The size of each message's payload and the number of its descriptors."""
    size = st.one_of(st.integers(1, 20), st.integers(1, 20_000))
    return draw(st.lists(st.tuples(size, st.integers(1, 5)), max_size=90))


@pytest.mark.thread_unsafe
@settings(
    max_examples=20,
    deadline=None,
    database=None,  # the tree may not be writable
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batch=batches(), kind=st.sampled_from(["stream", "seqpacket"]), one_each=st.booleans())
def test_any_batch(
    batch: list[tuple[int, int]],
    kind: str,
    one_each: bool,
    request: pytest.FixtureRequest,
    make_files: MakeFiles,
) -> None:
    """Any batch arrives equal through a small socket, however often that is full on the way."""
    pair: Pair = request.getfixturevalue(kind)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
    pair[0].setblocking(False)
    files = make_files(7)
    payloads = [bytes([k]) * size for k, (size, _) in enumerate(batch)]
    rows = [
        [files[(k + at) % 7] for at in range(1 if one_each else number)]
        for k, (_, number) in enumerate(batch)
    ]
    received, _ = send_in_parts(pair, payloads, [row[0] for row in rows] if one_each else rows)
    if kind == "stream":
        assert_stream(received, described(payloads, rows))
    else:
        assert received == described(payloads, rows)


def test_an_error_of_another_call() -> None:
    """Progress.of an error that has none says that nothing was sent."""
    assert Progress.of(OSError()) == Progress(0, 0)
