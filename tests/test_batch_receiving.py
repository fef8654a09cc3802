"""recv_many: its limits, the end of file, truncation, and the owner that it returns."""

import fcntl
import gc
import os
import signal
import socket
import warnings
from functools import partial

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fdpass_c
from fdpass_c import TruncatedBatchError, batches
from support.descriptors import MakeFiles, identities, identity, is_open, no_leak
from support.marks import linux_only
from support.messages import contents, described, recv_each
from support.processes import run_in_child
from support.signals import Interruption, handling, interrupt, interrupt_call, interrupt_main_thread
from support.sockets import Pair, assert_empty, drain, set_option
from support.tables import leave_free, many_allowed
from support.waiting import once_blocked

SO_PASSCRED = getattr(socket, "SO_PASSCRED", 16)
SO_PASSPIDFD = 76


# Each example leaves the sockets empty.
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["stream", "seqpacket"])
def connection(request: pytest.FixtureRequest) -> Pair:
    """A pair that has an end of file."""
    pair: Pair = request.getfixturevalue(request.param)
    return pair


@linux_only
@pytest.mark.parametrize(
    ("options", "count"),
    [([], 0), ([], 64), ([], 65), ([SO_PASSCRED], 0), ([SO_PASSCRED, SO_PASSPIDFD], 65)],
)
def test_end_of_file(options: list[int], count: int, connection: Pair, file: int) -> None:
    """Messages before the end come first, the end is an empty batch, each time."""
    for option in options:
        set_option(connection[1], option, 1)
    fdpass_c.send_many(connection[0], [b"x"] * count, [file] * count)
    connection[0].close()
    received = 0
    while batch := fdpass_c.recv_many(connection[1], 1000):
        with batch:
            assert contents(batch) == [(b"x", [identity(file)])] * len(batch)
            received += len(batch)
    assert received == count
    with fdpass_c.recv_many(connection[1]) as batch:
        assert len(batch) == 0
        assert batch.payloads == []
        assert list(batch) == []


@linux_only
def test_empty_packets(seqpacket: Pair, file: int) -> None:
    """Empty messages are messages while the peer is there, whatever is queued behind them."""
    for data in (b"", b"", b"last"):
        seqpacket[0].send(data)
    for data in (b"", b"", b"last"):
        with fdpass_c.recv_many(seqpacket[1], 1) as batch:
            assert contents(batch) == [(data, [])]
    fdpass_c.send_many(seqpacket[0], [b"first", b"", b""], [[file], [], []])
    with fdpass_c.recv_many(seqpacket[1]) as batch:
        assert contents(batch) == [(b"first", [identity(file)]), (b"", []), (b"", [])]
    seqpacket[0].close()
    with fdpass_c.recv_many(seqpacket[1]) as batch:
        assert len(batch) == 0


@quick
@given(most=st.integers(1, 130), maxfds=st.integers(1, 300))
@example(most=1, maxfds=253)
@example(most=64, maxfds=1)
@example(most=65, maxfds=2)
@example(most=1000, maxfds=1000)
def test_max_messages(most: int, maxfds: int, connection: Pair, make_files: MakeFiles) -> None:
    """It takes what is there, at most max_messages, whatever the room for descriptors."""
    files = make_files(7)
    payloads = [b"%d" % k for k in range(100)]
    fds = [files[k % 7] for k in range(100)]
    fdpass_c.send_many(connection[0], payloads, fds)
    expected = described(payloads, [[fd] for fd in fds])
    with fdpass_c.recv_many(connection[1], most, maxfds=maxfds) as batch:
        assert contents(batch) == expected[:most]
    assert recv_each(connection[1], 100 - len(batch.payloads)) == expected[most:]
    assert_empty(connection[1])


def test_large_bufsize(connection: Pair, make_files: MakeFiles) -> None:
    """More messages than one system call brings arrive with a large bufsize too."""
    files = make_files(100)
    fdpass_c.send_many(connection[0], [b"x"] * 100, files)
    with fdpass_c.recv_many(connection[1], 100, bufsize=100_000) as batch:
        assert contents(batch) == [(b"x", [identity(fd)]) for fd in files]


def test_bufsize_on_a_stream(stream: Pair, file: int) -> None:
    """No payload is longer than bufsize; the rest of it follows without descriptors."""
    data = bytes(range(256)) * 40
    for bufsize in (1, 2, 4095, 4096, 4097, 100_000):
        fdpass_c.send_many(stream[0], [data], [file])
        with fdpass_c.recv_many(stream[1], 20_000, bufsize) as batch:
            assert b"".join(batch.payloads) == data
            assert max(map(len, batch.payloads)) <= bufsize
            assert [len(fds) for _, fds in batch] == [1] + [0] * (len(batch) - 1)


