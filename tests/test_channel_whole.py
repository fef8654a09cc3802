"""Messages come out of a Channel whole, in order and exactly once, as they went in."""

import os
import random
import signal
import socket
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fdpass_c
from fdpass_c import Channel
from support.channels import channels
from support.descriptors import identities, open_unique, repeat
from support.messages import Message, take, take_batch
from support.signals import handling
from support.tables import many_allowed
from support.threads import beside

# Payload sizes around every cap of the wire format, and in between.
SIZES = st.one_of(
    st.integers(0, 40),
    st.sampled_from([65_500, 65_508, 65_513, 65_514, 65_515, 65_516, 65_520, 65_536, 131_060]),
    st.integers(0, 200_000),
)
COUNTS = st.one_of(
    st.integers(0, 3), st.sampled_from([252, 253, 254, 506, 507, 600]), st.integers(0, 600)
)
MESSAGES = st.lists(st.tuples(SIZES, COUNTS), max_size=12) | st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 2)), max_size=600
)


@pytest.fixture(scope="module")
def files() -> Iterator[list[int]]:
    fds = open_unique(7)
    yield fds
    fdpass_c.close_fds(fds)


def send_each(channel: Channel, payloads: list[bytes], rows: list[list[int]]) -> None:
    for payload, row in zip(payloads, rows, strict=True):
        channel.send(payload, row)


def send_together(channel: Channel, payloads: list[bytes], rows: list[list[int]]) -> None:
    if all(len(row) == 1 for row in rows):
        assert channel.send_many(payloads, [row[0] for row in rows]) == len(payloads)
    else:
        assert channel.send_many(payloads, rows) == len(payloads)


def send_in_parts(channel: Channel, payloads: list[bytes], rows: list[list[int]]) -> None:
    half = len(payloads) // 2
    send_together(channel, payloads[:half], rows[:half])
    send_each(channel, payloads[half : half + 3], rows[half : half + 3])
    send_together(channel, payloads[half + 3 :], rows[half + 3 :])


def receive_each(channel: Channel, _: random.Random) -> list[Message]:
    messages = []
    try:
        while True:
            messages.append(take(channel.recv()))
    except fdpass_c.PeerClosedError:
        return messages


def receive_together(channel: Channel, choice: random.Random) -> list[Message]:
    messages = []
    try:
        while True:
            most = choice.choice([1, 2, 100, 253, 100_000])
            batch = take_batch(channel.recv_many(most))
            assert 1 <= len(batch) <= most
            messages += batch
    except fdpass_c.PeerClosedError:
        return messages


def receive_by_iteration(channel: Channel, _: random.Random) -> list[Message]:
    return [take(message) for message in channel]


def receive_anyhow(channel: Channel, choice: random.Random) -> list[Message]:
    messages = []
    try:
        while True:
            if choice.random() < 0.5:
                messages.append(take(channel.recv()))
            else:
                messages += take_batch(channel.recv_many(choice.randint(1, 5)))
    except fdpass_c.PeerClosedError:
        return messages


@pytest.mark.thread_unsafe
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    messages=MESSAGES,
    send=st.sampled_from([send_each, send_together, send_in_parts]),
    receive=st.sampled_from([receive_each, receive_together, receive_by_iteration, receive_anyhow]),
    kind=st.sampled_from([socket.SOCK_STREAM, socket.SOCK_SEQPACKET]),
    buffer=st.none() | st.integers(0, 20_000),
    interval=st.sampled_from([0, 0.0003, 0.002]),
    interrupt_sender=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_messages(
    files: list[int],
    messages: list[tuple[int, int]],
    send: Callable[[Channel, list[bytes], list[list[int]]], None],
    receive: Callable[[Channel, random.Random], list[Message]],
    kind: socket.SocketKind,
    buffer: int | None,
    interval: float,
    interrupt_sender: bool,
    seed: int,
) -> None:
    """Any list of messages arrives as it was sent: any sizes, buffers, calls and interruptions."""
    choice = random.Random(seed)
    payloads = [choice.randbytes(size) for size, _ in messages]
    rows = [repeat(files[choice.randrange(7) :], count) for _, count in messages]
    sent = [(payload, identities(row)) for payload, row in zip(payloads, rows, strict=True)]
    if kind == socket.SOCK_SEQPACKET:
        buffer = None  # A packet must fit into it.
    received: list[Message] = []

    with many_allowed(20_000), channels(kind, buffer) as (sender, receiver):

        def deliver() -> None:
            try:
                send(sender, payloads, rows)
            finally:
                sender.close()

        def collect() -> None:
            received.extend(receive(receiver, choice))

        # Signals interrupt the main thread alone.
        here, there = (deliver, collect) if interrupt_sender else (collect, deliver)
        with handling(signal.SIGALRM, lambda: None), beside(there):
            signal.setitimer(signal.ITIMER_REAL, interval, interval)
            try:
                here()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    # Not ==, of which pytest would print megabytes.
    assert received in (sent,), "other messages than were sent"


