"""docs/wire-format.md says what goes over the wire, byte for byte."""

import re
import socket
from collections.abc import Callable

import pytest

import fdpass_c
from fdpass_c import Channel
from support.c_core import ROOT
from support.channels import raw_pair
from support.descriptors import identity
from support.messages import Message, take

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
