"""A signal handler that raises never tears the stream: nothing is lost, doubled or left open."""

import array
import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from fdpass_c import (
    Channel,
    Progress,
    ProtocolError,
    batches,
    channel,
    descriptors,
    jobs,
    sending,
    turns,
    waiting,
)
from support.channels import channels, raw_pair
from support.descriptors import identity
from support.frames import first, one, pack
from support.marks import places_known
from support.messages import take
from support.signals import Interruption, handling, interrupt, interrupt_main_thread
from support.tables import many_allowed, table_of
from support.threads import beside
from support.waiting import once_blocked

OURS = {
    module.__file__ for module in (batches, channel, descriptors, jobs, sending, turns, waiting)
}


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("receive", "timeout"), [("recv", None), ("recv", 1000.0), ("recv_many", None)]
)
def test_raising_while_receiving(receive: str, timeout: float | None, file: int) -> None:
    """A handler ends a receive that waits; the message still comes, once."""
    with channels() as (sender, receiver):
        receiver.settimeout(timeout)
        with (
            handling(signal.SIGUSR1, interrupt),
            once_blocked(receiver.fileno(), interrupt_main_thread),
            pytest.raises(Interruption),
        ):
            getattr(receiver, receive)()
        sender.send(b"later", [file])
        assert take(receiver.recv()) == (b"later", [identity(file)])


@contextmanager
def stopping_at(count: int) -> Iterator[list[int]]:
    """As if a handler raised at the count-th place in a Channel where Python may run one: at the
    start of a function, and after a call of one that is written in C, but for __enter__. Gives the
    place if it was reached; within a finaliser Python swallows what is raised there."""
    steps = itertools.count()
    reached: list[int] = []

    def profile(frame: FrameType, event: str, called: object) -> None:
        inside = frame.f_code.co_filename in OURS and event in ("call", "c_return")
        entering = getattr(called, "__name__", "") == "__enter__"
        if inside and not entering and next(steps) == count:
            reached.append(count)
            raise Interruption

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield reached
    finally:
        sys.setprofile(before)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
@pytest.mark.parametrize("kind", [TimeoutError, BlockingIOError])
def test_raising_what_a_timeout_raises(kind: type[OSError], timeout: float | None) -> None:
    """Where only the rest of the last frame waits, a handler's exception ends the send although the
    channel's own of that type would not."""

    def handler() -> None:
        raise kind("of the handler")

    with channels(buffer=20_000) as (sender, receiver):
        sender.settimeout(timeout)
        with (
            handling(signal.SIGUSR1, handler),
            once_blocked(sender.fileno(), interrupt_main_thread),
            pytest.raises(kind, match="of the handler") as caught,
        ):
            sender.send(bytes(50_000))
        assert Progress.of(caught.value) == Progress(1, 0)
        with beside(sender.flush):
            assert take(receiver.recv()) == (bytes(50_000), [])


@contextmanager
def raising_at_bytecode(number: int, function: str) -> Iterator[list[int]]:
    """As if a handler raised before the number-th bytecode of a function of channel.py; gives those
    that were reached. Before Python 3.11 one may run before nearly every bytecode."""
    reached: list[int] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if (frame.f_code.co_filename, frame.f_code.co_name) != (channel.__file__, function):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            reached.append(len(reached) + 1)
            if reached[-1] == number:
                raise Interruption
        return trace

    # The first time of all, Python 3.12 heeds this in the next settrace only.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(None)


@pytest.mark.untraced
@pytest.mark.thread_unsafe
def test_raising_behind_a_send() -> None:
    """A handler raises where a send has only others to wake: no other error takes its place."""
    for number in itertools.count(1):
        with channels() as (sender, receiver):
            sender._senders.append(threading.Lock())
            with (
                contextlib.suppress(Interruption),
                raising_at_bytecode(number, "_finish") as reached,
            ):
                sender.send(b"sent")
            assert take(receiver.recv()) == (b"sent", [])
        if len(reached) < number:
            break
    assert number > 10


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_a_handler_that_receives_inside_a_receive(timeout: float | None) -> None:
    """It gets the next message, and the receive that it interrupted the one after."""
    with channels() as (sender, receiver):
        receiver.settimeout(timeout)
        received = []

        def handler() -> None:
            sender.send(b"one")
            received.append(take(receiver.recv()))
            sender.send(b"two")

        with (
            handling(signal.SIGUSR1, handler),
            once_blocked(receiver.fileno(), interrupt_main_thread),
        ):
            received.append(take(receiver.recv()))
        assert received == [(b"one", []), (b"two", [])]


