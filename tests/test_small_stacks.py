"""Threads whose stacks are small, as musl's are: every call is content with 16 KiB."""

import array
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import fdpass_c
from support.channels import channels
from support.marks import places_known
from support.processes import run_in_child
from support.tables import limit_table
from support.threads import beside

pytestmark = [
    places_known,
    pytest.mark.thread_unsafe,
    pytest.mark.untraced,
    pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python itself wants more"),
]


@contextmanager
def small_stacks() -> Iterator[None]:
    """Threads have 64 KiB, about the least that Python itself runs in."""
    before = threading.stack_size(64 * 1024)
    try:
        yield
    finally:
        threading.stack_size(before)


def use_plain(file: int) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        with left, right:
            fdpass_c.send_many(left, [b"x"] * 100, [file] * 100)
            fdpass_c.send_many(left, [b"x", b"y"], [[file] * 253, [file]])
            fdpass_c.send_many(left, [array.array("B", b"x")] * 10, [file] * 10)
            count = 0
            while count < 112:
                with fdpass_c.recv_many(right, maxfds=253) as batch:
                    count += len(batch)
            fdpass_c.send_fds(left, [b"x"], [file] * 253)
            fdpass_c.close_fds(fdpass_c.recv_fds(right, 1, 253)[1])
            fdpass_c.send_fd(left, file)
            fdpass_c.recv_fd(right)[1].close()


def use_channel(file: int) -> None:
    with channels() as (sender, receiver):
        sender.send_many([b"x"] * 253, [file] * 253)
        with receiver.recv_many() as batch:
            assert len(batch) == 253
        sender.send_many([b"x", b"yy"] * 500)
        assert len(receiver.recv_many(2000)) == 1000
        sender.send(bytes(100_000), [file] * 400)
        with receiver.recv()[1] as fds:
            assert len(fds) == 400


@pytest.mark.parametrize("use", [use_plain, use_channel])
def test_small_stack(use: Callable[[int], None], file: int) -> None:
    """All ways to send and receive work in a thread with a small stack."""

    def child() -> None:
        limit_table(2000)
        with small_stacks(), beside(lambda: use(file)):
            pass

    run_in_child(child)
