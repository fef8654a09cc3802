"""Descriptor tables of a chosen size, and full ones."""

import contextlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.descriptors import is_open


def limit_table(limit: int) -> None:
    """Lets this process have that many descriptors open, and an ordinary user in flight."""
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


@contextmanager
def table_of(limit: int) -> Iterator[None]:
    """The same while the block runs; skips the test where it may not be."""
    before, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        limit_table(limit)
    except (OSError, ValueError):
        pytest.skip(f"RLIMIT_NOFILE cannot be {limit}")
    try:
        yield
    finally:
        limit_table(before)


def many_allowed(count: int) -> contextlib.AbstractContextManager[None]:
    """A table of at least that many."""
    before, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return table_of(before if before == resource.RLIM_INFINITY else max(before, count))


def open_numbers() -> list[int]:
    """The open descriptors, found without opening another."""
    return [fd for fd in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]) if is_open(fd)]


def fill_table(free: int) -> list[int]:
    """Opens descriptors until only that many more can be."""
    filler = []
    with contextlib.suppress(OSError):
        while True:
            filler.append(os.dup(0))
    for _ in range(free):
        os.close(filler.pop())
    return filler


def leave_free(count: int) -> None:
    """Leaves room for that many more descriptors in a small table. For a child only."""
    limit_table(100)
    fill_table(count)
