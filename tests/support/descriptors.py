"""Open descriptors: which there are, and what each points to."""

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

MakeFiles = Callable[[int], list[int]]
Keep = Callable[[list[int]], list[int]]


def list_fds() -> dict[int, str]:
    """The open descriptors of this process and what they point to."""
    found = {}
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        try:
            os.fstat(fd)
        except OSError:
            continue  # the one that listdir itself had open
        try:
            found[fd] = os.readlink(f"/dev/fd/{name}")
        except OSError:
            found[fd] = "unknown"
    return found


@contextmanager
def no_leak() -> Iterator[None]:
    """Fails unless the same descriptors are open after the block as before it."""
    gc.collect()
    before = list_fds()
    yield
    gc.collect()
    after = list_fds()
    leaked = {fd: what for fd, what in after.items() if before.get(fd) != what}
    lost = {fd: what for fd, what in before.items() if after.get(fd) != what}
    assert not leaked, f"left open: {leaked}"
    assert not lost, f"closed, though open before: {lost}"


def identity(fd: int) -> tuple[int, int]:
    """What tells one open file from another, whatever the number of its descriptor."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def identities(fds: list[int]) -> list[tuple[int, int]]:
    return [identity(fd) for fd in fds]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def open_unique(count: int) -> list[int]:
    """Open files, no two the same."""
    fds = []
    for _ in range(count):
        fd, path = tempfile.mkstemp()
        os.unlink(path)
        fds.append(fd)
    return fds


def repeat(fds: Sequence[int], count: int) -> list[int]:
    """The descriptors over and over, that many in all."""
    return [fds[position % len(fds)] for position in range(count)]
