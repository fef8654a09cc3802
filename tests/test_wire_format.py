"""docs/wire-format.md says what goes over the wire, byte for byte."""

import contextlib
import re
import socket
import struct
from collections.abc import Callable
from itertools import pairwise, product

import pytest

import fdpass_c
from fdpass_c import Channel, ProtocolError
from support.c_core import ROOT
from support.channels import raw_pair
from support.descriptors import identity
from support.frames import NEXT, ONE_EACH, PACKED, SAME_LENGTH, WITHDRAWN, first, one, pack
from support.messages import Message, take
from support.tables import fill_table, table_of

PAGE = ROOT / "docs" / "wire-format.md"

SENDS: dict[str, tuple[Callable[[Channel, int], object], list[int]]] = {
    "send_one": (lambda channel, fd: channel.send(b"hi", [fd]), [1]),
    "send_plain": (lambda channel, _: channel.send(b"hi"), []),
    "send_many": (
        lambda channel, fd: channel.send_many([b"one", b"three"], [[fd], [fd, fd]]),
        [3],
    ),
    "large": (lambda channel, fd: channel.send(b"xy", [fd] * 255), [253, 2]),
    "withdrawn": (lambda channel, fd: channel.send(b"xy", [fd] * 254 + [1_000_000_000]), [253]),
}


