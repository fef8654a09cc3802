"""A bytearray that another thread resizes during a call sends bytes of its own, and no others."""

import contextlib
import itertools
import socket
import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, buffers, vectors
from support.sockets import Pair

pytestmark = pytest.mark.thread_unsafe

OURS = {buffers.__file__, vectors.__file__}
LONG = 50_000

Operation = Callable[[socket.socket, list[Any]], object]


def resize_after(call: int, changing: bytearray, size: int, function: Callable[[], object]) -> bool:
    """Runs function; resizes changing where another thread could: when the call-th call of a
    function that is written in C has returned. Returns whether there were as many calls."""
    left = call

    def profile(frame: FrameType, event: str, _called: object) -> None:
        nonlocal left
        if event == "c_return" and frame.f_code.co_filename in OURS:
            left -= 1
            if left == 0:
                with contextlib.suppress(BufferError):  # It is in use, so it cannot be resized.
                    changing[:] = b"a" * size

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return left <= 0


def send_over_channel(sock: socket.socket, payloads: list[Any]) -> None:
    with Channel(sock.dup()) as channel:
        channel.send_many(payloads)


OPERATIONS: dict[str, Operation] = {
    "send_fds": lambda sock, parts: fdpass_c.send_fds(sock, parts, []),
    "send_many": lambda sock, parts: fdpass_c.send_many(sock, parts, [[]] * len(parts)),
    "writev": lambda sock, parts: fdpass_c.writev(sock, parts),
    "broadcast": lambda sock, parts: fdpass_c.broadcast([sock], parts),
    "Channel.send_many": send_over_channel,
}


@pytest.mark.untraced
@pytest.mark.parametrize("operation", OPERATIONS)
def test_only_its_own_bytes(operation: str, stream: Pair) -> None:
    """Wherever in a call it is resized, alone or beside a view."""
    sender, receiver = stream
    sender.settimeout(0)
    receiver.settimeout(0)
    besides: list[list[Any]] = [[], [memoryview(b"a")]]
    for beside, (before, after) in itertools.product(besides, [(1, LONG), (LONG, 1)]):
        for call in itertools.count(1):
            changing = bytearray(b"a" * before)
            send = partial(OPERATIONS[operation], sender, [*beside, changing])
            done = not resize_after(call, changing, after, send)
            arrived = receiver.recv(4 * LONG)
            if operation == "Channel.send_many":
                arrived = arrived[arrived.index(b"a") :]
            assert set(arrived) == {ord("a")}
            if done:
                break
