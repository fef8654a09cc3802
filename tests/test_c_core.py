"""The C core compiles alone, without a warning, and passes its own tests under sanitizers."""

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from support.c_core import CORE, FIND_RACES, ROOT, SOURCES, STRICT, require, run, run_sanitized

# Untraced: sanitizers measure nothing, and take long.
pytestmark = [pytest.mark.thread_unsafe, pytest.mark.untraced]

TESTS = sorted((ROOT / "tests" / "c").glob("test_*.c"))

compilers = pytest.mark.parametrize("compiler", ["cc", "clang"])


@compilers
def test_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    """Every file of the core compiles as C11 with all warnings as errors."""
    require(compiler)
    run(compiler, *STRICT, "-O2", "-c", *SOURCES, cwd=tmp_path)


def test_header_stands_alone(tmp_path: Path) -> None:
    """A C program needs to include fdpass.h and nothing before it."""
    require("cc")
    program = tmp_path / "program.c"
    program.write_text('#include "fdpass.h"\nint main(void) { return FDP_MAX_FDS != 253; }\n')
    run("cc", *STRICT, f"-I{CORE}", program, "-o", tmp_path / "program")
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


THREADED = [test for test in TESTS if "pthread" in test.read_text()]


@pytest.mark.skipif(sys.platform != "linux", reason="these tests are written for Linux")
@pytest.mark.parametrize("test", THREADED, ids=[test.stem for test in THREADED])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_no_data_races(compiler: str, test: Path, tmp_path: Path) -> None:
    """No two threads use the same memory without an order, where one of them writes."""
    run_sanitized(compiler, tmp_path / test.stem, test, [], sanitize=FIND_RACES)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_stack_of_a_function(compiler: str, tmp_path: Path) -> None:
    """No function takes more than 12 KiB of the stack, and none takes an unknown amount."""
    require(compiler)
    for level in ("-O0", "-O2"):
        run(compiler, "-std=c11", level, "-fstack-usage", "-c", *SOURCES, cwd=tmp_path)
        lines = [line for file in tmp_path.glob("*.su") for line in file.read_text().splitlines()]
        assert len(lines) > len(SOURCES)
        for line in lines:
            function, size, kind = line.split("\t")
            assert int(size) <= 12 * 1024, function
            assert kind in ("static", "dynamic,bounded"), function


NODE = re.compile(r'node: { title: "(.+?)" .*\\n(\d+) bytes')
EDGE = re.compile(r'edge: { sourcename: "(.+?)" targetname: "(.+?)"')


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere gcc is another compiler's name")
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_stack_of_a_call(level: str, tmp_path: Path) -> None:
    """No call takes more than 16 KiB of the stack, with all that it calls in the core."""
    require("gcc")
    run("gcc", "-std=c11", level, "-fcallgraph-info=su", "-c", *SOURCES, cwd=tmp_path)
    text = "\n".join(file.read_text() for file in tmp_path.glob("*.ci"))
    sizes = {title: int(size) for title, size in NODE.findall(text)}
    called = defaultdict(set)
    for source, target in EDGE.findall(text):
        called[source].add(target)

    def depth(function: str) -> int:
        return sizes.get(function, 0) + max(map(depth, called[function]), default=0)

    for function in ("fdp_send", "fdp_receive", "fdp_recv_batch", "fdp_put_back", "fdp_broadcast"):
        assert depth(function) > 100
    assert {function: depth(function) for function in sizes if depth(function) > 16 * 1024} == {}
