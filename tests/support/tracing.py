"""Being a debugger of other processes, on Linux."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_PTRACE_SEIZE, _PTRACE_DETACH, _PTRACE_O_TRACEEXIT = 0x4206, 17, 0x40
_WALL = 0x40000000


@contextmanager
def kept_from_ending(pid: int) -> Iterator[None]:
    """During the block a process cannot end, nor handle a signal, as if a debugger held it."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    ptrace.restype = ctypes.c_long
    if ptrace(_PTRACE_SEIZE, pid, 0, _PTRACE_O_TRACEEXIT) < 0:
        pytest.skip(f"may not trace: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)  # Most have been killed already, unless the test fails.
        os.waitpid(pid, _WALL)
        ptrace(_PTRACE_DETACH, pid, 0, 0)
