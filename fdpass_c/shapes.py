"""Structs by shape, which pack or slice many payloads with one call."""

import struct
from collections.abc import Callable
from typing import Any

UNFIT = (struct.error, TypeError)
"""What packing raises for an argument of the wrong type or size. The TypeError is PyPy's."""


class Shapes(dict[Any, Callable[..., Any]]):
    """By the shape of a struct, what it does.

    Not lru_cache: PyPy's is written in Python, and an exception of a signal handler breaks it.
    """

    def __init__(self, make: Callable[[Any], Callable[..., Any]]) -> None:
        self._make = make

    def __missing__(self, shape: Any) -> Callable[..., Any]:
        if len(self) >= 64:
            self.clear()
        self[shape] = made = self._make(shape)
        return made


def _make_cut(shape: tuple[int, int]) -> Callable[..., Any]:
    count, length = shape
    return struct.Struct(f"{length}s" * count).unpack_from


def _make_pack(shape: tuple[int, int]) -> Callable[..., Any]:
    count, width = shape
    return struct.Struct(f"{count}i" + f"{width}p" * count).pack


cut: Shapes = Shapes(_make_cut)
"""cut[count, length](memory): that many payloads of one length."""

packers: Shapes = Shapes(_make_pack)
"""packers[count, width](*fds, *payloads): a column. UNFIT for what is no int or no bytes."""

# A row holds a payload's length, which is one byte, its bytes, and room for one more, so that a
# longer payload is seen to be cut.
_WIDEST = 255


def pack_column(fds: list[Any], payloads: list[Any], most: int) -> tuple[bytes, int] | None:
    """A column for the C core and the width of its rows, or None: there are more than most, they
    are not ints and bytes, one each, or the payloads are too long. Their lengths may still differ,
    which the core finds out.
    """
    count = len(payloads)
    if 0 < count == len(fds) and count <= most and type(payloads[0]) is bytes:
        width = len(payloads[0]) + 2
        if width <= _WIDEST:
            try:
                return packers[count, width](*fds, *payloads), width
            except UNFIT:
                pass  # Not ints, or not bytes.
    return None
