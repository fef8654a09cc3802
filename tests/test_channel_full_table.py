"""A full descriptor table loses nothing: a typed error, and the message stays queued."""

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Callable
from functools import partial

import pytest

import fdpass_c
from fdpass_c import Channel, DescriptorTableFullError
from support.channels import channels, raw_pair
from support.descriptors import identities, identity, open_unique, repeat
from support.frames import NEXT, first, one, pack
from support.marks import linux_only
from support.messages import take, take_batch
from support.processes import run_in_child
from support.tables import fill_table, limit_table, open_numbers
from support.threads import beside

pytestmark = [linux_only, pytest.mark.thread_unsafe]


def in_child_with_table_of(limit: int, function: Callable[[], object]) -> None:
    """Runs function in a child that may have that many descriptors open."""

    def child() -> None:
        limit_table(limit)
        function()

    run_in_child(child)


def is_exact(error: DescriptorTableFullError, needed: int, free: int) -> bool:
    return (error.needed, error.free) == (needed, free) and str(needed) in str(error)


@pytest.mark.parametrize("offset", [0, 3, 1000])
def test_a_socket_that_peeks_further_on(offset: int) -> None:
    """A socket on which SO_PEEK_OFF was set makes a channel as others do: each message is found,
    and comes with its own descriptors, where the table has little room."""

    def child() -> None:
        sent = [(b"one", 0), (b"two", 1), (bytes(200_000), 0), (b"three", 1)]
        files = open_unique(2)
        left, right = socket.socketpair()
        right.setsockopt(socket.SOL_SOCKET, 42, offset)
        with Channel(left) as sender, Channel(right) as receiver:
            got: list[tuple[bytes, list[tuple[int, int]]]] = []
            with beside(lambda: got.extend(take(receiver.recv()) for _ in sent)):
                for payload, index in sent:
                    sender.send(payload, [files[index]])
        assert got == [(payload, [identity(files[index])]) for payload, index in sent]

    in_child_with_table_of(300, child)


@pytest.mark.parametrize("receive", ["recv", "recv_many"])
def test_the_limit_is_lowered_between_receives(receive: str) -> None:
    """A receive that follows at once sees the new limit: the message stays queued."""

    def child() -> None:
        (file,) = open_unique(1)
        with channels() as (sender, receiver):
            for _ in range(100):
                for payload in (b"taken", b"queued"):
                    sender.send(payload, [file])
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                lowest = os.dup(file)
                os.close(lowest)
                receiver.recv()[1].close()
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                with pytest.raises(DescriptorTableFullError):
                    getattr(receiver, receive)()
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                receiver.recv()[1].close()

    in_child_with_table_of(20_000, child)


@pytest.mark.parametrize("receive", ["recv", "recv_many"])
def test_stays_queued(receive: str) -> None:
    """One message too many for the table: the error names both numbers, and it comes later."""

    def child(count: int) -> None:
        files = open_unique(3)
        sent = repeat(files, count)
        with channels() as (sender, receiver):
            sender.send(b"kept", sent)
            for free in range(min(count, 3)):
                filler = fill_table(free)
                before = open_numbers()
                for _ in range(3):
                    with pytest.raises(DescriptorTableFullError) as caught:
                        getattr(receiver, receive)()
                    assert is_exact(caught.value, count, free)
                assert open_numbers() == before
                fdpass_c.close_fds(filler)
            filler = fill_table(count)
            if receive == "recv":
                payload, owner = receiver.recv()
            else:
                batch = receiver.recv_many()
                payload, owner = batch.payloads[0], batch.fds
            fdpass_c.close_fds(filler)
            with owner:
                assert payload == b"kept"
                assert identities([*owner]) == identities(sent)

    for count in (1, 2, 200):
        in_child_with_table_of(300, partial(child, count))


