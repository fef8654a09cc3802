"""A program frozen by PyInstaller has all that it needs to pass descriptors."""

import subprocess
import sys
from pathlib import Path

import pytest

import fdpass_c

pytest.importorskip("PyInstaller", reason="the dependency group freeze is not installed")

PROGRAM = """
import os
from fdpass_c import Channel

reader, writer = os.pipe()
ours, theirs = Channel.pair()
with ours, theirs:
    ours.send(b"a pipe", [writer])
    payload, fds = theirs.recv()
    with fds:
        os.write(fds[0], payload)
print(os.read(reader, 100).decode())
os.close(reader)
os.close(writer)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", ["fdpass_c", "fdpass_c.channel", "fdpass_c.pool"])
def test_program(module: str, tmp_path: Path) -> None:
    """The frozen program runs alone, whichever module it imports first."""
    script = tmp_path / "program.py"
    script.write_text(f"import {module}\n{PROGRAM}")
    options = ["--distpath", "dist", "--workpath", "build", "--specpath", "."]
    found = ["--paths", str(Path(fdpass_c.__file__).parents[1])]
    freeze = [sys.executable, "-m", "PyInstaller", "--noconfirm", *options, *found, str(script)]
    home = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    made = subprocess.run(freeze, cwd=tmp_path, env=home, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    program = tmp_path / "dist" / "program" / "program"
    done = subprocess.run([program], cwd="/", env={}, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("a pipe\n", "")
