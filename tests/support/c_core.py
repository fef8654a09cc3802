"""The C core, compiled without Python."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "csrc"
SOURCES = sorted(CORE.glob("*.c"))
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command and fails with its output where it fails."""
    result = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout


def require(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")


@functools.cache
def _why_no_sanitizers(compiler: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "trivial.c"), Path(folder, "trivial")
        source.write_text("int main(void) { return 0; }\n")
        try:
            run(compiler, *SANITIZE, source, "-o", program)
            run(program)
        except AssertionError as error:
            return f"{compiler} has no working sanitizers here: {error}"
    return ""


@functools.cache
def _compile_core(compiler: str) -> list[Path]:
    """The object files of the core under sanitizers, made once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="fdpass-core-"))
    atexit.register(shutil.rmtree, folder)
    run(compiler, *STRICT, *SANITIZE, "-c", *SOURCES, cwd=folder)
    return sorted(folder.glob("*.o"))


def run_sanitized(compiler: str, program: Path, source: Path, *arguments: list[str]) -> None:
    """Compiles source with the core under sanitizers, into program; runs it with each arguments."""
    require(compiler)
    if why := _why_no_sanitizers(compiler):
        pytest.skip(why)
    core = _compile_core(compiler)
    run(compiler, *STRICT, *SANITIZE, "-pthread", f"-I{CORE}", *core, source, "-o", program)
    for each in arguments:
        run(program, *each)
