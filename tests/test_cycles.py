"""What the collector finds in a cycle, and finalises in any order, uses no memory that is freed."""

import gc
import os
import socket
import subprocess
import sys
import sysconfig
from typing import Any

import pytest

from fdpass_c import Channel
from fdpass_c.channel import end_of
from fdpass_c.sending import start_one

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