@pytest.mark.parametrize("flags", [0, socket.MSG_TRUNC])
def test_packet_longer_than_bufsize(flags: int, seqpacket: Pair, make_files: MakeFiles) -> None:
    """Whole messages are handed over, the descriptors of those cut short are closed."""
    files = make_files(4)
    for bufsize in (4, 5, 4096, 5000):
        payloads = [b"1234", b"x" * (bufsize + 1), b"5678", b"y" * 3 * bufsize]
        fdpass_c.send_many(seqpacket[0], payloads, files)
        with pytest.raises(TruncatedBatchError, match="2 messages") as caught:
            fdpass_c.recv_many(seqpacket[1], bufsize=bufsize, flags=flags)
        with caught.value.batch as batch:
            assert contents(batch) == described(payloads[::2], [[fd] for fd in files[::2]])
        assert_empty(seqpacket[1])


def test_all_packets_longer_than_bufsize(seqpacket: Pair, file: int) -> None:
    """Where every message of a size is cut short, none is left."""
    fdpass_c.send_many(seqpacket[0], [b"too long"] * 70, [file] * 70)
    with pytest.raises(TruncatedBatchError, match="70 messages") as caught:
        fdpass_c.recv_many(seqpacket[1], 100, bufsize=1, flags=socket.MSG_TRUNC)
    assert len(caught.value.batch) == 0
    assert len(caught.value.batch.fds) == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("kind", "maxfds"), [("stream", 0), ("seqpacket", 0), ("stream", 1), ("stream", 252)]
)
def test_surplus_descriptors(
    kind: str, maxfds: int, request: pytest.FixtureRequest, make_files: MakeFiles
) -> None:
    """Messages with more than maxfds descriptors are closed and counted, the others are whole."""
    pair: Pair = request.getfixturevalue(kind)
    files = make_files(7)
    payloads = [b"%d" % k for k in range(10)]
    rows = [[files[k % 7]] * (maxfds + (k in (0, 4, 5, 9))) for k in range(10)]
    with many_allowed(10 * maxfds + 1000):
        fdpass_c.send_many(pair[0], payloads, rows)
        if maxfds == 0 and pair[0].type == socket.SOCK_STREAM:
            # Plain bytes run into the message behind them.
            with pytest.raises(TruncatedBatchError) as caught:
                fdpass_c.recv_many(pair[1], maxfds=0)
            assert len(caught.value.batch.fds) == 0
            return
        with pytest.raises(
            TruncatedBatchError, match=r"4 messages.*maxfds.*RLIMIT_NOFILE"
        ) as caught:
            fdpass_c.recv_many(pair[1], maxfds=maxfds)
        whole = [k for k in range(10) if len(rows[k]) == maxfds]
        with caught.value.batch as batch:
            assert contents(batch) == described(
                [payloads[k] for k in whole], [rows[k] for k in whole]
            )
        assert_empty(pair[1])


def test_truncation_in_a_later_chunk(stream: Pair, make_files: MakeFiles) -> None:
    """Whole and truncated messages of many system calls are told apart."""
    files = make_files(7)
    lossy = {0, 63, 64, 65, 100, 191, 192}
    payloads = [b"%d" % k for k in range(200)]
    rows = [[files[k % 7]] * (2 if k in lossy else 1) for k in range(200)]
    fdpass_c.send_many(stream[0], payloads, rows)
    with pytest.raises(TruncatedBatchError, match=f"{len(lossy)} messages") as caught:
        fdpass_c.recv_many(stream[1], 1000)
    whole = [k for k in range(200) if k not in lossy]
    with caught.value.batch as batch:
        assert contents(batch) == described([payloads[k] for k in whole], [rows[k] for k in whole])


@pytest.mark.thread_unsafe
@linux_only
@pytest.mark.parametrize("number", [1, 2])
def test_full_descriptor_table(number: int, stream: Pair, make_files: MakeFiles) -> None:
    """As many messages as the table has room for are whole; of the others nothing stays open."""
    files = make_files(10)

    def child(free: int) -> None:
        payloads = [b"%d" % k for k in range(10)]
        rows = [[fd] * number for fd in files]
        fdpass_c.send_many(stream[0], payloads, rows)
        expected = described(payloads, rows)
        leave_free(free)
        before = [fd for fd in range(100) if is_open(fd)]
        with pytest.raises(TruncatedBatchError, match="RLIMIT_NOFILE") as caught:
            fdpass_c.recv_many(stream[1], maxfds=number)
        whole = free // number
        with caught.value.batch as batch:
            assert contents(batch) == expected[:whole]
        assert [fd for fd in range(100) if is_open(fd)] == before

    for free in (0, 1, 2, 5, 9):
        run_in_child(partial(child, free))


