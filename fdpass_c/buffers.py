"""Payloads on their way out: joined into one buffer, or left where they are."""

import operator
import sys
from array import array
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fdpass_c._native import ffi

if TYPE_CHECKING:
    from typing_extensions import Buffer as Buffer
else:
    # bytes, bytearray, memoryview or anything else with a C-contiguous buffer. Python 3.12 has it.
    Buffer = Any

PLAIN: set[type] = {bytes, bytearray}
"""Python's own memory. Other memory may be a mapping, and only the kernel may read it: if the file
was truncated, the kernel returns EFAULT, and this process would get SIGBUS."""

NOT_BYTES_LIKE = (TypeError, ValueError, BufferError)
"""What an object raises that has no C-contiguous buffer, if it is asked for it."""

_IS_PYPY = sys.implementation.name == "pypy"
_join = b"".join


def is_plain(buffer: Buffer) -> bool:
    """Whether it is Python's own memory, or a view of that without gaps."""
    if isinstance(buffer, memoryview):
        try:
            return type(buffer.obj) in PLAIN and buffer.c_contiguous
        except ValueError:  # It was released, which view_each says.
            return False
    return type(buffer) in PLAIN


def join(buffers: Sequence[Buffer]) -> tuple[bytes, list[int]] | None:
    """All bytes in a row and how many each buffer has; None where one is not PLAIN."""
    if not {*map(type, buffers)} <= PLAIN:
        if not all(map(is_plain, buffers)):
            return None
        views = [memoryview(buffer) for buffer in buffers]  # None of them can be resized now.
        return _join(views), [view.nbytes for view in views]
    # Copies, so that a bytearray cannot change between being measured and being joined.
    copies = [buffer if type(buffer) is bytes else bytes(buffer) for buffer in buffers]
    return _join(copies), [*map(len, copies)]


def _copy_array(buffer: Buffer) -> Buffer:
    """A copy of an array, or what else it is. PyPy resizes an array although C code reads it."""
    view = memoryview(buffer)
    return view.tobytes() if isinstance(view.obj, array) and view.c_contiguous else buffer


def view_each(buffers: Sequence[Buffer], name: str) -> list[Any]:
    """A view of each buffer, which it keeps alive and unresized.

    TypeError for what has no C-contiguous buffer. name: what the caller calls the one at a
    position, "buffers[{}]".
    """
    views = []
    for position, buffer in enumerate(buffers):
        try:
            views.append(ffi.from_buffer(_copy_array(buffer) if _IS_PYPY else buffer))
        except NOT_BYTES_LIKE as error:
            reason: object = error
            if isinstance(buffer, str):
                reason = "encode() makes bytes of a str"
            elif isinstance(buffer, int):
                reason = "it is an int, as the items of bytes are"
            raise TypeError(f"{name.format(position)} is not bytes-like: {reason}") from None
    return views


def view_bytes(buffer: Buffer) -> memoryview:
    """A view of a buffer, also where memoryview has no name for its items (numpy's datetime64)."""
    try:
        return memoryview(buffer)
    except ValueError:
        return memoryview(ffi.buffer(ffi.from_buffer(buffer)))


def describe(buffers: Sequence[Buffer], name: str) -> tuple[Any, list[int]]:
    """A struct iovec[] of buffers, with a view of each, and the size of each. As view_each."""
    views = view_each(buffers, name)
    vector = ffi.new("struct iovec[]", [(view, len(view)) for view in views])
    return ffi.gc(vector, partial(operator.is_, views)), [*map(len, views)]
