"""What the collector finds in a cycle, and finalises in any order, uses no memory that is freed."""

import gc
import os
import socket
import subprocess
import sys
import sysconfig
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel
from fdpass_c.channel import end_of
from fdpass_c.sending import start_one
from support.channels import channels

_DROP_OWNER = """
import gc, os
from fdpass_c import Descriptors
class Box:
    pass
box = Box()
box.me = box
box.owner = Descriptors([os.dup(0)])
fd = box.owner[0]
del box
gc.collect()
try:
    os.fstat(fd)
except OSError:
    print("closed")
"""

_DROP_SENDING = """
import gc
from fdpass_c import Channel
from fdpass_c.channel import end_of
from fdpass_c.sending import start_one

class Box:
    pass

here, there = Channel.pair()
here.setblocking(False)
box = Box()
box.me = box
box.sending = start_one(end_of(here).outbox, bytes(10_000_000), [])
box.sending.step(0x40)
del box
gc.collect()
there.setblocking(False)
try:
    there.recv()
except BlockingIOError:
    here.flush()
try:
    there.recv()
except BlockingIOError:
    here.send(b"next")
    print(there.recv()[0].decode())
"""


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("program", "printed"), [(_DROP_OWNER, "closed"), (_DROP_SENDING, "next")])
def test_alone(program: str, printed: str) -> None:
    """An owner closes, a send that was begun is withdrawn; neither uses memory given back.

    Of the second only sanitizers tell.
    """
    # glibc overwrites what is freed. A free-threaded Python does it itself, and takes no other's.
    allocator = "debug" if sysconfig.get_config_var("Py_GIL_DISABLED") else "malloc"
    environment = {**os.environ, "PYTHONMALLOC": allocator, "MALLOC_PERTURB_": "165"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{printed}\n"), done.stderr


def test_a_send_that_was_begun() -> None:
    """It is given up, after its channel. Sanitizers see whether that one's memory is there."""
    here, there = Channel.pair()
    with here, there:
        here.setblocking(False)
        sending = start_one(end_of(here).outbox, bytes(10_000_000), [])
        assert sending is not None
        sending.step(socket.MSG_DONTWAIT)
    cycle: list[Any] = [here, sending]
    cycle.append(cycle)
    del here, sending, cycle
    gc.collect()


class Box:
    """What a frame holds."""


def _fill(channel: Channel) -> None:
    while True:
        channel.send(bytes(50_000))


@pytest.mark.thread_unsafe
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references")
@pytest.mark.parametrize("timeout", [0.0, 1e-3])
@pytest.mark.parametrize(
    "use",
    [
        Channel.recv,
        Channel.recv_many,
        _fill,
        lambda channel: channel.send(bytes(9_000_000)),
        lambda channel: channel.send_many([bytes(50_000)] * 99),
        lambda channel: channel.send(b"", [-5]),
        lambda channel: fdpass_c.writev(channel.fileno(), [bytes(9_000_000)]),
        lambda channel: fdpass_c.recv_fds(channel.fileno(), 1, 1),
    ],
)
def test_an_error_is_in_no_cycle(use: Callable[[Channel], object], timeout: float) -> None:
    """What its traceback holds goes with it, and does not wait for the collector."""
    with channels(buffer=5000) as (channel, _):
        channel.settimeout(timeout)

        def fail() -> weakref.ref[Box]:
            box = Box()
            held = weakref.ref(box)
            try:
                use(channel)
            except (OSError, ValueError):
                return held
            raise AssertionError("no error")

        gc.collect()
        gc.disable()
        try:
            held = fail()
            assert held() is None
        finally:
            gc.enable()
