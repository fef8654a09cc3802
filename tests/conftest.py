"""Fixtures; every test runs between two counts of the open descriptors, and leaves no process."""

import asyncio
import gc
import importlib.util
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# "python -m pytest" puts the source tree first, of which nothing may be compiled: what is installed
# is meant then.
ROOT = Path(__file__).parents[1]
if not any((ROOT / "fdpass_c").glob("_native*.so")):
    sys.path = [name for name in sys.path if Path(name) != ROOT]

from support.descriptors import Keep, MakeFiles, no_leak
from support.loops import run
from support.processes import adopt_orphans, no_process_left
from support.sockets import Pair
from support.tables import table_of


@pytest.fixture(autouse=True, scope="module")
def _short_collections() -> None:
    """Spares every test's two collections what pytest has made by now."""
    if sys.implementation.name == "cpython":
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Programs that tests start import what is installed, too, and not what lies where they run."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(autouse=True, scope="session")
def _same_table(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everywhere the table that most systems give; a test that needs a larger one says so."""
    threads = request.config.getoption("parallel_threads", 1)
    with table_of(1024 * int(threads)):
        yield


@pytest.fixture(autouse=True, scope="session")
def _orphans() -> None:
    adopt_orphans()


@pytest.fixture(scope="session")
def warm_loops() -> None:
    """libuv opens a pipe for signals once in a process."""
    if importlib.util.find_spec("uvloop"):
        run("uvloop", asyncio.sleep, 0)


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    with no_leak(), no_process_left():
        yield


@pytest.fixture
def keep() -> Iterator[Keep]:
    """Registers descriptors that the test owns; they are closed after it."""
    kept: list[int] = []

    def register(fds: list[int]) -> list[int]:
        kept.extend(fds)
        return fds

    yield register
    for fd in kept:
        os.close(fd)


@pytest.fixture
def make_files(keep: Keep) -> MakeFiles:
    """Makes that many open files, no two the same."""

    def make(count: int) -> list[int]:
        fds = []
        for _ in range(count):
            fd, path = tempfile.mkstemp()
            os.unlink(path)
            fds.append(fd)
        return keep(fds)

    return make


@pytest.fixture
def file(make_files: MakeFiles) -> int:
    return make_files(1)[0]


def _make_pair(kind: socket.SocketKind) -> Iterator[Pair]:
    try:
        left, right = socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        pytest.skip(f"no {kind.name}: {error}")
    with left, right:
        yield left, right


@pytest.fixture
def stream() -> Iterator[Pair]:
    yield from _make_pair(socket.SOCK_STREAM)


@pytest.fixture
def seqpacket() -> Iterator[Pair]:
    yield from _make_pair(socket.SOCK_SEQPACKET)


@pytest.fixture
def datagram() -> Iterator[Pair]:
    yield from _make_pair(socket.SOCK_DGRAM)


@pytest.fixture(
    params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM],
    ids=["stream", "seqpacket", "datagram"],
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A connected pair of each type in turn."""
    yield from _make_pair(request.param)
