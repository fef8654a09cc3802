"""What one call does, and what one peer may have, is bounded; what looks at it costs nothing."""

import array
import contextlib
import itertools
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import fdpass_c
from fdpass_c import (
    Channel,
    Descriptors,
    DescriptorTableFullError,
    PeerClosedError,
    ProtocolError,
)
from fdpass_c.shapes import pack_rows
from support.channels import channels, raw_pair
from support.descriptors import identities, open_unique, repeat
from support.frames import NEXT, WITHDRAWN, first, one, pack
from support.marks import any_in_flight, linux_only
from support.messages import progress_of, take
from support.processes import fork, run_in_child
from support.signals import Interruption, handling, interrupt
from support.tables import fill_table, limit_table, many_allowed, open_numbers
from support.threads import beside
from support.waiting import once_blocked

NOTHING = first(2, 0, b"x") + pack(WITHDRAWN)
"""Two frames that bring no message."""


@contextmanager
def endless_nothing(peer: socket.socket) -> Iterator[None]:
    """A peer that sends frames without a message for as long as the block runs."""

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):
            while True:
                peer.sendall(NOTHING * 1000)

    with beside(feed):
        try:
            yield
        finally:
            peer.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("receive", "timeout", "expected"),
    [("recv", 0, BlockingIOError), ("recv", 0.1, TimeoutError), ("recv_many", 0, BlockingIOError)],
)
def test_time_runs_out(receive: str, timeout: float, expected: type[OSError]) -> None:
    """A peer that never stops sending nothing keeps no call beyond its time."""
    with raw_pair() as (peer, channel):
        channel.settimeout(timeout)
        with endless_nothing(peer):
            for _ in range(5):
                with pytest.raises(expected):
                    getattr(channel, receive)()


@pytest.mark.untraced
@pytest.mark.thread_unsafe
def test_signals_are_heard() -> None:
    """A peer that never stops sending nothing keeps no handler from running."""
    with (
        raw_pair() as (peer, channel),
        handling(signal.SIGALRM, interrupt),
        endless_nothing(peer),
    ):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interruption):
            channel.recv()


def large(count: int, fds: int = 0) -> bytes:
    """A large message of that many bytes, in pieces of one byte."""
    pieces = [pack(NEXT, 0, 0, 0, b"x")] * (count - 1)
    return first(count, fds, b"x", fds) + b"".join(pieces)


def test_pending_after_every_receive() -> None:
    """Whatever comes between them, pending falls by one with each message that is received."""
    rounds = [
        [one(b"a"), large(3), one(b"b")],
        [NOTHING, one(b"c"), NOTHING, large(20)],
        [large(2), NOTHING, pack(1, 1, 0, 5, bytes(4))],
    ]
    with raw_pair() as (peer, channel):
        frames = [b"".join(itertools.chain(*rounds))] * 100
        total = 100 * (3 + 2 + 1 + 5)
        peer.sendall(b"".join(frames))
        channel.setblocking(False)
        received = 0
        while received < total:
            try:
                channel.recv()[1].close()
            except BlockingIOError:
                continue  # It looked at as many frames as one call does.
            received += 1
            left = channel.pending
            for _ in range(min(left, 7)):
                channel.recv()[1].close()
                received += 1
                left -= 1
                assert channel.pending == left
        assert received == total
        assert channel.pending == 0


