"""Structs that pack or slice many payloads with one call, kept by their shape."""

import struct
from collections.abc import Callable
from typing import Any

from fdpass_c._native import lib

UNFIT = (struct.error, TypeError)
"""What packing raises for an argument of the wrong type or size. Only PyPy raises the TypeError."""


class Shapes(dict[Any, Callable[..., Any]]):
    """A cache of bound methods of structs, by the shape of the struct.

    PyPy's lru_cache is written in Python, and an exception of a signal handler breaks it.
    """

    def __init__(self, make: Callable[[Any], Callable[..., Any]]) -> None:
        self._make = make

    def __missing__(self, shape: Any) -> Callable[..., Any]:
        if len(self) >= 64:
            self.clear()
        self[shape] = made = self._make(shape)
        return made


def _make_cut(code: int) -> Callable[..., Any]:
    count, length = code >> lib.FDP_COUNT_SHIFT, code & (lib.FDP_MIXED_LENGTHS - 1)
    return struct.Struct(f"{length}s" * count).unpack_from


def _make_pack_rows(shape: tuple[int, int]) -> Callable[..., Any]:
    count, width = shape
    return struct.Struct(f"{count}i" + f"{width}p" * count).pack


pack_ints: Shapes = Shapes(lambda count: struct.Struct(f"{count}i").pack)
"""pack_ints[count](*fds): an array of int for the C core. UNFIT if an element is not an int."""

cut: Shapes = Shapes(_make_cut)
"""cut[code](memory): the payloads of a receive that returned code, if all have one length."""

pack_rows: Shapes = Shapes(_make_pack_rows)
"""pack_rows[count, width](*fds, *payloads): rows for the C core (fdp_try_send_rows). UNFIT
if an element is not an int, or not bytes."""

LONGEST_IN_ROW = 253
"""The longest payload of a row, in bytes. Its length is stored in one byte, and a longer
payload, which was cut, must still be recognised by it."""