@pytest.mark.untraced
@pytest.mark.thread_unsafe
@places_known
def test_a_handler_that_receives_a_violation(file: int) -> None:
    """What it interrupted, as that was about to make room for a message, ends with the same."""
    caught: list[ProtocolError] = []

    def profile(_frame: FrameType, event: str, called: object) -> None:
        if event == "c_return" and getattr(called, "__name__", "") == "fdp_receive":
            sys.setprofile(None)
            receiver.recv_many().close()
            with pytest.raises(ProtocolError) as handled:
                receiver.recv_many()
            caught.append(handled.value)

    with raw_pair() as (sock, receiver), Channel(sock.dup()) as sender:
        sender.send(b"with more than usual", [file] * 20)
        sock.send(first(2**64 - 1, 0))
        sys.setprofile(profile)
        try:
            with pytest.raises(ProtocolError) as last:
                receiver.recv()
        finally:
            sys.setprofile(None)
    assert [str(last.value)] == [*map(str, caught)]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_a_handler_that_sends_on_what_it_interrupts(timeout: float | None) -> None:
    """A handler that sends inside a send is told so, at once, and the send goes on."""
    with channels(buffer=5000) as (sender, receiver):
        sender.settimeout(timeout)
        told = threading.Event()

        def send() -> None:
            try:
                for use in (lambda: sender.send(b"inner"), lambda: sender.send_many([b"inner"])):
                    with pytest.raises(RuntimeError, match=r"must not send .* send it interrupts"):
                        use()
            finally:
                told.set()

        def receive() -> None:
            told.wait()
            for wanted in (bytes(1_000_000), b"next"):
                assert take(receiver.recv()) == (wanted, [])

        with (
            handling(signal.SIGUSR1, send),
            once_blocked(sender.fileno(), interrupt_main_thread),
            beside(receive),
        ):
            sender.send(bytes(1_000_000))
            sender.send(b"next")


@pytest.mark.thread_unsafe
def test_raising_in_a_blocked_frame(file: int) -> None:
    """A frame of which a part has left when the handler raises counts as sent; the rest follows."""
    data = os.urandom(60_000)
    with channels(buffer=5000) as (sender, receiver):
        with (
            handling(signal.SIGUSR1, interrupt),
            once_blocked(sender.fileno(), interrupt_main_thread),
            pytest.raises(Interruption),
        ):
            sender.send(data, [file])
        assert 0 < sender.unsent < 60_020
        with beside(lambda: sender.send(b"next", [file])):
            payload, fds = take(receiver.recv())
            assert payload in (data,)
            assert fds == [identity(file)]
            assert take(receiver.recv()) == (b"next", [identity(file)])
        assert sender.unsent == 0


@pytest.mark.thread_unsafe
def test_raising_before_a_frame(file: int) -> None:
    """A frame of which nothing has left when the handler raises is not sent."""
    with channels(buffer=5000) as (sender, receiver):
        sender.setblocking(False)
        sent = 0
        while not sender.unsent:
            try:
                sender.send(bytes(1000))
                sent += 1
            except BlockingIOError:
                break
        sender.setblocking(True)
        with (
            handling(signal.SIGUSR1, interrupt),
            once_blocked(sender.fileno(), interrupt_main_thread),
            pytest.raises(Interruption),
        ):
            sender.send(b"never", [file])
        with beside(lambda: sender.send(b"next")):
            received = [receiver.recv()[0] for _ in range(sent + 1)]
    assert received == [bytes(1000)] * sent + [b"next"]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("fds", [0, 9_000])
