"""Children of the test, and whose they are."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable

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
    with open(reader, "rb") as pipe:
        report = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, report or f"the child ended with wait status {status}"
