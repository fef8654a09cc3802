"""Wherever a signal's handler raises: nothing is left open, and a channel's messages come once.

The whole of it is `nox -s interrupts`.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
HEADER = Path(sysconfig.get_path("include"), "Python.h")


@pytest.mark.thread_unsafe
@pytest.mark.untraced
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="traces CPython's bytecode")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 runs handlers as a function returns")
@pytest.mark.skipif(not (HEADER.exists() and shutil.which("gcc")), reason="compiles for Python")
def test_at_many_places() -> None:
    """A handler that raises, at every 29th bytecode of every operation, in long ones at fewer."""
    done = subprocess.run(
        [sys.executable, "-m", "interrupts", "--quick"],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    found = re.search(r"(\d+) boundaries interrupted", done.stdout)
    assert found is not None
    assert int(found[1]) > 4000
