"""What an import brings in: programs that start often should start soon."""

import subprocess
import sys
from pathlib import Path

import pytest

import fdpass_c

pytestmark = pytest.mark.thread_unsafe

_SLOW = {
    "argparse",
    "asyncio",
    "ctypes",
    "dataclasses",
    "fdpass_c.aio",
    "fdpass_c.pool",
    "fdpass_c.testing",
    "importlib.metadata",
    "inspect",
    "json",
    "logging",
    "multiprocessing",
    "ssl",
    "subprocess",
    "tempfile",
    "tracemalloc",
    "trio",
}


def brought_in(module: str) -> set[str]:
    """The slow modules that an import of that one brings in, itself aside."""
    # An editable install is found by such a hook.
    path = [*sys.path, str(Path(fdpass_c.__file__).parents[1])]
    code = f"import sys; sys.path = {path!r}; import {module}; print(*sys.modules)"
    # Without site and the hooks of what is installed, which import what they like.
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return _SLOW & {*done.stdout.split()} - {module}


def test_package() -> None:
    """The package alone brings in nothing slow: no event loop, no pool, no tracemalloc."""
    assert brought_in("fdpass_c") == set()


def test_command_line() -> None:
    """The command line brings in argparse, and the pool only for the command that needs it."""
    assert brought_in("fdpass_c.__main__") == {"argparse"}


def test_event_loops() -> None:
    """fdpass_c.aio does not bring in trio, nor the pool."""
    assert not brought_in("fdpass_c.aio") & {"argparse", "fdpass_c.pool", "trio", "json"}