def test_raising_in_a_large_message(fds: int, file: int) -> None:
    """A large message that a handler ends is withdrawn: the next one arrives, and only that."""
    data = bytes(16_000_000 if fds == 0 else 1)
    with table_of(2 * fds + 1000), channels(buffer=5000) as (sender, receiver):
        with (
            handling(signal.SIGUSR1, interrupt),
            once_blocked(sender.fileno(), interrupt_main_thread),
            pytest.raises(Interruption),
        ):
            sender.send(data, [file] * fds)
        with beside(lambda: sender.send(b"next", [file])):
            assert take(receiver.recv()) == (b"next", [identity(file)])


@pytest.mark.thread_unsafe
def test_raising_in_a_batch(file: int) -> None:
    """Frames of a batch that a handler ends arrive whole, in order, up to some message."""
    payloads = [b"%06d" % number for number in range(50_000)]
    with many_allowed(20_000), channels(buffer=20_000) as (sender, receiver):
        with (
            handling(signal.SIGUSR1, interrupt),
            once_blocked(sender.fileno(), interrupt_main_thread),
            pytest.raises(Interruption),
        ):
            sender.send_many(payloads, [file] * len(payloads))

        received: list[bytes] = []
        with beside(lambda: sender.send(b"next")):
            while received[-1:] != [b"next"]:
                received.append(take(receiver.recv())[0])
    assert 1 < len(received) < len(payloads)
    assert received[:-1] == payloads[: len(received) - 1]


@pytest.mark.thread_unsafe
def test_raising_in_a_batch_of_one_frame(file: int) -> None:
    """If a part of the frame has left when the handler raises, all its messages count as sent."""
    payloads = [b"%0250d" % number for number in range(40)]
    with channels(buffer=1) as (sender, receiver):
        with (
            handling(signal.SIGUSR1, interrupt),
            once_blocked(sender.fileno(), interrupt_main_thread),
            pytest.raises(Interruption) as caught,
        ):
            sender.send_many(payloads, [file] * 40, start=Progress(10, 0))
        assert sender.unsent > 0
        assert Progress.of(caught.value) == Progress(40, 0)
        with beside(sender.flush):
            received = [take(receiver.recv()) for _ in range(30)]
    assert received == [(payload, [identity(file)]) for payload in payloads[10:]]


def resizing_an_array_in_use() -> contextlib.AbstractContextManager[object]:
    """CPython refuses that, and PyPy does it."""
    if sys.implementation.name == "pypy":
        return contextlib.nullcontext()
    return pytest.raises(BufferError)


@pytest.mark.thread_unsafe
def test_a_handler_that_resizes_what_is_sent() -> None:
    """It cannot, or resizes what was copied: memory that the kernel reads stays where it is."""
    payload = b"a" * 200_000
    data = array.array("B", payload)
    tried = threading.Event()
    others: list[object] = []

    def handler() -> None:
        with resizing_an_array_in_use():
            data.extend(payload * 10)
        # Into memory that this has freed.
        others.extend(array.array("B", b"b" * len(payload)) for _ in range(10))
        tried.set()

    def receive() -> None:
        tried.wait()
        assert receiver.recv()[0] == payload

    with (
        channels(buffer=5000) as (sender, receiver),
        beside(receive),
        handling(signal.SIGUSR1, handler),
        once_blocked(sender.fileno(), interrupt_main_thread),
    ):
        sender.send(data)
    data.append(1)


def look(channel: Channel) -> None:
    assert channel.pending == 1


def receive_nothing(channel: Channel) -> None:
    with contextlib.suppress(BlockingIOError):
        channel.recv()


# Python 3.10 may run a handler between an exception and the end of the with block that it leaves.
not_on_3_10 = pytest.mark.skipif(sys.version_info < (3, 11), reason="a fault of Python 3.10")


@pytest.mark.thread_unsafe
@places_known
@pytest.mark.untraced
@pytest.mark.parametrize(
    "use", [Channel.flush, pytest.param(receive_nothing, marks=not_on_3_10), look]
)
def test_raising_at_any_moment(use: Callable[[Channel], None]) -> None:
    """Wherever a handler raises, nobody is left waiting for his turn."""
    fired = True

    def fire() -> None:
        nonlocal fired
        if not fired:
            fired = True
            raise Interruption

    # A function, because of what test_loops_in_blocks is about.
    def use_until_fired(channel: Channel) -> None:
        while not fired:
            use(channel)

    with channels() as (sender, receiver), handling(signal.SIGALRM, fire):
        receiver.setblocking(False)
        if use is look:
            sender.send_many([b"1", b"2"])
            sender.send(b"3")
            with receiver.recv_many(2):
                pass
        for microseconds in range(500):
            fired = False
            try:
                # Again and again: Python 3.11 now and then runs no handler before the next signal.
                signal.setitimer(signal.ITIMER_REAL, 20e-6 + microseconds / 1_000_000, 1e-3)
                use_until_fired(receiver)
            except Interruption:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)