def test_what_needs_no_descriptor_still_comes() -> None:
    """Messages before the one that finds no room are handed out; so are those without any."""

    def child() -> None:
        file = os.dup(0)
        with channels() as (sender, receiver):
            sender.send(b"one")
            sender.send(b"two")
            sender.send(b"three", [file] * 3)
            sender.send(b"four")
            filler = fill_table(2)
            assert receiver.recv()[0] == b"one"
            assert receiver.recv()[0] == b"two"
            with pytest.raises(DescriptorTableFullError) as caught:
                receiver.recv()
            assert is_exact(caught.value, 3, 2)
            os.close(filler.pop())
            assert len(take(receiver.recv())[1]) == 3
            filler += fill_table(0)
            assert receiver.recv()[0] == b"four"
            fdpass_c.close_fds(filler)

    in_child_with_table_of(300, child)


def test_nothing_but_plain_messages() -> None:
    """A full table is no hindrance where no descriptor comes."""

    def child() -> None:
        with channels() as (sender, receiver):
            filler = fill_table(0)
            sender.send_many([b"x"] * 5000)
            for _ in range(5):
                assert len(receiver.recv_many(2000)) > 0
            fdpass_c.close_fds(filler)

    in_child_with_table_of(300, child)


@pytest.mark.parametrize("count", [300, 10_000])
def test_large_message(count: int) -> None:
    """A message of many frames is refused before anything of it is received, and comes later."""

    def child() -> None:
        files = open_unique(3)
        sent = repeat(files, count)
        with channels() as (sender, receiver):
            sending = threading.Thread(target=sender.send, args=(b"kept", sent))
            sending.start()
            filler = fill_table(260)
            before = len(open_numbers())
            for _ in range(3):
                with pytest.raises(DescriptorTableFullError) as caught:
                    receiver.recv()
                assert is_exact(caught.value, count, 260)
                assert len(open_numbers()) == before
            fdpass_c.close_fds(filler)
            payload, owner = receiver.recv()
            sending.join()
            with owner:
                assert payload == b"kept"
                known = {fd: identity(fd) for fd in files}
                assert identities([*owner]) == [known[fd] for fd in sent]

    # Unfinished messages may hold half of the table.
    in_child_with_table_of(max(count + 1000, 2 * count), child)


def test_full_in_the_middle_of_a_large_message() -> None:
    """A table that fills up between two pieces: the rest comes later, nothing twice."""

    def child() -> None:
        files = open_unique(7)
        sent = repeat(files, 700)
        with raw_pair() as (peer, receiver):
            receiver.setblocking(False)
            socket.send_fds(peer, [first(4, 700, b"ke", 253)], sent[:253])
            with pytest.raises(BlockingIOError):
                receiver.recv()
            socket.send_fds(peer, [pack(NEXT, 0, 253, 0, b"p")], sent[253:506])
            filler = fill_table(100)
            for _ in range(2):
                with pytest.raises(DescriptorTableFullError) as caught:
                    receiver.recv()
                assert is_exact(caught.value, 447, 100)
            fdpass_c.close_fds(filler)
            socket.send_fds(peer, [pack(NEXT, 0, 194, 0, b"t")], sent[506:])
            payload, owner = receiver.recv()
            with owner:
                assert payload == b"kept"
                assert identities([*owner]) == identities(sent)

    in_child_with_table_of(1500, child)  # Unfinished messages may hold half of it.


def test_first_byte_of_a_frame() -> None:
    """A frame of which one byte is here may come if the reserve stays free, counted once."""

    def child() -> None:
        file = os.dup(0)
        frame = one(b"kept", 253)
        with raw_pair() as (peer, receiver):
            receiver.setblocking(False)
            filler = fill_table(253 + 64 - 1)
            socket.send_fds(peer, [frame[:1]], [file] * 253)
            with pytest.raises(DescriptorTableFullError) as caught:
                receiver.recv()
            assert is_exact(caught.value, 253, 253 + 64 - 1)
            os.close(filler.pop())
            with pytest.raises(BlockingIOError):
                receiver.recv()
            fdpass_c.close_fds(filler)
            peer.send(frame[1:])
            assert take(receiver.recv()) == (b"kept", [identity(file)] * 253)

    in_child_with_table_of(1024, child)


def test_refused_beside_free_places() -> None:
    """Where places are free, the error says that it is incomplete messages that have no more."""

    def child() -> None:
        file = os.dup(0)
        with raw_pair() as (peer, receiver):
            receiver.setblocking(False)
            socket.send_fds(peer, [first(0, 513, attached=253)], [file] * 253)
            with pytest.raises(DescriptorTableFullError, match="half of RLIMIT_NOFILE") as caught:
                receiver.recv()
            assert caught.value.needed <= caught.value.free

    in_child_with_table_of(1024, child)


