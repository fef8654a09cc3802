"""Open descriptors: which there are, and what each points to."""

import os
import tempfile
from collections.abc import Callable, Sequence

from fdpass_c.testing import list_fds, no_leak

__all__ = [
    "Keep",
    "MakeFiles",
    "identities",
    "identity",
    "is_open",
    "list_fds",
    "no_leak",
    "open_unique",
    "repeat",
]

MakeFiles = Callable[[int], list[int]]
Keep = Callable[[list[int]], list[int]]


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