def is_done(run: Callable[[], object], count: int) -> bool:
    """Runs with a handler that raises at step count; True once there are fewer steps."""
    with contextlib.suppress(Interruption), stopping_at(count) as reached:
        run()
    return not reached


@places_known
@pytest.mark.filterwarnings("ignore:unclosed <Descriptors:ResourceWarning")
@pytest.mark.parametrize("fds", [0, 300])
def test_raising_at_any_step_of_a_large_send(fds: int, file: int) -> None:
    """At any step of a send of many groups of frames, the stream stays whole."""
    data = bytes(200_000)
    for count in itertools.count():
        with channels(buffer=1_000_000) as (sender, receiver):
            done = is_done(lambda sender=sender: sender.send(data, [file] * fds), count)  # type: ignore[misc]
            sender.send(b"next", [file])
            payload, found = take(receiver.recv())
            if payload != b"next":
                assert (len(payload), len(found)) == (len(data), fds)
                payload, found = take(receiver.recv())
            assert (payload, found) == (b"next", [identity(file)])
            receiver.setblocking(False)
            with pytest.raises(BlockingIOError):
                receiver.recv()
        if done:
            break
    assert count > 20


@places_known
@pytest.mark.parametrize(
    ("use", "timeout"), [(Channel.recv, 1e-6), (lambda channel: channel.send(bytes(99_999)), 0)]
)
def test_raising_at_any_step_of_a_wait(use: Callable[[Channel], object], timeout: float) -> None:
    """At any step of a call that waits, another thread can close the channel afterwards."""
    for count in itertools.count():
        with channels(buffer=5000) as (channel, _):
            channel.settimeout(timeout)

            def wait(channel: Channel = channel) -> None:
                with contextlib.suppress(BlockingIOError, TimeoutError):
                    use(channel)

            done = is_done(wait, count)
            with beside(channel.close):
                pass
        if done:
            break
    assert count > 10


@places_known
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed <Descriptors:ResourceWarning")
@pytest.mark.parametrize("receive", ["recv", "recv_many"])
def test_raising_at_any_step_of_a_receive(receive: str, file: int) -> None:
    """At any step of a receive, at most what it was handing out is lost."""

    def call(channel: Channel, found: list[bytes]) -> None:
        if receive == "recv":
            payload, fds = channel.recv()
            fds.close()
            found.append(payload)
        else:
            with channel.recv_many(3) as batch:
                found += batch.payloads

    for count in itertools.count():
        with raw_pair() as (peer, receiver):
            peer.send(one(b"a") + one(b"b"))
            socket.send_fds(peer, [one(b"c", 1)], [file])
            socket.send_fds(peer, [first(2, 2, b"d", 1)], [file])
            socket.send_fds(peer, [pack(3, 0, 1, 0, b"d")], [file])
            socket.send_fds(peer, [first(2, 2, b"e", 1)], [file])
            peer.send(pack(4))
            socket.send_fds(peer, [one(b"f", 1)], [file])
            peer.close()
            found: list[bytes] = []

            def drain(receiver: Channel = receiver, found: list[bytes] = found) -> None:
                while found[-1:] != [b"f"]:
                    call(receiver, found)

            done = is_done(drain, count)
            if found[-1:] != [b"f"]:
                # The last one, where that was being handed out.
                with contextlib.suppress(EOFError):
                    drain()
            wanted = [b"a", b"b", b"c", b"dd", b"f"]
            positions = [wanted.index(payload) for payload in found]
            assert positions == sorted({*positions}), "doubled, or out of order"
            assert len(wanted) - len(found) <= (1 if receive == "recv" else 3)
        if done:
            assert found == wanted
            break
    assert count > 50
