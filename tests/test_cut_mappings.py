"""A mapping whose file was cut is EFAULT, as in the standard library, and ends no process."""

import array
import errno
import gc
import mmap
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fdpass_c
from support.marks import linux_only
from support.processes import run_in_child
from support.sockets import Pair, assert_empty

pytestmark = linux_only

PAGE = mmap.PAGESIZE


@pytest.fixture
def cut() -> Iterator[mmap.mmap]:
    """Four pages of a file that is cut to two."""
    with tempfile.TemporaryFile() as file:
        file.truncate(4 * PAGE)
        with mmap.mmap(file.fileno(), 4 * PAGE) as mapping:
            mapping[: 2 * PAGE] = b"x" * 2 * PAGE
            file.truncate(2 * PAGE)
            yield mapping


def shapes(cut: mmap.mmap) -> dict[str, list[Any]]:
    """Lists of buffers that end in memory which is gone; each begins with 10 bytes."""
    gone = memoryview(cut)[3 * PAGE :]
    small = [gone[at : at + 10] for at in range(100)]
    return {
        "one": [b"0123456789", gone[:100]],
        "mapping": [b"0123456789", cut],
        "few": [b"0123456789", b"", gone[:10], b"tail"],
        "many": [b"0123456789"] + [b""] * 50 + small,
        "views": [memoryview(b"0123456789"), *small],
        "late": [b"0123456789"] + [b"x"] * 900 + small,
        "items": [b"0123456789", gone.cast("d")],
    }


NAMES = ["one", "mapping", "few", "many", "views", "late", "items"]


def present(buffers: list[Any]) -> int:
    """How many bytes stand before those that are gone."""
    size = 0
    for buffer in buffers:
        if isinstance(buffer, mmap.mmap):
            return size + 2 * PAGE
        if type(buffer) is not bytes and getattr(buffer, "obj", b"") != b"0123456789":
            return size
        size += len(buffer)
    return size


def survives(action: Callable[[], object]) -> None:
    """Runs action in a child, which a SIGBUS ends at once."""

    def act() -> None:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        action()

    run_in_child(act)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("name", NAMES)
def test_writev(name: str, cut: mmap.mmap, stream: Pair) -> None:
    """writev says in characters_written what left before the fault, and that did leave."""
    buffers = shapes(cut)[name]

    def act() -> None:
        with pytest.raises(OSError, match=os.strerror(errno.EFAULT)) as caught:
            fdpass_c.writev(stream[0], buffers)
        assert caught.value.errno == errno.EFAULT
        written = caught.value.characters_written  # type: ignore[attr-defined]
        assert 0 <= written <= present(buffers)
        if written:
            assert len(stream[1].recv(1 << 20)) == written
        assert_empty(stream[1])
        assert fdpass_c.writev(stream[0], [b"after"]) == 5
        assert stream[1].recv(10) == b"after"

    survives(act)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("offset", [None, 5])
def test_file(offset: int | None, cut: mmap.mmap) -> None:
    """In a file stands what was written before the fault, and no more."""

    def act() -> None:
        for buffers in shapes(cut).values():
            with tempfile.TemporaryFile(buffering=0) as file:
                with pytest.raises(OSError, match=os.strerror(errno.EFAULT)) as caught:
                    fdpass_c.writev(file, buffers, offset)
                written = caught.value.characters_written  # type: ignore[attr-defined]
                assert 0 <= written <= present(buffers)
                size = os.fstat(file.fileno()).st_size
                assert size == (written + (offset or 0) if written else 0)

    survives(act)


@pytest.mark.thread_unsafe
def test_broadcast(cut: mmap.mmap, stream: Pair) -> None:
    """broadcast gives each target the part that it took, or EFAULT, and goes on to the next."""

    def act() -> None:
        reader, writer = os.pipe()
        for buffers in shapes(cut).values():
            for result in fdpass_c.broadcast([stream[0], writer, stream[0]], buffers):
                if isinstance(result, OSError):
                    assert result.errno == errno.EFAULT
                else:
                    assert 0 < result <= present(buffers)
            assert fdpass_c.broadcast([stream[0], writer], [b"after"]) == [5, 5]
            assert os.read(reader, 1 << 20).endswith(b"after")

    survives(act)


def test_whole_mapping(stream: Pair) -> None:
    """A mapping that is whole is written, small or large, alone or among others."""
    with tempfile.TemporaryFile() as file:
        file.truncate(PAGE)
        with mmap.mmap(file.fileno(), PAGE) as mapping:
            mapping[:5] = b"hello"
            view = memoryview(mapping)
            for each in ([view[:5]], [b"<", view[:5], b">"], [view[:1]] * 100, [mapping]):
                buffers: list[Any] = [*each]
                expected = b"".join(map(bytes, buffers))
                assert fdpass_c.writev(stream[0], buffers) == len(expected)
                assert stream[1].recv(1 << 20) == expected
                assert fdpass_c.broadcast([stream[0]], buffers) == [len(expected)]
                assert stream[1].recv(1 << 20) == expected
            view.release()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("count", [1, 3, 2000])
def test_large_array_is_not_copied(count: int) -> None:
    """broadcast copies no memory but little of Python's own."""
    tracemalloc: Any = pytest.importorskip("tracemalloc", reason="PyPy has none")
    large = array.array("d", bytes(16 * 2**20))
    buffers = [large] + [b"x"] * count
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, open(os.devnull, "wb") as null:
        tracemalloc.start()
        try:
            fdpass_c.broadcast([null.fileno(), sock], buffers)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2**20


def test_buffer_is_free_afterwards(stream: Pair) -> None:
    """A bytearray can be resized as soon as broadcast has returned, or failed."""
    data = bytearray(b"x" * 10)
    large = bytearray(2 * 2**20)
    wrong: Any = [data, memoryview(data), large, "text"]
    with pytest.raises(TypeError):
        fdpass_c.broadcast(stream, wrong)
    assert fdpass_c.broadcast([stream[0], -1], wrong[:3])[0]
    wrong.clear()
    for _ in range(3):
        gc.collect()  # Only so does PyPy free memoryviews.
    data.clear()
    large.clear()
