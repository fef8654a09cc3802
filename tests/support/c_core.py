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
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FIND_RACES = ("-g", "-fsanitize=thread")


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command and fails with its output where it fails."""
    result = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout


def require(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")


def _run_sanitized(program: Path, *arguments: str) -> None:
    # The thread sanitizer cannot place its memory beside addresses that are too random.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    run(*fixed, program, *arguments)


@functools.cache
def _why_no_sanitizers(compiler: str, sanitize: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "trivial.c"), Path(folder, "trivial")
        source.write_text("int main(void) { return 0; }\n")
        try:
            run(compiler, *sanitize, source, "-o", program)
            _run_sanitized(program)
        except AssertionError as error:
            return f"{compiler} has no working {sanitize[1]} here: {error}"
    return ""


@functools.cache
def _compile_core(compiler: str, sanitize: tuple[str, ...]) -> list[Path]:
    """The object files of the core under sanitizers, made once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="fdpass-core-"))
    atexit.register(shutil.rmtree, folder)
    run(compiler, *STRICT, *sanitize, "-c", *SOURCES, cwd=folder)
    return sorted(folder.glob("*.o"))


def run_sanitized(
    compiler: str,
    program: Path,
    source: Path,
    *arguments: list[str],
    sanitize: tuple[str, ...] = SANITIZE,
) -> None:
    """Compiles source with the core under sanitizers, into program; runs it with each arguments."""
    require(compiler)
    if why := _why_no_sanitizers(compiler, sanitize):
        pytest.skip(why)
    core = _compile_core(compiler, sanitize)
    run(compiler, *STRICT, *sanitize, "-pthread", f"-I{CORE}", *core, source, "-o", program)
    for each in arguments:
        _run_sanitized(program, *each)
