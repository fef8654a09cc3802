"""Children of the test, and whose they are; none outlives it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import AnyStr

FDPASS = [sys.executable, "-W", "error", "-m", "fdpass_c"]

_NOBODY = 65534


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
    try:
        with open(reader, "rb") as pipe:
            report = pipe.read().decode()
    except BaseException:
        os.kill(pid, signal.SIGABRT)  # Upon which faulthandler says where it hangs.
        raise
    finally:
        _, status = os.waitpid(pid, 0)
    assert status == 0, report or f"the child ended with wait status {status}"


class Program(subprocess.Popen[AnyStr]):
    """A program in the background, which an exception that leaves its block ends as well."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.kill()
        super().__exit__(exc_type, value, traceback)


def read_state(pid: int) -> str:
    """One letter, as Linux shows it: a process that has ended, and was not waited for, is Z."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def read_cpu_time(pid: int) -> float:
    """The seconds in which a process has used a CPU, as Linux counts them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Makes this process the parent of all who lose theirs below it, where that can be."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _kill_children(killed: dict[str, str]) -> None:
    """Kills this process's children, and theirs as it inherits them, as long as there are any."""
    while children := [
        pid
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]:
        for pid in children:
            # Some end, and are waited for, meanwhile.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if words != [""]:
                    os.kill(int(pid), signal.SIGKILL)
                    killed[pid] = " ".join(words)


@contextmanager
def no_process_left(patience: float = 20) -> Iterator[None]:
    """Fails if a child, or an orphan of one, does not end by itself after the block; kills it."""
    yield
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    killed: dict[str, str] = {}
    killer = threading.Timer(patience, _kill_children, [killed])
    killer.start()
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
    finally:
        killer.cancel()
        killer.join()
    assert not killed, f"left running: {killed}"
