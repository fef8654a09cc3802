"""The blocking Channel against the model."""

import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fdpass_c
from fdpass_c import (
    Channel,
    DescriptorTableFullError,
    PeerClosedError,
    Progress,
    ProtocolError,
    channel,
    sending,
)
from fdpass_c.channel import end_of
from fdpass_c.testing import full_table, list_fds
from stateful.model import Files, Queue, take_at_most, tried
from support.messages import Message, take
from support.signals import Interruption, interrupt_call

MAX_PAYLOAD, MAX_FDS = 300_000, 400

ends = st.integers(0, 1)
sizes = st.one_of(st.integers(0, 20), st.integers(0, 3000), st.integers(0, 250_000))
counts = st.one_of(st.integers(0, 3), st.sampled_from([252, 253, 254, 300]))
shapes = st.lists(st.tuples(sizes, counts), max_size=6)
uniform_shapes = st.tuples(st.integers(0, 20), st.integers(1, 600))
timeouts = st.sampled_from([0, 0, 0.001])

# Steps before an end of the connection, after which little is left to happen.
_STEPS = 20

Receive = Callable[[Channel], list[Message]]


def _recv(end: Channel) -> list[Message]:
    return [take(end.recv())]


def _recv_interrupted(end: Channel) -> list[Message]:
    try:
        with _interrupts():
            return _recv(end)
    except Interruption:
        end_of(end).raise_failure()  # Perhaps in place of the interrupted call's own.
        return []


