"""Wherever Python finds no memory: nothing is left open, and a channel's messages come once.

The whole of it is `nox -s allocations`.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.thread_unsafe
@pytest.mark.untraced
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="others fail in their own code too")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="with CPython's own means")
def test_some_allocations() -> None:
    """Every 29th allocation of every operation finds no memory."""
    pytest.importorskip("_testcapi")
    done = subprocess.run(
        [sys.executable, "-m", "allocations", "--quick"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    found = re.search(r"(\d+) allocations failed", done.stdout)
    assert found is not None
    assert int(found[1]) > 300
