"""Structs by their shape: what packs and cuts many payloads with one call."""

import struct
from collections.abc import Callable
from typing import Any


class Shapes(dict[tuple[int, int], Callable[..., Any]]):
    """By two numbers, what a struct of that shape does.

    No lru_cache: PyPy's is written in Python, and stays broken where a signal handler raises in it.
    """

    def __init__(self, make: Callable[[int, int], Callable[..., Any]]) -> None:
        self._make = make

    def __missing__(self, shape: tuple[int, int]) -> Callable[..., Any]:
        if len(self) > 64:
            self.clear()
        self[shape] = made = self._make(*shape)
        return made


cut = Shapes(lambda count, length: struct.Struct(f"{length}s" * count).unpack_from)
"""cut[count, length](memory): that many payloads of one length."""

pack_column = Shapes(lambda count, width: struct.Struct(f"{count}i" + f"{width}p" * count).pack)
"""pack_column[count, width](*fds, *payloads): a column for the C core. struct.error for what is no
int or no bytes."""

LONGEST_IN_COLUMN = 253
"""The longest payload of a column, in bytes: its length fits one byte, and is seen to be cut."""