class ChannelMachine(RuleBasedStateMachine):
    """Both ends of a connection, one thread, and in each direction a queue of messages."""

    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        self._before = list_fds()
        self._files = Files()
        self._ends: list[Channel] = []
        self._sent = [Queue(), Queue()]  # What end 0 has sent, what end 1 has.
        self._steps = 0

    @initialize(packets=st.booleans(), buffer=st.sampled_from([1, 1, 20_000, 1 << 20]))
    def connect(self, packets: bool, buffer: int) -> None:
        kind = socket.SOCK_SEQPACKET if packets else socket.SOCK_STREAM
        for sock in socket.socketpair(socket.AF_UNIX, kind):
            if not packets:  # A packet has to fit.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            self._ends.append(self._wrap(sock))

    def _wrap(self, sock: socket.socket) -> Channel:
        end = Channel(sock, max_payload=MAX_PAYLOAD, max_fds=MAX_FDS)
        end.setblocking(False)
        return end

    @invariant()
    def count(self) -> None:
        self._steps += 1
        tried["steps"] += 1

    @rule(end=ends, timeout=timeouts, waits=st.booleans())
    def set_options(self, end: int, timeout: float, waits: bool) -> None:
        if not self._ends[end].closed:
            self._ends[end].settimeout(timeout)
        self._ends[end].wait_in_flight = waits

    # -- sending -----------------------------------------------------------------------------------

    def _send(
        self, end: int, payloads: list[bytes], rows: list[list[int]], send: Callable[[], object]
    ) -> int:
        """Sends, and notes what the receiver gets; how many of the messages those are."""
        queue = self._sent[end]
        done, doubt = len(payloads), None
        try:
            send()
            assert not queue.ended or not payloads
        except Interruption as error:
            tried["interrupted sends"] += 1
            if hasattr(error, "progress"):
                done = error.progress.messages
            else:
                doubt = object()  # It came before the first message, or after the last.
        except (OSError, ProtocolError) as error:
            tried["sends that failed"] += 1
            self._check_failure(end, error)
            progress = getattr(error, "progress", Progress())
            assert progress.bytes == 0
            done = progress.messages
            assert done < len(payloads) or queue.ended
        if not queue.ended:
            queue.add(payloads[:done], rows[:done], doubt)
        return done

    def _check_failure(self, end: int, error: Exception) -> None:
        is_late = isinstance(error, (BlockingIOError, TimeoutError))
        # An ordinary user may have few in flight.
        assert is_late or self._sent[end].ended or "many references" in str(error), error

    @rule(end=ends, size=sizes, count=counts, wrap=st.sampled_from([bytes, bytearray, memoryview]))
    def send(self, end: int, size: int, count: int, wrap: Callable[[bytes], Any]) -> None:
        payload, row = self._files.message(size, count)
        self._send(end, [payload], [row], lambda: self._ends[end].send(wrap(payload), row))

    @rule(end=ends, shape=shapes)
    def send_many(self, end: int, shape: list[tuple[int, int]]) -> None:
        made = [self._files.message(*each) for each in shape]
        rows = [row for _, row in made]
        self._send_twice(end, [payload for payload, _ in made], rows, rows)

    @rule(end=ends, shape=uniform_shapes)
    def send_uniform(self, end: int, shape: tuple[int, int]) -> None:
        size, count = shape
        made = [self._files.message(size, 1) for _ in range(count)]
        rows = [row for _, row in made]
        self._send_twice(end, [payload for payload, _ in made], rows, [fd for (fd,) in rows])

    def _send_twice(
        self, end: int, payloads: list[bytes], rows: list[list[int]], fds: list[Any]
    ) -> None:
        """If not all goes, once more from there, when something was received."""
        here = self._ends[end]
        done = self._send(end, payloads, rows, lambda: here.send_many(payloads, fds))
        if done < len(payloads) and not self._sent[end].ended:
            self.recv_many(1 - end, 100)
            start = Progress(done, 0)
            rest, left = payloads[done:], rows[done:]
            try:
                here.send_many(payloads, fds, start=start)
            except (OSError, ProtocolError) as error:
                self._check_failure(end, error)
                sent = getattr(error, "progress", start).messages - done
                rest, left = rest[:sent], left[:sent]
            if not self._sent[end].ended:
                self._sent[end].add(rest, left)

    @rule(end=ends)
    def flush(self, end: int) -> None:
        try:
            self._ends[end].flush()
        except (OSError, ProtocolError) as error:
            self._check_failure(end, error)
        else:
            assert not self._ends[end].unsent

    # -- receiving ---------------------------------------------------------------------------------

    def _receive(self, end: int, receive: Receive) -> bool:
        """Whether anything came, which is what had to come."""
        here, there = self._ends[end], self._ends[1 - end]
        queue = self._sent[1 - end]
        torn = self._are_torn()
        try:
            messages = receive(here)
            for message in messages:
                queue.take(message)
            tried["messages"] += len(messages)
            return bool(messages)
        except (BlockingIOError, TimeoutError):
            # All that was sent is here, unless a part waits at the other end.
            assert queue.is_empty or there.unsent
            assert not queue.ended
        except DescriptorTableFullError:
            tried["full tables"] += 1
            # What brings them may have been withdrawn.
        except ProtocolError:
            tried["torn ends"] += 1
            assert queue.torn
            self._end(torn)
        except PeerClosedError:
            assert queue.ended
            assert queue.is_empty
            assert not queue.torn
        except ConnectionResetError:
            assert there.closed
            assert queue.is_empty or queue.torn
        except OSError:
            assert here.closed
        return False

    @rule(end=ends)
    def recv(self, end: int) -> None:
        self._receive(end, _recv)

    @rule(end=ends, most=st.sampled_from([1, 2, 3, 100, 1000]))
    def recv_many(self, end: int, most: int) -> None:
        self._receive(end, lambda here: take_at_most(most, here.recv_many(most)))

    @rule(end=ends, free=st.sampled_from([0, 1, 3, 70, 300]), most=st.sampled_from([1, 100]))
    def receive_with_a_full_table(self, end: int, free: int, most: int) -> None:
        with full_table(free):
            self._receive(end, lambda here: take_at_most(most, here.recv_many(most)))

    # -- interrupts --------------------------------------------------------------------------------

    @rule(end=ends, size=sizes, count=counts, place=st.integers(1, 30))
    def interrupt_send(self, end: int, size: int, count: int, place: int) -> None:
        payload, row = self._files.message(size, count)
        module = [channel, sending][place % 2]
        here = self._ends[end]

        def send() -> None:
            with _no_collection():
                if interrupt_call(module, place, lambda: here.send(payload, row)):
                    raise Interruption

        self._send(end, [payload], [row], send)

    @rule(end=ends, place=st.integers(1, 30), most=st.sampled_from([1, 100]))
    def interrupt_receive(self, end: int, place: int, most: int) -> None:
        """What a handler's exception keeps from being handed out comes with the next receive."""
        received: list[Message] = []

        def receive() -> None:
            batch = self._ends[end].recv_many(most)
            received.extend(take_at_most(most, batch))

        def attempt(here: Channel) -> list[Message]:
            with _no_collection():
                if interrupt_call(channel, place, receive):
                    end_of(here).raise_failure()  # Perhaps in place of the interrupted call's own.
            return received

        self._receive(end, attempt)

    @rule(end=ends, shape=shapes)
    def interrupt_waiting(self, end: int, shape: list[tuple[int, int]]) -> None:
        """A handler's exception ends calls that wait for ever."""
        here = self._ends[end]
        if here.closed:
            return
        made = [self._files.message(*each) for each in shape]
        payloads, rows = [payload for payload, _ in made], [row for _, row in made]
        here.settimeout(None)
        with _interrupts():
            self._send(end, payloads, rows, lambda: here.send_many(payloads, rows))
        self._receive(end, _recv_interrupted)
        here.setblocking(False)

    # -- ends --------------------------------------------------------------------------------------

    @precondition(lambda self: self._steps > _STEPS)
    @rule(end=ends, how=st.sampled_from([socket.SHUT_WR, socket.SHUT_RD]))
    def shutdown(self, end: int, how: int) -> None:
        if not self._ends[end].closed:
            sender = end if how == socket.SHUT_WR else 1 - end
            is_torn = self._ends[sender].unsent > 0
            self._ends[end].shutdown(how)
            self._sent[sender].end(is_torn)

    @precondition(lambda self: self._steps > _STEPS)
    @rule(end=ends)
    def close(self, end: int) -> None:
        torn = self._are_torn()
        self._ends[end].close()
        self._end(torn)

    @rule(end=ends)
    def detach(self, end: int) -> None:
        here = self._ends[end]
        try:
            sock = here.detach()
        except ValueError:
            pass  # What is here may have been withdrawn.
        except ProtocolError:
            assert self._sent[1 - end].torn
        except OSError:
            assert here.closed
        else:
            self._ends[end] = self._wrap(sock)

    def _are_torn(self) -> list[bool]:
        return [end.unsent > 0 for end in self._ends]

    def _end(self, torn: list[bool]) -> None:
        """Nothing more leaves either end."""
        for queue, is_torn in zip(self._sent, torn, strict=True):
            queue.end(is_torn)

    def teardown(self) -> None:
        """All that was sent arrives, and nothing else; nothing is left open."""
        try:
            for end in self._ends:
                if not end.closed:
                    end.setblocking(False)
            left = [True]
            while any(left):
                left = [self._drain(number) for number in range(len(self._ends))]
            if not any(queue.ended for queue in self._sent):
                self._ends = [self._wrap(end.detach()) for end in self._ends]
        finally:
            for end in self._ends:
                end.close()
            fdpass_c.close_fds(self._files.fds)
        gc.collect()
        assert list_fds() == self._before

    def _drain(self, end: int) -> bool:
        """Whether anything came, or may still come."""
        with contextlib.suppress(OSError, ProtocolError):
            self._ends[1 - end].flush()
        came = self._receive(end, lambda here: take_at_most(253, here.recv_many()))
        return came or (self._ends[1 - end].unsent > 0 and not self._sent[1 - end].ended)


@contextmanager
def _no_collection() -> Iterator[None]:
    """It can call anything, which must not be interrupted."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _interrupt_channel(_signum: int, frame: FrameType | None) -> None:
    """Raises in calls of a channel only: what the test itself does must not be interrupted."""
    while frame is not None:
        if frame.f_code.co_filename == channel.__file__:
            raise Interruption
        frame = frame.f_back


@contextmanager
def _interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _interrupt_channel)
    with _no_collection():
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
