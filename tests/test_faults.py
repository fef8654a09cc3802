"""Whatever call or allocation fails: nothing is lost, doubled or left open.

The whole of it is `nox -s faults` and `nox -s pool_faults`.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(
        platform.libc_ver()[0] != "glibc" or shutil.which("gcc") is None,
        reason="a library in front of glibc, compiled by gcc",
    ),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts references"),
    pytest.mark.thread_unsafe,
    pytest.mark.untraced,
    pytest.mark.timeout(300),
]

TESTS = Path(__file__).parent


def _run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", program, "--quick"],
        cwd=TESTS,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    return done.stdout


def test_every_call_that_fails() -> None:
    """Each system call, with each errno of its manual page; some lengths; each allocation.

    Of the commands, and of event loops, a sample.
    """
    output = _run("faults")
    found = re.search(r"(\d+) faults, (\d+) short transfers, (\d+) alloc", output)
    of_commands = re.search(r"all commands: (\d+) faults, (\d+) short", output)
    assert found, output
    assert of_commands, output
    counts = map(int, found.groups() + of_commands.groups())
    least = (9000, 900, 90, 250, 5)
    assert all(count > few for count, few in zip(counts, least, strict=True)), output


def test_pools_whose_calls_fail() -> None:
    """Some of them, in the master and in a worker: the pool serves on, or ends with the error."""
    output = _run("faults.pools")
    found = re.search(r"(\d+) in the master, .*?(\d+) in a worker", output)
    assert found, output
    assert min(map(int, found.groups())) > 50, output
