"""Memory for one receive, used again: new pages would cost more than the messages."""

from typing import Any

from fdpass_c._native import ffi, lib

_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)

# The list is a stack: pop and append are atomic, so threads and signal handlers that receive at
# the same time get memory of their own.
spare: list[tuple[Any, Any]] = []


def _view(scratch: Any) -> Any:
    return ffi.buffer(scratch.bytes + lib.FDP_COLUMN_SIZE, lib.FDP_LONGEST_PACKED)


def get_scratch() -> tuple[Any, Any]:
    """As make_scratch, but returns used memory if there is some."""
    try:
        return spare.pop()
    except IndexError:
        return make_scratch()


def make_scratch() -> tuple[Any, Any]:
    """A struct fdp_scratch *, and the bytes of the payloads in it."""
    plain = _new_uncleared("struct fdp_scratch *")
    plain.count = 0
    plain.large = plain.surplus = ffi.NULL
    plain.surplus_count = 0
    scratch = ffi.gc(plain, lib.fdp_drop_scratch)
    return scratch, _view(scratch)
