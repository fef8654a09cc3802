"""Memory for one receive, used again: new pages would cost more than the messages."""

from collections.abc import Callable
from typing import Any

from fdpass_c._native import ffi, lib

new_uncleared: Callable[..., Any] = ffi.new_allocator(should_clear_after_alloc=False)

LAST = 63
"""The last position of a Spare: see there."""


class Spare(list[Any]):
    """Memory to be used again, a stack. It goes back by

        spare[LAST:] = (memory,)

    which appends, or replaces the last: so no more is kept of a time with many receiving threads.
    Both this and pop are atomic, so threads and signal handlers that receive at the same time get
    memory of their own. And it is no call, after which a signal handler could run.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def get(self) -> Any:
        """Used memory, or new where there is none."""
        try:
            return self.pop()
        except IndexError:
            return self._make()


def make_scratch() -> tuple[Any, Any]:
    """A struct fdp_scratch *, and the bytes of the payloads in it."""
    plain = new_uncleared("struct fdp_scratch *")
    plain.count = 0
    plain.large = plain.surplus = ffi.NULL
    plain.surplus_count = 0
    scratch = ffi.gc(plain, lib.fdp_drop_scratch)
    return scratch, ffi.buffer(scratch.bytes + lib.FDP_COLUMN_SIZE, lib.FDP_LONGEST_PACKED)


spare: Spare = Spare(make_scratch)
