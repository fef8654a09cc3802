"""Memory for one receive, used again: new pages would cost more than the messages."""

from collections.abc import Callable
from typing import Any

from fdpass_c._native import ffi, lib

new_uncleared: Callable[..., Any] = ffi.new_allocator(should_clear_after_alloc=False)

MOST = 64
"""How much of each is kept after a time with many receiving threads. A receive that has to wait
deletes what is more: del spare[MOST:] is one step, as pop and append are."""


def make_scratch() -> tuple[Any, Any]:
    """A struct fdp_scratch *, and the bytes of the payloads in it."""
    plain = new_uncleared("struct fdp_scratch *")
    plain.count = 0
    plain.large = plain.surplus.fds = ffi.NULL
    plain.surplus.count = 0
    scratch = ffi.gc(plain, lib.fdp_drop_scratch)
    return scratch, ffi.buffer(scratch.bytes + lib.FDP_COLUMN_SIZE, lib.FDP_LONGEST_PACKED)


# Scratches to be used again. pop and append are atomic, so threads and signal handlers that receive
# at the same time get memory of their own.
spare: list[Any] = []
take_spare: Callable[[], Any] = spare.pop
