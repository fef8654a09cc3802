"""A pool as the first process of a container."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.marks import linux_only
from support.processes import FDPASS, read_state
from support.server import Server

pytestmark = [linux_only, pytest.mark.thread_unsafe]


def find_children(pid: int) -> dict[int, str]:
    """The states of a process's children, by their pids."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # Gone meanwhile.
                found[child] = read_state(child)
    return found


def can_unshare() -> bool:
    """Whether this process may make a pid namespace."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    return subprocess.run([unshare, "-pf", "true"], stderr=subprocess.DEVNULL).returncode == 0


def test_orphans_are_waited_for() -> None:
    """The master of a container's own leaves no zombie of a process that it inherits."""
    if not can_unshare():
        pytest.skip("no pid namespace of its own for this user")
    code = "import os, sys; os.execvp('unshare', ['unshare', '-pf', '--kill-child', *sys.argv[1:]])"
    command = [*FDPASS, "pool", "--workers", "1", "support.handlers:leave_an_orphan"]
    with Server(program=("-c", code, *command)) as server:
        (master,) = find_children(server.pid)
        assert server.ask() == b"left one"
        deadline = time.monotonic() + 30
        while len(children := find_children(master)) > 1:
            assert time.monotonic() < deadline, children
        assert server.ask() == b"left one"  # It goes on.
        os.kill(master, signal.SIGTERM)
        assert server.process.wait(60) == 0
