"""Doing something as soon as the calling thread waits in the kernel."""

import ctypes
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# The numbers of poll and ppoll, and of socketcall, by machine and whether Python has 64 bits: a
# kernel that says x86_64 runs both.
_POLL = {
    ("x86_64", True): (7, 271),
    ("x86_64", False): (168, 309),
    ("i686", False): (168, 309),
    ("aarch64", True): (73,),
    ("armv7l", False): (168, 336),
    ("ppc64le", True): (167, 281),
    ("riscv64", True): (73,),
    ("s390x", True): (168, 302),
}.get((platform.machine(), sys.maxsize > 2**32))
_SOCKETCALL = 102 if sys.maxsize < 2**32 else None


@contextmanager
def once_blocked(fd: int, action: Callable[[], object]) -> Iterator[None]:
    """Runs action in a thread as soon as the calling one waits for fd, in poll or a call on it."""
    state = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    if _POLL is None or not state.exists():
        pytest.skip("the kernel does not tell in which system call a thread waits")
    entered, left = threading.Event(), threading.Event()

    def watch() -> None:
        # Of a call without arguments, as before that, the kernel shows what registers held.
        entered.wait()
        while not left.is_set():
            # "number argument argument ...", or "running"
            words = state.read_text().split()
            if len(words) > 2 and _find_fd(words) == fd:
                action()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        entered.set()
        yield
    finally:
        left.set()
        thread.join()


def wait_until_blocked(pid: int) -> None:
    """Returns once a program waits in a call for a peer, a message or a byte."""
    state = Path(f"/proc/{pid}/wchan")
    if not state.exists():
        pytest.skip("the kernel does not tell where a process waits")
    words = ("unix", "skb", "pipe", "poll", "wait_for_more")
    while not any(word in state.read_text() for word in words):
        pass


def _find_fd(words: list[str]) -> int:
    """The descriptor that a system call waits for: its first argument, or what that points to.

    poll has it at the start of an array. 32-bit glibc has all calls of sockets go through one,
    socketcall, with the arguments in memory. Both are the waiting thread's, which keeps them.
    """
    assert _POLL is not None
    number, first, second = int(words[0]), int(words[1], 16), int(words[2], 16)
    if number in _POLL:
        return ctypes.c_int.from_address(first).value
    if number == _SOCKETCALL:
        return ctypes.c_int.from_address(second).value
    return first
