"""The checks that run around every test see what they have to see, and end what hangs."""

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest

from support.descriptors import no_leak
from support.marks import linux_only
from support.processes import fork, no_process_left

pytestmark = pytest.mark.thread_unsafe

TESTS = Path(__file__).parent


def test_names_what_was_left_open() -> None:
    """A descriptor left open fails the block, and the text says what it points to."""
    with pytest.raises(AssertionError, match=r"left open: .*null"), no_leak():
        fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)


def test_names_what_was_closed() -> None:
    """A descriptor closed behind its owner's back fails the block."""
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(AssertionError, match=r"closed, though open before: .*null"), no_leak():
        os.close(fd)


def test_sees_a_number_reused() -> None:
    """A descriptor closed and its number taken by another file fails the block."""
    zero = os.open("/dev/zero", os.O_RDONLY)
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(AssertionError, match=r"left open: .*zero"), no_leak():
        os.dup2(zero, fd, inheritable=False)
    os.close(fd)
    os.close(zero)


def test_files_renamed_and_removed(tmp_path: Path) -> None:
    """A file that is open before and after the block may change its name in it, or lose it."""
    with (tmp_path / "one").open("w"), (tmp_path / "two").open("w"), no_leak():
        (tmp_path / "one").unlink()
        (tmp_path / "two").rename(tmp_path / "three")


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="Linux, and not PyPy")
def test_sees_another_kind() -> None:
    """Descriptors without a file of their own, which all have one inode, are told apart."""
    before, after = os.eventfd(0), select.epoll()
    with pytest.raises(AssertionError, match=r"left open: .*eventpoll"), no_leak():
        os.dup2(after.fileno(), before, inheritable=False)
    os.close(before)
    after.close()


class Odd(socket.socket):
    """Cannot tell its number."""

    def fileno(self) -> int:
        raise LookupError


class Thing:
    """Can be referred to weakly."""


def test_strange_objects_elsewhere() -> None:
    """Objects of the program that cannot be asked anything do not hide what was left open."""
    thing = Thing()
    kept = [weakref.proxy(thing)]
    del thing
    with Odd() as odd:
        kept.append(odd)
        with pytest.raises(AssertionError, match=r"left open: .*null"), no_leak():
            fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)


def test_is_silent_when_all_is_well() -> None:
    """Opening and closing leaves nothing to complain of."""
    with no_leak():
        os.close(os.open(os.devnull, os.O_RDONLY))


class Finalised:
    """The collector calls its finaliser, and only then may free what it keeps."""

    def __init__(self, kept: object) -> None:
        self.kept = kept

    def __del__(self) -> None:
        pass


def test_garbage_of_before() -> None:
    """What was garbage before the block may be closed in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        cycle: list[object] = [socket.socket()]
        cycle.append(cycle)
        del cycle
        with no_leak():
            gc.collect()


def test_garbage_that_takes_several_collections() -> None:
    """What only garbage holds is no leak, although PyPy calls one finaliser after the other."""
    with warnings.catch_warnings(), no_leak():
        warnings.simplefilter("ignore", ResourceWarning)
        kept: object = open(os.devnull)  # noqa: SIM115
        for _ in range(5):  # As many as coroutines may await each other.
            kept = Finalised(kept)
        del kept


def leave_process(generations: int) -> None:
    """Has a child, or a descendant whose parents end, that goes on until it is killed."""
    if fork() == 0:
        for _ in range(1, generations):
            if os.fork():
                os._exit(0)
        while True:
            signal.pause()


@linux_only
@pytest.mark.parametrize("generations", [1, 3])
def test_sees_a_process(generations: int) -> None:
    """A child that goes on fails the check, and so does an orphan; it is gone after that."""
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        with pytest.raises(AssertionError, match="left running"), no_process_left(0.01):
            leave_process(generations)
        os.close(writer)
        assert pipe.read() == b""


@linux_only
def test_ends_of_themselves() -> None:
    """Children that end without being waited for are nobody's fault."""
    with no_process_left():
        for _ in range(3):
            if fork() == 0:
                os._exit(1)


HANGS = """
import signal, subprocess, sys, time
from support.processes import Program, run_in_child

def test_child():
    run_in_child(signal.pause)

def test_program():
    with Program([sys.executable, "-c", "import time; time.sleep(1000)"]):
        while True:
            signal.pause()

def test_fine():
    pass
"""


@linux_only
def test_ends_what_hangs(tmp_path: Path) -> None:
    """A test that hangs fails, its processes are gone, and the next one runs."""
    (tmp_path / "test_hanging.py").write_text(HANGS)
    reader, writer = os.pipe()
    with open(reader, "rb") as pipe:
        with open(writer, "wb"):
            # Other plugins are slow to load.
            plugins = ["-p", "pytest_timeout", "-p", "conftest"]
            no_others = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(TESTS)}
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *plugins, "--timeout", "1", tmp_path],
                cwd=tmp_path,
                env={**os.environ, **no_others},
                pass_fds=[writer],
                capture_output=True,
                text=True,
                check=False,
            )
        assert "2 failed, 1 passed" in done.stdout, done.stdout
        assert "signal.pause" in done.stdout
        assert pipe.read() == b""
