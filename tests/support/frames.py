"""Frames of a Channel, written by docs/wire-format.md alone."""

import struct

PACKED, FIRST, NEXT, WITHDRAWN = 1, 2, 3, 4
SAME_LENGTH, ONE_EACH = 1, 2


def pack(
    kind: int = PACKED,
    flags: int = 0,
    fds: int = 0,
    messages: int = 0,
    body: bytes = b"",
    *,
    size: int | None = None,
    magic: bytes = b"FDP\1",
) -> bytes:
    """A frame by docs/wire-format.md alone; size: what the header says, where that is a lie."""
    length = len(body) if size is None else size
    return struct.pack("<4sBBHII", magic, kind, flags, fds, messages, length) + body


def one(payload: bytes, fds: int = 0) -> bytes:
    """A frame with one message."""
    counts = struct.pack("<H", fds) if fds else b""
    return pack(PACKED, 0, fds, 1, struct.pack("<I", len(payload)) + counts + payload)


def first(payload: int, fds: int, piece: bytes = b"", attached: int = 0) -> bytes:
    """The first piece of a large message of that many bytes and descriptors."""
    return pack(FIRST, 0, attached, 0, struct.pack("<QI", payload, fds) + piece)
