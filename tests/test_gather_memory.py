"""writev and broadcast need little memory, whatever the shape of the list."""

import os
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fdpass_c
from support.marks import linux_only
from support.processes import run_in_child

tracemalloc: Any = pytest.importorskip("tracemalloc", reason="PyPy has none")
pytestmark = pytest.mark.thread_unsafe  # The memory is that of the whole process.

LIMIT = 2**20 + 2**18  # the copy, and what describes the buffers
LARGE = bytes(8 * 2**20)

SHAPES: dict[str, list[bytes]] = {
    "alone": [LARGE],
    "head": [b"head", LARGE],
    "tail": [LARGE, b"tail"],
    "middle": [b"head", LARGE, b"tail"],
    "small ones around": [*[b"x"] * 500, LARGE, *[b"x"] * 500],
    "behind 16": [*[b"x"] * 16, LARGE],
    "every other": [b"x", LARGE] * 10,
    "late": [*[b"x" * 60] * 1023, LARGE],
    "next part": [*[b"x"] * 1500, LARGE],
    "mean just below": [bytes(1024)] * 1024,
    "wide rows": [bytes(254)] * 1024,
}


def measure(buffers: list[Any]) -> tuple[int, int]:
    """The peaks of both in bytes, each writing to nowhere."""
    peaks = []
    with open(os.devnull, "wb", buffering=0) as null:
        for write in (fdpass_c.writev, lambda fd, data: fdpass_c.broadcast([fd], data)):
            write(null.fileno(), buffers)  # what is kept for the next call of this shape
            tracemalloc.start()
            try:
                write(null.fileno(), buffers)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
    return peaks[0], peaks[1]


def test_little_is_copied() -> None:
    """At most 1 MiB is copied."""
    peaks = {name: max(measure(shape)) for name, shape in SHAPES.items()}
    assert {name: peak for name, peak in peaks.items() if peak >= LIMIT} == {}


@given(
    st.lists(st.sampled_from([b"", b"x", bytes(64), bytes(300), bytes(1024)]), max_size=100),
    st.lists(st.integers(0, 100), min_size=1, max_size=3),
)
def test_wherever_the_large_one_stands(small: list[bytes], places: list[int]) -> None:
    """At most 1 MiB is copied, wherever a large buffer stands."""
    buffers = list(small)
    for place in places:
        buffers.insert(place, LARGE)
    assert max(measure(buffers)) < LIMIT


@linux_only
def test_no_memory_for_a_copy() -> None:
    """Where memory is short it writes still, as os.writev does."""

    def act(count: int, place: int) -> None:
        buffers = [b"small"] * count
        buffers[place] = bytes(256 * 2**20)
        total = sum(map(len, buffers))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        limit = used + 64 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with open(os.devnull, "wb", buffering=0) as null:
            assert os.writev(null.fileno(), buffers) == total
            assert fdpass_c.writev(null, buffers) == total
            assert fdpass_c.broadcast([null], buffers) == [total]

    for count, place in [(2, 0), (2, 1), (3, 1), (17, 0), (17, 16), (1000, 1), (1000, 500)]:
        run_in_child(partial(act, count, place))
