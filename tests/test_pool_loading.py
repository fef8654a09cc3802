"""What fdpass pool says of a handler that it cannot load."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import FDPASS

pytestmark = pytest.mark.thread_unsafe


def load(handler: str, where: Path) -> "subprocess.CompletedProcess[str]":
    command = [*FDPASS, "pool", handler, "127.0.0.1:0"]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_helper", "No module named 'no_such_helper'"),
        ("from os import no_such_name", "cannot import name 'no_such_name'"),
        ("import os; os.no_such_attribute", "has no attribute 'no_such_attribute'"),
        ("import service.missing", "No module named 'service.missing'"),
    ],
)
def test_a_fault_of_the_module(text: str, reason: str, tmp_path: Path) -> None:
    """What the handler's module lacks is said with file and line, and status 1."""
    (tmp_path / "service.py").write_text(f"\n{text}\n")
    done = load("service:handle", tmp_path)
    assert done.returncode == 1
    assert "service.py" in done.stderr
    assert "line 2" in done.stderr
    assert reason in done.stderr
    assert "usage:" not in done.stderr


def test_no_such_handler(tmp_path: Path) -> None:
    """A module or attribute that is not there is a wrong command line; tests/test_command_line.py
    has more of those."""
    (tmp_path / "service.py").write_text("")
    done = load("service:missing", tmp_path)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_was_removed(tmp_path: Path) -> None:
    """Where handlers cannot be looked for, the error names the current directory."""
    code = "import os, sys; os.rmdir(os.getcwd()); sys.path.remove(''); "
    code += (
        "from fdpass_c.__main__ import main; sys.exit(main(['pool', 'os:getpid', '127.0.0.1:0']))"
    )
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True)
    assert done.stderr == "fdpass: pool: .: No such file or directory\n"
    assert done.returncode == 1
