"""Where Python refuses a call because too many are under way, no message is lost."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.channels import channels
from support.descriptors import identity
from support.marks import places_known
from support.messages import take

CALLS = 60


@contextmanager
def few_calls() -> Iterator[None]:
    """In the block, not many more calls than that can be inside of each other."""
    depth, frame = 0, sys._getframe().f_back
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + CALLS)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def call_inside(depth: int, call: Callable[[], object]) -> None:
    """Calls it inside of that many other calls."""
    if depth > 0:
        call_inside(depth - 1, call)
    else:
        call()


@places_known
@pytest.mark.untraced
@pytest.mark.thread_unsafe
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("size", "fds"), [(1, 1), (1, 20), (100_000, 1)])
def test_receiving(many: bool, size: int, fds: int, file: int) -> None:
    """At any depth: the next receive gets it."""
    refused = 0
    with channels() as (sender, receiver), few_calls():
        receiver.setblocking(False)
        for depth in range(CALLS):
            payload = bytes([depth]) * size
            sender.send(payload, [file] * fds)
            received: list[Any] = []

            def receive(received: list[Any] = received) -> None:
                received += [receiver.recv_many() if many else receiver.recv()]

            try:
                call_inside(depth, receive)
            except RecursionError:
                refused += 1
                receive()
            (got,) = received
            if many:
                with got:
                    assert [(data, len(row)) for data, row in got] == [(payload, fds)]
            else:
                assert take(got) == (payload, [identity(file)] * fds)
    assert refused > 1
