"""Payloads to send: joined into one buffer, or described to the kernel where they are."""

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
    # bytes, bytearray, memoryview or any other object with a C-contiguous buffer. From Python 3.12
    # on this is collections.abc.Buffer.
    Buffer = Any

PLAIN: set[type] = {bytes, bytearray}
"""Types whose memory Python allocates. Other memory may be a mapping of a file, and then only the
kernel may read it: if the file was truncated, the kernel returns EFAULT, but code of this process
would get SIGBUS."""

NOT_BYTES_LIKE = (TypeError, ValueError, BufferError)
"""The exceptions for an object that has no C-contiguous buffer."""

_IS_PYPY = sys.implementation.name == "pypy"
_join = b"".join


def is_plain(buffer: Buffer) -> bool:
    """Whether buffer is PLAIN, or a contiguous view of that."""
    if isinstance(buffer, memoryview):
        try:
            return type(buffer.obj) in PLAIN and buffer.c_contiguous
        except ValueError:  # It was released. view_each will raise an error that says so.
            return False
    return type(buffer) in PLAIN


def join(buffers: Sequence[Buffer]) -> tuple[bytes, list[int]] | None:
    """Joins buffers. Returns the bytes and the size of each buffer, or None if one is not PLAIN."""
    if not {*map(type, buffers)} <= PLAIN:
        if not all(map(is_plain, buffers)):
            return None
        views = [memoryview(buffer) for buffer in buffers]  # While a view exists, none is resized.
        return _join(views), [view.nbytes for view in views]
    # A bytearray is copied first, so that no thread resizes it between the two lines below.
    copies = [buffer if type(buffer) is bytes else bytes(buffer) for buffer in buffers]
    return _join(copies), [*map(len, copies)]


def _copy_array(buffer: Buffer) -> Buffer:
    """A copy, if buffer is a view of an array: PyPy resizes an array although C code reads it."""
    view = memoryview(buffer)
    return view.tobytes() if isinstance(view.obj, array) and view.c_contiguous else buffer


def view_each(buffers: Sequence[Buffer], name: str) -> list[Any]:
    """Makes a view of each buffer, which keeps the buffer alive and prevents that it is resized.

    TypeError if one has no C-contiguous buffer. name: how the error names the buffer at a position,
    for example "buffers[{}]".
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
    """A memoryview of buffer, even if memoryview refuses its items (numpy's datetime64)."""
    try:
        return memoryview(buffer)
    except ValueError:
        return memoryview(ffi.buffer(ffi.from_buffer(buffer)))


def describe(buffers: Sequence[Buffer], name: str) -> tuple[Any, list[int]]:
    """A struct iovec[] that keeps a view of each buffer, and the sizes. Raises as view_each."""
    views = view_each(buffers, name)
    vector = ffi.new("struct iovec[]", [(view, len(view)) for view in views])
    return ffi.gc(vector, partial(operator.is_, views)), [*map(len, views)]
