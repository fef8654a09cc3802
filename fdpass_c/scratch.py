"""Memory for one receive, used again because new pages take longer than the messages."""

from collections.abc import Callable
from typing import Any

from fdpass_c._native import ffi, lib

new_uncleared: Callable[..., Any] = ffi.new_allocator(should_clear_after_alloc=False)

MOST = 64
"""How many pieces of memory each list keeps after a time with many receiving threads. A receive
that has to wait deletes the others: del spare[MOST:] is atomic, as pop and append are."""


def make_scratch() -> tuple[Any, Any]:
    """Makes a struct fdp_scratch *, and a buffer of the payloads in it."""
    plain = new_uncleared("struct fdp_scratch *")
    plain.count = 0
    plain.large = plain.surplus.fds = ffi.NULL
    plain.surplus.count = 0
    scratch = ffi.gc(plain, lib.fdp_drop_scratch)
    return scratch, ffi.buffer(scratch.bytes + lib.FDP_SHORT_HEAD, lib.FDP_LONGEST_PACKED)


# Pairs from make_scratch, to be used again. pop and append are atomic, so two threads, or a thread
# and its signal handler, never get the same.
spare: list[Any] = []
take_spare: Callable[[], Any] = spare.pop