@linux_only
def test_other_control_data(connection: Pair, make_files: MakeFiles) -> None:
    """Credentials and pidfds take nobody's room, and no pidfd stays open."""
    files = make_files(7)
    for option in (SO_PASSCRED, SO_PASSPIDFD):
        set_option(connection[1], option, 1)
    payloads = [b"%d" % k for k in range(9)]
    fds = [files[k % 7] for k in range(9)]
    for maxfds in (1, 2, 253):
        fdpass_c.send_many(connection[0], payloads, fds)
        with fdpass_c.recv_many(connection[1], maxfds=maxfds) as batch:
            assert contents(batch) == described(payloads, [[fd] for fd in fds])


def test_peek(stream: Pair, make_files: MakeFiles) -> None:
    """MSG_PEEK shows the first message once, with descriptors of its own, and leaves it."""
    files = make_files(2)
    fdpass_c.send_many(stream[0], [b"a", b"b"], files)
    with fdpass_c.recv_many(stream[1], flags=socket.MSG_PEEK) as batch:
        assert contents(batch) == described([b"a"], [files[:1]])
    with fdpass_c.recv_many(stream[1]) as batch:
        assert contents(batch) == described([b"a", b"b"], [files[:1], files[1:]])


def test_close_on_exec(stream: Pair, file: int) -> None:
    """Every descriptor of a batch is close-on-exec."""
    fdpass_c.send_many(stream[0], [b"a", b"b"], [[file], [file] * 20])
    with fdpass_c.recv_many(stream[1], maxfds=20) as batch:
        assert len(batch.fds) == 21
        assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in batch.fds)


@pytest.mark.parametrize(
    ("timeout", "expected"),
    [(0, BlockingIOError), (0.01, TimeoutError)],
    ids=["non-blocking", "timeout"],
)
def test_nothing_there(timeout: float, expected: type[OSError], stream: Pair, file: int) -> None:
    """Where no message is there it fails as socket.recvmsg does; it never waits for a second."""
    stream[1].settimeout(timeout)
    with pytest.raises(expected) as reference:
        stream[1].recvmsg(1)
    with pytest.raises(expected) as caught:
        fdpass_c.recv_many(stream[1])
    assert caught.value.args == reference.value.args
    fdpass_c.send_many(stream[0], [b"x"] * 3, [file] * 3)
    with fdpass_c.recv_many(stream[1], 1000) as batch:
        assert batch.payloads == [b"x"] * 3


def test_blocking_does_not_wait_for_a_second(stream: Pair, file: int) -> None:
    """A blocking socket gives what is there, also where that is exactly one chunk."""
    for count in (1, 64):
        fdpass_c.send_many(stream[0], [b"x"] * count, [file] * count)
        with fdpass_c.recv_many(stream[1], 1000) as batch:
            assert len(batch) == count


def test_one_each(stream: Pair, make_files: MakeFiles) -> None:
    """Where each message has one descriptor, payloads and fds go in parallel."""
    files = make_files(3)
    fdpass_c.send_many(stream[0], [b"a", b"b", b"c"], files)
    with fdpass_c.recv_many(stream[1]) as batch:
        assert len(batch) == 3
        assert identities([*batch.fds]) == identities(files)
        pairs = list(zip(batch.payloads, batch.fds, strict=True))
        assert [batch[k] for k in range(3)] == [(payload, [fd]) for payload, fd in pairs]
        assert batch[-1] == batch[2]
        with pytest.raises(IndexError):
            batch[3]
        with pytest.raises(IndexError):
            batch[-4]
        assert "3 messages" in repr(batch)


@pytest.mark.parametrize("first", [1, 70])
def test_different_numbers(first: int, stream: Pair, make_files: MakeFiles) -> None:
    """Indexing and iterating find each message's own descriptors, in whatever chunk it came."""
    files = make_files(5)
    rows = [[files[0]]] * first + [files[:3], files[3:4], files[1:]] + [files[:1]] * 70
    payloads = [b"%d" % k for k in range(len(rows))]
    fdpass_c.send_many(stream[0], payloads, rows)
    expected = described(payloads, rows)
    with fdpass_c.recv_many(stream[1], 1000, maxfds=5) as batch:
        assert contents(batch) == expected
        for at in range(-len(rows), len(rows)):
            payload, fds = batch[at]
            assert (payload, identities(fds)) == expected[at]


