"""The C core compiles alone, without a warning, and passes its own tests under sanitizers."""

import sys
from pathlib import Path

import pytest

from support.c_core import CORE, ROOT, SOURCES, STRICT, require, run, run_sanitized

pytestmark = pytest.mark.thread_unsafe

TESTS = sorted((ROOT / "tests" / "c").glob("test_*.c"))

compilers = pytest.mark.parametrize("compiler", ["cc", "gcc", "clang"])


@compilers
def test_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    """Every file of the core compiles as C11 with all warnings as errors."""
    require(compiler)
    run(compiler, *STRICT, "-O2", "-c", *SOURCES, cwd=tmp_path)


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
    run_sanitized(compiler, tmp_path / test.stem, test, [])
