"""The C core compiles alone, without a warning, and passes its own tests under sanitizers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "csrc"
TESTS = sorted((ROOT / "tests" / "c").glob("test_*.c"))
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

compilers = pytest.mark.parametrize("compiler", ["cc", "gcc", "clang"])


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command and fails with its output where it fails."""
    result = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout


def require(compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")


def sources() -> list[Path]:
    return sorted(CORE.glob("*.c"))


@compilers
def test_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    """Every file of the core compiles as C11 with all warnings as errors."""
    require(compiler)
    run(compiler, *STRICT, "-O2", "-c", *sources(), cwd=tmp_path)


@compilers
def test_header_stands_alone(compiler: str, tmp_path: Path) -> None:
    """A C program needs to include fdpass.h and nothing before it."""
    require(compiler)
    program = tmp_path / "program.c"
    program.write_text('#include "fdpass.h"\nint main(void) { return FDP_MAX_FDS != 253; }\n')
    run(compiler, *STRICT, f"-I{CORE}", program, "-o", tmp_path / "program")
    run(tmp_path / "program")


def test_header_is_a_cxx_header_too(tmp_path: Path) -> None:
    """A C++ program can include fdpass.h."""
    require("c++")
    program = tmp_path / "program.cc"
    program.write_text('#include "fdpass.h"\nint main() { return FDP_MAX_FDS != 253; }\n')
    run("c++", "-Wall", "-Wextra", "-Werror", f"-I{CORE}", "-c", program, cwd=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="these tests are written for Linux")
@pytest.mark.parametrize("test", TESTS, ids=[test.stem for test in TESTS])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_under_sanitizers(compiler: str, test: Path, tmp_path: Path) -> None:
    """The tests of the core pass with address and undefined-behaviour checks."""
    require(compiler)
    trivial = tmp_path / "trivial.c"
    trivial.write_text("int main(void) { return 0; }\n")
    try:
        run(compiler, *SANITIZE, trivial, "-o", tmp_path / "trivial")
        run(tmp_path / "trivial")
    except AssertionError as error:
        pytest.skip(f"{compiler} has no working sanitizers here: {error}")
    program = tmp_path / test.stem
    run(compiler, *STRICT, *SANITIZE, f"-I{CORE}", *sources(), test, "-o", program)
    run(program)