@pytest.mark.thread_unsafe
def test_owns_what_was_not_taken(stream: Pair, make_files: MakeFiles) -> None:
    """Leaving the with block closes all but what was taken out of fds."""
    files = make_files(3)
    fdpass_c.send_many(stream[0], [b"x"] * 3, files)
    with fdpass_c.recv_many(stream[1]) as batch:
        numbers = [*batch.fds]
        taken = batch.fds.take(1)
        with pytest.raises(ValueError, match="taken"):
            batch[1]
        assert batch[2] == (b"x", [numbers[2]])
    assert [is_open(fd) for fd in numbers] == [False, True, False]
    assert identity(taken) == identity(files[1])
    os.close(taken)
    batch.close()
    with pytest.raises(ValueError, match="closed"):
        batch[0]


@pytest.mark.thread_unsafe
def test_dropped_open(stream: Pair, file: int) -> None:
    """A batch dropped open is closed with a ResourceWarning."""
    fdpass_c.send_many(stream[0], [b"x"] * 3, [file] * 3)
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031
        batch = fdpass_c.recv_many(stream[1])
        numbers = [*batch.fds]
        del batch
        gc.collect()
    assert not any(map(is_open, numbers))


@pytest.mark.thread_unsafe
def test_dropped_after_taking_all(stream: Pair, file: int) -> None:
    """A batch from which all was taken may be dropped."""
    fdpass_c.send_many(stream[0], [b"x"] * 3, [file] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fds = fdpass_c.recv_many(stream[1]).fds.take_all()
        gc.collect()
    assert identities(fds) == [identity(file)] * 3
    fdpass_c.close_fds(fds)


@pytest.mark.thread_unsafe
def test_handler_raises_while_waiting(stream: Pair, file: int) -> None:
    """An exception from a handler ends a blocked receive, and the next messages still arrive."""
    with (
        handling(signal.SIGUSR1, interrupt),
        once_blocked(stream[1].fileno(), interrupt_main_thread),
        pytest.raises(Interruption),
    ):
        fdpass_c.recv_many(stream[1])
    fdpass_c.send_many(stream[0], [b"a", b"b"], [file] * 2)
    with fdpass_c.recv_many(stream[1]) as batch:
        assert contents(batch) == [(b"a", [identity(file)]), (b"b", [identity(file)])]


@pytest.mark.thread_unsafe
def test_handler_returns_while_waiting(stream: Pair, file: int) -> None:
    """A blocked receive goes on after a handler that returns."""
    with (
        handling(signal.SIGUSR1, lambda: fdpass_c.send_many(stream[0], [b"a"] * 2, [file] * 2)),
        once_blocked(stream[1].fileno(), interrupt_main_thread),
        fdpass_c.recv_many(stream[1]) as batch,
    ):
        assert contents(batch) == [(b"a", [identity(file)])] * 2


@pytest.mark.thread_unsafe
def test_handler_raises_right_after_the_arrival(stream: Pair, file: int) -> None:
    """A handler that raises when the descriptors are in the process leaves none of them open."""

    def raise_and_send() -> None:
        signal.raise_signal(signal.SIGUSR1)
        fdpass_c.send_many(stream[0], [b"x"], [[file] * 5])

    with (
        no_leak(),
        handling(signal.SIGUSR1, interrupt),
        once_blocked(stream[1].fileno(), raise_and_send),
        pytest.raises(Interruption),
    ):
        fdpass_c.recv_many(stream[1], maxfds=5)


@pytest.mark.thread_unsafe
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("rows", "bufsize"), [([1, 1, 1], 10_000), ([1, 2, 0, 5], 10), ([1] * 64 + [3] * 2, 10)]
)
def test_exception_after_every_call(
    rows: list[int], bufsize: int, seqpacket: Pair, file: int
) -> None:
    """Wherever in a receive a handler may raise, no descriptor stays open."""

    def receive() -> None:
        try:
            fdpass_c.recv_many(seqpacket[1], 100, bufsize, 3).close()
        except TruncatedBatchError as error:
            error.batch.close()

    number = 1
    interrupted = True
    while interrupted:
        with no_leak():
            fdpass_c.send_many(seqpacket[0], [b"x"] * len(rows), [[file] * n for n in rows])
            interrupted = interrupt_call(batches, number, receive)
            drain(seqpacket[1])
        number += 1
    assert number > 10


@pytest.mark.thread_unsafe
def test_close_fds() -> None:
    """close_fds closes any number, in scattered runs, in any order, and nothing between them."""
    for count in (1, 2, 3, 1023, 1500):
        with many_allowed(count + 100), open(os.devnull) as null:
            fds = [os.dup(null.fileno()) for _ in range(count)]
            kept = [fd for k, fd in enumerate(fds) if k % 7 == 3]
            closed = [fd for k, fd in enumerate(fds) if k % 7 != 3]
            half = len(closed) // 2
            fdpass_c.close_fds([*closed[half:][::-1], -1, *closed[:half]])
            assert not any(map(is_open, closed))
            assert all(map(is_open, kept))
            fdpass_c.close_fds(kept)
            assert not any(map(is_open, fds))