def test_bytes_like_payloads() -> None:
    """A payload may be any bytes-like object, of items wider than a byte too."""
    payloads: list[Any] = [bytearray(b"one"), memoryview(b"two"), memoryview(b"12345678").cast("I")]
    with channels() as (sender, receiver):
        for payload in payloads:
            sender.send(payload)
        assert sender.send_many(payloads) == 3
        received = [take(receiver.recv())[0] for _ in range(6)]
    assert received == [b"one", b"two", b"12345678"] * 2


def test_objects_with_fileno(file: int) -> None:
    """Descriptors may be objects with fileno(), mixed with ints, in every way to send."""
    with channels() as (sender, receiver), open(file, "rb", closefd=False) as opened:
        sender.send(b"", [opened, file])
        sender.send(b"", [opened] * 300)
        sender.send_many([b"", b""], [opened, opened])
        sender.send_many([b"", b""], [[opened], [opened, opened]])
        sender.send_many([b""] * 40, [file] * 39 + [opened])
        sender.send(b"", [file] * 39 + [opened])
        received = [len(take(receiver.recv())[1]) for _ in range(47)]
    assert received == [2, 300, 1, 1, 1, 2, *[1] * 40, 40]


def test_nothing_to_send() -> None:
    """send_many of no messages sends nothing."""
    with channels() as (sender, receiver):
        assert sender.send_many([]) == 0
        assert sender.send_many([], []) == 0
        sender.send(b"later")
        assert receiver.recv()[0] == b"later"


def test_wrong_elements_send_nothing(file: int) -> None:
    """A wrong payload, descriptor or number of them is refused before anything is sent."""
    with channels() as (sender, receiver):
        for payload, fds in [("text", []), (b"", ["x"]), (b"", [None]), (b"", 5)]:
            with pytest.raises(TypeError):
                sender.send(payload, fds)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"fds\[299\]"):
            sender.send(b"", [file] * 299 + ["x"])  # type: ignore[list-item]
        with pytest.raises(TypeError):
            sender.send_many([b"fine", "text"])  # type: ignore[list-item]
        for memory in (b"with gaps", bytearray(9), array("i", range(9))):
            with pytest.raises(TypeError, match=r"payloads\[1\] is not bytes-like: .*C-contig"):
                sender.send_many([b"fine", memoryview(memory)[::2]])
        with pytest.raises(TypeError):
            sender.send_many([b"fine", b"wrong"], [file, "x"])  # type: ignore[list-item]
        with pytest.raises(TypeError, match=r"fds\[39\]"):
            sender.send_many([b""] * 40, [file] * 39 + ["x"])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="2 payloads, but descriptors for 1"):
            sender.send_many([b"", b""], [file])
        with pytest.raises(ValueError, match="1 payloads, but descriptors for 2"):
            sender.send_many([b""], [[file], []])
        with pytest.raises(ValueError, match="max_messages"):
            receiver.recv_many(0)
        sender.send(b"later")
        assert receiver.recv()[0] == b"later"


def test_at_most_as_many_as_asked_for() -> None:
    """recv_many leaves the rest for the next call; who does not say how many gets 253."""
    with channels() as (sender, receiver):
        sender.send_many([b"x"] * 300)
        assert [len(receiver.recv_many(*most)) for most in ((), (40,), ())] == [253, 40, 7]


def test_received_are_close_on_exec(file: int) -> None:
    """A received descriptor is close-on-exec, whichever way it came."""
    with channels() as (sender, receiver):
        sender.send(b"", [file])
        sender.send(b"", [file] * 300)
        for _ in range(2):
            with receiver.recv()[1] as fds:
                assert {os.get_inheritable(fd) for fd in fds} == {False}


def test_received_outlive_the_channel(file: int) -> None:
    """What was handed out stays open when the channel closes."""
    with channels() as (sender, receiver):
        sender.send(b"one", [file])
        sender.send_many([b"two", b"three"], [[file], [file] * 3])
        _, single = receiver.recv()
        batch = receiver.recv_many()
    with single, batch:
        assert identities([*single, *batch.fds]) == identities([file] * 5)


def test_received_outlive_a_violation(file: int) -> None:
    """What was handed out stays open when the peer breaks the protocol afterwards."""
    left, right = socket.socketpair()
    with Channel(left) as sender, Channel(right) as receiver:
        sender.send(b"one", [file])
        _, fds = receiver.recv()
        left.send(b"no frame")
        with pytest.raises(fdpass_c.ProtocolError):
            receiver.recv()
        with fds:
            assert identities([*fds]) == identities([file])
