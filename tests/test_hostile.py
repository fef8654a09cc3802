"""Whatever a peer sends: nothing is left open, and no receive goes on for ever.

The whole of it is `nox -s hostile`.
"""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.thread_unsafe
def test_all_receives() -> None:
    """Each attack on each receiving function, blocking and in event loops, with some seeds, in a
    process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "hostile", "--quick"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "blocking: 1500 hostile connections" in done.stdout
    assert "aio in asyncio: 225 hostile connections" in done.stdout