def read_example(name: str) -> bytes:
    """The bytes of one example on the page: on each line what stands before three spaces."""
    found = re.search(rf"```hex {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    lines = [re.split(r" {3,}", line)[0] for line in found[1].splitlines()]
    return bytes.fromhex("".join(lines))


def receive_raw(sock: socket.socket) -> tuple[bytes, list[int]]:
    """All bytes that are there, and how many descriptors came with each receive that had any."""
    data = b""
    counts: list[int] = []
    sock.setblocking(False)
    while True:
        try:
            piece, fds, _, _ = socket.recv_fds(sock, 1 << 20, 253)
        except BlockingIOError:
            return data, counts
        fdpass_c.close_fds(fds)
        data += piece
        counts += [len(fds)] if fds else []


@pytest.mark.parametrize("name", SENDS)
def test_sends_what_the_page_says(name: str, file: int) -> None:
    """The bytes of each example are those that the call on the page sends."""
    send, counts = SENDS[name]
    wanted = read_example(name)
    if name == "withdrawn":
        wanted = read_example("large")[:30] + wanted
    with raw_pair() as (peer, channel):
        try:
            send(channel, file)
        except OSError:
            assert name == "withdrawn"
        assert receive_raw(peer) == (wanted, counts)


RECEIVED: dict[str, Callable[[tuple[int, int]], list[Message]]] = {
    "send_one": lambda this: [(b"hi", [this])],
    "send_plain": lambda _: [(b"hi", [])],
    "send_many": lambda this: [(b"one", [this]), (b"three", [this] * 2)],
    "large": lambda this: [(b"xy", [this] * 255)],
    "withdrawn": lambda _: [],
}


@pytest.mark.parametrize("name", RECEIVED)
def test_receives_what_the_page_says(name: str, file: int) -> None:
    """A peer that sends the bytes of an example is understood."""
    data = read_example(name)
    with raw_pair() as (peer, channel):
        if name == "large":
            socket.send_fds(peer, [data[:30]], [file] * 253)
            socket.send_fds(peer, [data[30:]], [file] * 2)
        elif name == "withdrawn":
            socket.send_fds(peer, [read_example("large")[:30] + data], [file] * 253)
        else:
            socket.send_fds(peer, [data], [file] * sum(SENDS[name][1]))
        peer.shutdown(socket.SHUT_WR)
        assert [take(message) for message in channel] == RECEIVED[name](identity(file))


def lengths(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def counts(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}H", *numbers)


# name: (frames and how many descriptors go with each, the messages)
CHOICES: dict[str, tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]] = {
    "equal lengths that are listed": (
        [(pack(messages=2, body=lengths(1, 1) + b"ab"), 0)],
        [(b"a", 0), (b"b", 0)],
    ),
    "counts of 1 that are listed": (
        [(pack(PACKED, 0, 2, 2, lengths(0, 1) + counts(1, 1) + b"b"), 2)],
        [(b"", 1), (b"b", 1)],
    ),
    "1024 of one length": (
        [(pack(PACKED, SAME_LENGTH, 0, 1024, lengths(2) + b"ab" * 1024), 0)],
        [(b"ab", 0)] * 1024,
    ),
    "253 of one length, one each": (
        [(pack(PACKED, SAME_LENGTH | ONE_EACH, 253, 253, lengths(0)), 253)],
        [(b"", 1)] * 253,
    ),
    "nothing, as a large message": ([(first(0, 0), 0)], [(b"", 0)]),
    "a small message, as a first piece": ([(first(2, 3, b"ab", 3), 3)], [(b"ab", 3)]),
    "bytes, then descriptors": (
        [
            (first(2, 2, b"a"), 0),
            (pack(NEXT, body=b"b"), 0),
            (pack(NEXT, 0, 1), 1),
            (pack(NEXT, 0, 1), 1),
        ],
        [(b"ab", 2)],
    ),
    "the largest pieces": (
        [
            (first(131_028, 506, b"x" * 65_508, 253), 253),
            (pack(NEXT, 0, 253, 0, b"y" * 65_520), 253),
        ],
        [(b"x" * 65_508 + b"y" * 65_520, 506)],
    ),
    "withdrawn at once, and before the last": (
        [
            (first(2, 2), 0),
            (pack(WITHDRAWN), 0),
            (first(2, 2, b"ab", 1), 1),
            (pack(WITHDRAWN), 0),
            (one(b"ok", 1), 1),
        ],
        [(b"ok", 1)],
    ),
}


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", CHOICES)
def test_choices_of_a_sender(name: str, file: int) -> None:
    """Whatever the page lets a sender choose is understood, and cut where it may be cut; in a table
    with ample room, and in a tight one."""
    for way, limit in product(["packets", "whole", "joined", "bytes"], [4096, 1200]):
        check_choice(name, way, limit, file)


def check_choice(name: str, way: str, limit: int, file: int) -> None:
    frames, wanted = CHOICES[name]
    kind = socket.SOCK_SEQPACKET if way == "packets" else socket.SOCK_STREAM
    if way == "joined":
        # Frames without descriptors follow in the call of the one before.
        joined: list[tuple[bytes, int]] = []
        for data, fds in [
            *frames,
            *[(pack(messages=1, body=lengths(9_000) + bytes(9_000)), 0)] * 9,
        ]:
            if fds or not joined:
                joined.append((data, fds))
            else:
                joined[-1] = (joined[-1][0] + data, joined[-1][1])
        frames, wanted = joined, wanted + [(bytes(9_000), 0)] * 9
    received: list[Message] = []
    with table_of(limit), raw_pair(kind) as (peer, channel):
        filler = fill_table(700) if limit == 1200 else []
        channel.setblocking(False)
        for data, fds in frames:
            cuts = [0, *range(1, 60), len(data)] if way == "bytes" else [0, len(data)]
            for start, end in pairwise(cuts):
                if data[start:end]:
                    socket.send_fds(peer, [data[start:end]], [file] * fds if start == 0 else [])
                with contextlib.suppress(BlockingIOError):
                    while True:
                        received.append(take(channel.recv()))
        fdpass_c.close_fds(filler)
        assert received == [(payload, [identity(file)] * fds) for payload, fds in wanted]
        assert channel.pending == 0


@pytest.mark.parametrize("name", ["packed", "one length", "large"])
def test_limits_of_the_receiver(name: str, file: int) -> None:
    """A message of max_payload and max_fds arrives, and one of more ends the connection."""
    for payload, fds in ((10, 10), (11, 10), (10, 11)):
        frame = {
            "packed": one(bytes(payload), fds),
            "one length": pack(
                PACKED, SAME_LENGTH, fds, 1, lengths(payload) + counts(fds) + bytes(payload)
            ),
            "large": first(payload, fds, bytes(payload), fds),
        }[name]
        with raw_pair(max_payload=10, max_fds=10) as (peer, channel):
            socket.send_fds(peer, [frame], [file] * fds)
            if (payload, fds) == (10, 10):
                assert take(channel.recv()) == (bytes(10), [identity(file)] * 10)
            else:
                with pytest.raises(ProtocolError, match="11"):
                    channel.recv()
                assert peer.recv(1) == b""


def test_numbers_of_the_page() -> None:
    """The limits on the page are the core's."""
    page = PAGE.read_text()
    lib = fdpass_c._native.lib
    magic = b"FDP" + bytes([lib.FDP_FRAME_VERSION])
    assert f"`{magic.hex(' ')}`" in page
    assert f"header of {lib.FDP_HEADER_SIZE} bytes" in page
    assert f"at most {lib.FDP_MAX_FDS}" in page
    assert f"1 to {lib.FDP_FRAME_MESSAGES}" in page
    assert f"at most {lib.FDP_FRAME_SIZE - lib.FDP_HEADER_SIZE}" in page
    assert f"longer than {lib.FDP_FRAME_SIZE} bytes" in page
    for number, name in [(1, "packed"), (2, "first"), (3, "next"), (4, "withdrawn")]:
        assert getattr(lib, f"FDP_{name.upper()}") == number
        assert re.search(rf"(?i)kind {number}[:,] \**{name}", page)
    assert f"| same length | {lib.FDP_SAME_LENGTH} |" in page
    assert f"| one each | {lib.FDP_ONE_EACH} |" in page