@pytest.mark.parametrize("before", [0, 2], ids=["alone", "behind plain messages"])
def test_no_two_wait_for_each_other(before: int) -> None:
    """Of large messages that do not fit together, one gets the places, and then the other: neither
    holds descriptors of a first piece that the other waits for."""

    def child() -> None:
        file = os.dup(0)
        with (
            raw_pair() as (slow, holder),
            channels() as (one_sender, one_receiver),
            channels() as (other_sender, other_receiver),
        ):
            receivers = [one_receiver, other_receiver]
            for receiver in (holder, *receivers):
                receiver.setblocking(False)
            socket.send_fds(slow, [first(1, 200, attached=100)], [file] * 100)
            with pytest.raises(BlockingIOError):
                holder.recv()
            for sender in (one_sender, other_sender):
                sender.send_many([b"plain"] * before)
                sender.send(b"large", [file] * 600)
            for receiver in receivers * before:
                assert take(receiver.recv()) == (b"plain", [])
            for receiver in receivers:
                with pytest.raises(DescriptorTableFullError):
                    receiver.recv()
            socket.send_fds(slow, [pack(NEXT, 0, 100, 0, b".")], [file] * 100)
            assert take(holder.recv()) == (b".", [identity(file)] * 200)
            for receiver in receivers:
                assert take(receiver.recv()) == (b"large", [identity(file)] * 600)

    in_child_with_table_of(1500, child)  # Unfinished messages may hold half of it.


def test_batch_then_full() -> None:
    """recv_many hands out what there was room for; the rest stays queued."""

    def child() -> None:
        files = open_unique(3)
        with channels() as (sender, receiver):
            sender.send(b"plain")
            sender.send_many([b"a", b"b", b"c"], files)
            filler = fill_table(2)
            assert take_batch(receiver.recv_many()) == [(b"plain", [])]
            with pytest.raises(DescriptorTableFullError) as caught:
                receiver.recv_many()
            assert is_exact(caught.value, 3, 2)
            fdpass_c.close_fds(filler)
            assert take_batch(receiver.recv_many()) == [
                (payload, [identity(fd)])
                for payload, fd in zip([b"a", b"b", b"c"], files, strict=True)
            ]

    in_child_with_table_of(300, child)


@pytest.mark.untraced
@pytest.mark.parametrize("limit", [120, 700])
def test_threads_race_for_descriptors(limit: int) -> None:
    """Others open and close as fast as they can, up to EMFILE: each message arrives once."""
    total = 350

    def child() -> None:
        files = open_unique(5)
        known = identities(files)
        stop = threading.Event()

        def hoard() -> None:
            while not stop.is_set():
                mine = []
                try:
                    while True:
                        mine.append(os.dup(0))
                except OSError:
                    pass
                fdpass_c.close_fds(mine)

        received: list[bytes] = []
        # An ordinary user has no more in flight than the table holds: 67 descriptors a round.
        rounds = threading.Semaphore(limit // 67)
        with raw_pair() as (sock, receiver), Channel(sock) as sender:

            def deliver() -> None:
                for number in range(0, total, 7):
                    rounds.acquire()
                    some = range(number, min(number + 7, total))
                    sender.send(b"many", repeat(files, 60))
                    sender.send_many([b"%d" % at for at in some], [files[at % 5] for at in some])

            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    stack.enter_context(beside(hoard))
                stack.callback(stop.set)
                stack.enter_context(beside(deliver, sock))
                while len(received) < total:
                    try:
                        payload, owner = receiver.recv()
                    except DescriptorTableFullError:
                        continue
                    with owner:
                        found = identities([*owner])
                    if payload == b"many":
                        assert found == repeat_identities(known, 60)
                        continue
                    assert found == [known[int(payload) % 5]]
                    received.append(payload)
                    if len(received) % 7 == 0:
                        rounds.release()
        assert received == [b"%d" % number for number in range(total)]

    in_child_with_table_of(limit, child)


def repeat_identities(known: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    return [known[position % len(known)] for position in range(count)]