def measure(function: Callable[[], object]) -> float:
    """The least CPU time of this thread that 2,000 calls took."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(2000):
            function()
        times.append(time.thread_time() - start)
    return min(times)


@pytest.mark.thread_unsafe
@pytest.mark.untraced
def test_pending_costs_nothing() -> None:
    """pending of thousands of frames costs no more than a few times what it costs of none."""

    def look(channel: Channel) -> int:
        return channel.pending

    with raw_pair() as (peer, channel):
        none = measure(partial(look, channel))
        peer.sendall(one(b"") * 3000)
        channel.recv()[1].close()
        assert channel.pending == 2999
        assert measure(partial(look, channel)) < 10 * none


def in_child_with_table_of(limit: int, function: Callable[[], object]) -> None:
    """Runs function in a child that may have that many descriptors open."""

    def child() -> None:
        limit_table(limit)
        function()

    run_in_child(child)


def receive_one(channel: Channel, receive: str) -> tuple[bytes, fdpass_c.Descriptors]:
    """One message, either way."""
    if receive == "recv":
        return channel.recv()
    batch = channel.recv_many(1)
    return batch.payloads[0], batch.fds


@linux_only
@pytest.mark.thread_unsafe
@pytest.mark.parametrize("receive", ["recv", "recv_many"])
def test_room_is_counted_between_messages(receive: str) -> None:
    """One message after the other into a table that was large enough at first: none is lost."""

    def child(free: int) -> None:
        sent = repeat(open_unique(3), 200)
        wanted = identities(sent)
        with channels() as (sender, receiver):
            filler = fill_table(free)
            for _ in range(10):
                for number in range(5):
                    sender.send(b"%d" % number, sent)
                with contextlib.ExitStack() as owners:
                    for number in range(free // 200):
                        payload, owner = receive_one(receiver, receive)
                        owners.enter_context(owner)
                        assert payload == b"%d" % number
                    with pytest.raises(DescriptorTableFullError) as caught:
                        receive_one(receiver, receive)
                    assert (caught.value.needed, caught.value.free) == (200, free % 200)
                for number in range(free // 200, 5):
                    assert take(receive_one(receiver, receive)) == (b"%d" % number, wanted)
            fdpass_c.close_fds(filler)

    for free in (764, 765, 766, 800, 999):
        in_child_with_table_of(2000, partial(child, free))


@pytest.mark.untraced
@linux_only
@pytest.mark.thread_unsafe
def test_room_that_others_take() -> None:
    """A table that other threads fill and empty by receiving, too: no message is lost."""
    total = 150

    def child() -> None:
        sent = repeat(open_unique(3), 200)
        wanted = identities(sent)
        stop = threading.Event()

        def hoard(sender: Channel, receiver: Channel) -> None:
            while not stop.is_set():
                sender.send(b"hoarded", sent)
                sender.send(b"hoarded", sent)
                with contextlib.ExitStack() as owners:
                    for _ in range(2):
                        while not stop.is_set():
                            try:
                                owners.enter_context(receiver.recv()[1])
                            except DescriptorTableFullError:
                                continue
                            break

        with raw_pair() as (sock, receiver), Channel(sock) as sender:
            with contextlib.ExitStack() as stack:
                hoards = [partial(hoard, *stack.enter_context(channels())) for _ in range(3)]
                filler = fill_table(1000)
                for each in hoards:
                    stack.enter_context(beside(each, sock))
                stack.callback(stop.set)
                received = 0
                while received < total:
                    for number in range(received, received + 2):
                        sender.send(b"%d" % number, sent)
                    for number in range(received, received + 2):
                        while True:
                            try:
                                message = receiver.recv()
                            except DescriptorTableFullError:
                                continue
                            break
                        assert take(message) == (b"%d" % number, wanted)
                    received += 2
            fdpass_c.close_fds(filler)

    in_child_with_table_of(4000, child)


GARBAGE = {
    "noise": bytes(range(1, 256)) * 257,
    "one byte": b"X",
    "last byte of a magic": b"FDPX",
    "version": b"FDP\2" + one(b"x", 1)[4:],
    "kind": pack(9, 0, 1, 1, bytes(6)),
    "a piece of nothing": pack(NEXT, 0, 1, 0, b"x"),
    "too many descriptors": pack(1, 0, 254, 1, bytes(6)),
    "size": pack(1, 0, 1, 1, bytes(6), size=65536),
}


@linux_only
@pytest.mark.thread_unsafe
def test_garbage_is_no_full_table(file: int) -> None:
    """What is no frame is a violation of the protocol, however few places the table has left."""

    def child() -> None:
        cases = itertools.product(GARBAGE.values(), [0, 1], [0, 1, 2, 102, 253, 700])
        for garbage, attached, free in cases:
            with raw_pair() as (peer, channel):
                socket.send_fds(peer, [garbage], [file] * attached)
                filler = fill_table(free)
                before = open_numbers()
                for receive in (channel.recv, channel.recv_many, channel.recv):
                    with pytest.raises(ProtocolError):
                        receive()
                assert open_numbers() == before
                fdpass_c.close_fds(filler)

    in_child_with_table_of(900, child)


UNFINISHED = {
    "large": [first(2, 253, b"x", 253)],
    "pieces": [first(2, 506, b"", 253), pack(NEXT, 0, 253, 0, b"x")],
    "packed": [one(b"xx", 253)[:-1]],
    "header": [one(b"xx", 253)[:16]],
    "half a header": [one(b"xx", 253)[:10]],
    "one byte": [b"F"],
    "announced": [first(2, 65536, b"x", 253)],
}
"""What a peer may begin and not end: frames that come with 253 descriptors each."""


@linux_only
@any_in_flight
@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", UNFINISHED)
def test_peers_may_park_half_of_the_table(name: str, file: int) -> None:
    """What peers begin and do not end holds at most half of the limit, and 64 places stay free."""
    frames = UNFINISHED[name]

    def child(limit: int) -> None:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(raw_pair()) for _ in range(10)]
            before = len(open_numbers())
            for peer, channel in pairs:
                channel.setblocking(False)
                for frame in frames:
                    socket.send_fds(peer, [frame], [file] * 253)
                for _ in range(3):
                    with pytest.raises((BlockingIOError, DescriptorTableFullError)):
                        channel.recv()
            after = len(open_numbers())
            assert after - before <= limit // 2
            assert after > before or limit // 2 < 253
            assert limit - after >= 64
        # What was held is given back, and counts no more.
        with channels() as (sender, receiver):
            sender.send(b"whole", [file] * 200)
            assert len(take(receiver.recv())[1]) == 200

    for limit in (300, 1024):
        in_child_with_table_of(limit, partial(child, limit))


@linux_only
@pytest.mark.thread_unsafe
def test_what_was_parked_makes_room_at_once(file: int) -> None:
    """What a withdrawn message held is room for the next one, where one call receives both."""

    def child() -> None:
        with raw_pair() as (peer, channel):
            socket.send_fds(peer, [first(2, 506, b"x", 253)], [file] * 253)
            socket.send_fds(peer, [pack(NEXT, 0, 253, 0)], [file] * 253)
            channel.setblocking(False)
            with pytest.raises(BlockingIOError):
                channel.recv()
            channel.setblocking(True)

            def send() -> None:
                peer.send(pack(WITHDRAWN))
                socket.send_fds(peer, [first(1, 506, b"y", 253)], [file] * 253)
                socket.send_fds(peer, [pack(NEXT, 0, 253, 0)], [file] * 253)

            with once_blocked(channel.fileno(), send):
                assert len(take(channel.recv())[1]) == 506

    in_child_with_table_of(1024, child)


@linux_only
@pytest.mark.thread_unsafe
def test_what_a_waiting_call_holds_counts(file: int) -> None:
    """What peers may park is counted while a call waits for the rest of a message, too."""

    def child() -> None:
        with contextlib.ExitStack() as stack:
            pairs = [stack.enter_context(raw_pair()) for _ in range(3)]
            for peer, _ in pairs:
                socket.send_fds(peer, [first(2, 253, b"x", 253)], [file] * 253)

            def park_more() -> None:
                for (_, channel), expected in zip(pairs[1:], results, strict=True):
                    channel.setblocking(False)
                    with pytest.raises(expected):
                        channel.recv()
                pairs[0][0].send(pack(NEXT, 0, 0, 0, b"x"))

            results = (BlockingIOError, DescriptorTableFullError)
            with once_blocked(pairs[0][1].fileno(), park_more):
                assert len(take(pairs[0][1].recv())[1]) == 253

    in_child_with_table_of(1024, child)


@linux_only
@pytest.mark.thread_unsafe
def test_two_processes_at_one_end(file: int) -> None:
    """Two processes that read one end of a channel in a small table both come to its end."""

    def drain(channel: Channel) -> None:
        with contextlib.suppress(PeerClosedError, ProtocolError):
            while True:
                with channel.recv()[1]:
                    pass

    def child() -> None:
        for _ in range(10):
            with raw_pair() as (peer, channel):
                for _ in range(20):
                    socket.send_fds(peer, [one(b"x", 2)], [file] * 2)
                peer.close()
                pid = fork()
                if pid == 0:
                    status = 1
                    try:
                        drain(channel)
                        status = 0
                    finally:
                        os._exit(status)
                drain(channel)
                assert os.waitpid(pid, 0)[1] == 0

    in_child_with_table_of(300, child)


Way = Callable[[Channel, list[bytes], int], int]
"""Sends payloads with a descriptor without waiting; returns how many count as sent."""


def singles(make: Callable[[bytes], Any], fds: int) -> Way:
    """One send each, of what make makes of the payload and so many descriptors."""

    def send(channel: Channel, payloads: list[bytes], fd: int) -> int:
        for done, payload in enumerate(payloads):
            try:
                channel.send(make(payload), [fd] * fds)
            except BlockingIOError as error:
                return done + progress_of(error).messages
        return len(payloads)

    return send


def batch_of(make: Callable[[bytes], Any], describe: Callable[[int], Any]) -> Way:
    """One send_many, of what make makes of each payload and describe of the descriptor."""

    def send(channel: Channel, payloads: list[bytes], fd: int) -> int:
        try:
            return channel.send_many([*map(make, payloads)], [describe(fd)] * len(payloads))
        except BlockingIOError as error:
            return progress_of(error).messages

    return send


as_array = partial(array.array, "B")

WAYS = {
    "none": singles(bytes, 0),
    "one": singles(bytes, 1),
    "two": singles(bytes, 2),
    "bytearrays": singles(bytearray, 1),
    "arrays": singles(as_array, 1),
    "batch of none": batch_of(bytes, lambda _: []),
    "batch of one": batch_of(bytes, lambda fd: fd),
    "batch of two": batch_of(bytes, lambda fd: [fd, fd]),
    "batch of arrays": batch_of(as_array, lambda fd: fd),
}


@pytest.mark.parametrize("way", WAYS)
def test_sent_in_part(way: str, file: int) -> None:
    """Whatever the buffer takes only in part: what counts as sent arrives whole, and no other."""
    for size, padding in itertools.product((1, 250, 1990, 70_000), range(0, 4000, 400)):
        payloads = [(b"%05d" % number * (size // 5 + 1))[:size] for number in range(100)]
        with channels(buffer=5000) as (sender, receiver):
            sender.setblocking(False)
            sender.send(bytes(padding))
            done = WAYS[way](sender, payloads, file)
            received: list[bytes] = []
            with beside(partial(finish, sender)):
                while received[-1:] != [b"end"]:
                    received.append(take(receiver.recv())[0])
        assert received == [bytes(padding), *payloads[:done], b"end"]


def finish(sender: Channel) -> None:
    """Sends what is kept, and one message more."""
    sender.setblocking(True)
    sender.flush()
    assert sender.unsent == 0
    sender.send(b"end")


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("send", ["send", "send_many"])
def test_what_fits_leaves_at_once(send: str, file: int) -> None:
    """A call that does not wait sends all that there is room for, however many frames that is."""
    with many_allowed(20_000), channels(buffer=4_000_000) as (sender, receiver):
        sender.setblocking(False)
        if send == "send":
            sender.send(b"whole", [file] * 6000)
            payload, fds = receiver.recv()
            with fds:
                assert (payload, len(fds)) == (b"whole", 6000)
        else:
            sender.send_many([array.array("B", b"x")] * 300)
            assert [receiver.recv()[0] for _ in range(300)] == [b"x"] * 300


def test_whole_at_the_last_frame_of_a_look() -> None:
    """A message that becomes whole where a call looks up is handed out by that call."""
    for pieces in (62, 63, 64, 65, 127, 128, 129):
        with raw_pair() as (peer, receiver):
            receiver.setblocking(False)
            frames = [first(pieces, 0, b"x", 0), *[pack(NEXT, 0, 0, 0, b"x")] * (pieces - 1)]
            peer.sendall(b"".join(frames))
            payload, owner = receive_within(receiver, 5)
            with owner:
                assert payload == b"x" * pieces


def receive_within(channel: Channel, tries: int) -> tuple[bytes, Descriptors]:
    """The message that a selector's loop gets: after a refusal it asks again if bytes are there."""
    for _ in range(tries):
        try:
            return channel.recv()
        except BlockingIOError:
            assert select.select([channel], [], [], 0)[0], "nothing tells of what is here"
    raise AssertionError("never")


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("count", [254, 100_000])
def test_what_a_large_batch_leaves_behind(count: int, file: int) -> None:
    """What is kept for the next batch of the same shape is not larger for a larger batch."""
    pack_rows.clear()
    here, there = Channel.pair()
    there.close()
    with here, pytest.raises(BrokenPipeError):
        here.send_many([b"x"] * count, [file] * count)
    assert all(kept <= 253 for kept, _ in pack_rows)
