"""What the collector finds in a cycle, and finalises in any order, uses no memory that is freed."""

import gc
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

from fdpass_c import Channel

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


@pytest.mark.thread_unsafe
def test_an_owner() -> None:
    """It closes, and does not look for what to warn of where memory was given back."""
    # glibc overwrites what is freed.
    environment = {**os.environ, "PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "165"}
    done = subprocess.run(
        [sys.executable, "-c", _DROP_OWNER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


def test_a_send_that_was_begun() -> None:
    """It is given up, after its channel. Sanitizers see whether that one's memory is there."""
    here, there = Channel.pair()
    with here, there:
        here.setblocking(False)
        sending = here.start_sending(bytes(10_000_000), [])
        assert sending is not None
        sending.step(socket.MSG_DONTWAIT)
    cycle: list[Any] = [here, sending]
    cycle.append(cycle)
    del here, sending, cycle
    gc.collect()
