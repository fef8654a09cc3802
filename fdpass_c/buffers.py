"""Payloads on their way out: joined into one buffer, or left where they are."""

import operator
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fdpass_c._native import ffi

if TYPE_CHECKING:
    from typing_extensions import Buffer as Buffer
else:
    # bytes, bytearray, memoryview or anything else with a C-contiguous buffer. Python 3.12 has it.
    Buffer = Any

_PLAIN: set[type] = {bytes, bytearray}
_join = b"".join


def _is_plain(buffer: Buffer) -> bool:
    if isinstance(buffer, memoryview):
        return type(buffer.obj) in _PLAIN and buffer.c_contiguous
    return type(buffer) in _PLAIN


def join(buffers: Sequence[Buffer]) -> tuple[bytes, list[int]] | None:
    """All bytes in a row and how many each buffer has; None where one must not be copied.

    Only Python's own bytes are: other memory may be large, or a mapping of a file that has shrunk,
    which the kernel may touch (EFAULT) but a copy may not (SIGBUS).
    """
    if not {*map(type, buffers)} <= _PLAIN:
        if not all(map(_is_plain, buffers)):
            return None
        views = [memoryview(buffer) for buffer in buffers]  # None of them can be resized now.
        return _join(views), [view.nbytes for view in views]
    # Copies, so that a bytearray cannot change between being measured and being joined.
    copies = [buffer if type(buffer) is bytes else bytes(buffer) for buffer in buffers]
    return _join(copies), [*map(len, copies)]


def describe(buffers: Sequence[Buffer], name: str) -> tuple[Any, list[int]]:
    """A struct iovec[] of buffers, which it keeps alive and unresized, and the size of each.

    TypeError for what has no C-contiguous buffer, with the name that the caller has for buffers.
    """
    views = []
    for position, buffer in enumerate(buffers):
        try:
            views.append(ffi.from_buffer(buffer))
        except (TypeError, ValueError, BufferError) as error:
            reason = "encode() makes bytes of a str" if isinstance(buffer, str) else error
            raise TypeError(f"{name}[{position}] is not bytes-like: {reason}") from None
    vector = ffi.new("struct iovec[]", [(view, len(view)) for view in views])
    return ffi.gc(vector, partial(operator.is_, views)), [*map(len, views)]
