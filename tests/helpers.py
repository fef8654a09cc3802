"""What several test files need."""

import ctypes
import gc
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType

import pytest

Pair = tuple[socket.socket, socket.socket]
MakeFiles = Callable[[int], list[int]]
Keep = Callable[[list[int]], list[int]]

_NOBODY = 65534

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a fact of Linux")
# PyPy may run them between any two instructions.
places_known = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="where CPython runs signal handlers"
)


def list_fds() -> dict[int, str]:
    """The open descriptors of this process and what they point to."""
    found = {}
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        try:
            os.fstat(fd)
        except OSError:
            continue  # the one that listdir itself had open
        try:
            found[fd] = os.readlink(f"/dev/fd/{name}")
        except OSError:
            found[fd] = "unknown"
    return found


@contextmanager
def no_leak() -> Iterator[None]:
    """Fails unless the same descriptors are open after the block as before it."""
    gc.collect()
    before = list_fds()
    yield
    gc.collect()
    after = list_fds()
    leaked = {fd: what for fd, what in after.items() if before.get(fd) != what}
    lost = {fd: what for fd, what in before.items() if after.get(fd) != what}
    assert not leaked, f"left open: {leaked}"
    assert not lost, f"closed, though open before: {lost}"


def identity(fd: int) -> tuple[int, int]:
    """What tells one open file from another, whatever the number of its descriptor."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def identities(fds: list[int]) -> list[tuple[int, int]]:
    return [identity(fd) for fd in fds]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def assert_empty(sock: socket.socket) -> None:
    """Fails if a message waits in sock, or its end of file."""
    with pytest.raises(BlockingIOError):
        sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)


def fill(sock: socket.socket) -> int:
    """Sends until a non-blocking send would block; returns the bytes sent."""
    sent = 0
    chunk = bytes(4096)
    try:
        while True:
            sent += sock.send(chunk, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return sent


def set_option(sock: socket.socket, option: int, value: int) -> None:
    """setsockopt at SOL_SOCKET; skips the test where the kernel does not know the option."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError as error:
        pytest.skip(f"no socket option {option}: {error}")


def become_nobody() -> None:
    """Makes this process one whom the limits of its user bind; root is exempt from several."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 may still count the thread that a test has just joined.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def run_in_child(function: Callable[[], object]) -> None:
    """Runs function in a forked child; what it raises there fails the test here."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            function()
            status = 0
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        report = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, report or f"the child ended with wait status {status}"


@contextmanager
def once_blocked(fd: int, action: Callable[[], object]) -> Iterator[None]:
    """Runs action in a thread as soon as the calling one waits in a system call on fd."""
    state = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")
    if not state.exists():
        pytest.skip("the kernel does not tell in which system call a thread waits")
    left = threading.Event()

    def watch() -> None:
        while not left.is_set():
            # "number argument argument ...", or "running"
            words = state.read_text().split()
            if len(words) > 2 and _find_fd(words) == fd:
                action()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def _find_fd(words: list[str]) -> int:
    """The first argument of a system call, or of the one inside socketcall.

    32-bit glibc has all calls of sockets go through that one, number 102, with the arguments in
    memory. That is on the waiting thread's stack, so it is there even once the call has returned.
    """
    if sys.maxsize < 2**32 and words[0] == "102":
        return ctypes.c_int.from_address(int(words[2], 16)).value
    return int(words[1], 16)


@contextmanager
def handling(signum: int, handler: Callable[[], object]) -> Iterator[None]:
    """Calls handler at every signum while the block runs."""
    before = signal.signal(signum, lambda _signum, _frame: handler())
    try:
        yield
    finally:
        signal.signal(signum, before)


def interrupt_main_thread() -> None:
    """Sends the main thread a SIGUSR1, so that its system call ends in EINTR."""
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGUSR1)


class Interruption(Exception):
    """Raised by a handler."""


def interrupt() -> None:
    raise Interruption


def interrupt_call(module: ModuleType, number: int, function: Callable[[], object]) -> bool:
    """Runs function; raises Interruption when the number-th call out of module has returned.

    That is where Python runs signal handlers. Returns whether there were as many calls.
    """
    left = number

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal left
        caller = frame.f_back if event == "return" else frame
        inside = caller is not None and caller.f_code.co_filename == module.__file__
        if inside and event in ("c_return", "return"):
            left -= 1
            if left == 0:
                raise Interruption

    sys.setprofile(profile)
    try:
        function()
    except Interruption:
        return True
    finally:
        sys.setprofile(None)
    return False
