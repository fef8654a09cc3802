"""The channel's frames on their way out: many messages in one, one large message in several.

docs/wire-format.md describes them; the C core reads them.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from fdpass_c._native import lib
from fdpass_c.errors import MAX_FDS

MAGIC = b"FDP" + bytes([lib.FDP_FRAME_VERSION])

_PACKED = lib.FDP_PACKED
_SAME_LENGTH = lib.FDP_SAME_LENGTH
_ONE_EACH = lib.FDP_ONE_EACH
_MAX_BODY = lib.FDP_FRAME_SIZE - lib.FDP_HEADER_SIZE

# magic, kind, flags, fd_count, message_count, body_size; then the one length of a packed frame.
_pack_header = struct.Struct("<4sBBHII").pack
_pack_packed = struct.Struct("<4sBBHIII").pack
_pack_totals = struct.Struct("<QI").pack

WITHDRAWN = _pack_header(MAGIC, lib.FDP_WITHDRAWN, 0, 0, 0, 0)
"""Tells the receiver to forget a large message of which only the first pieces were sent."""

SINGLE_LIMIT = _MAX_BODY - 6
"""The longest payload, in bytes, of a message that travels in a frame of its own."""


def start_single(length: int, fd_count: int) -> bytes:
    """What goes before the payload of one message: length <= SINGLE_LIMIT, fd_count <= 253."""
    if fd_count < 2:
        flags = _SAME_LENGTH | _ONE_EACH * fd_count
        return _pack_packed(MAGIC, _PACKED, flags, fd_count, 1, length + 4, length)
    head = _pack_packed(MAGIC, _PACKED, _SAME_LENGTH, fd_count, 1, length + 6, length)
    return head + fd_count.to_bytes(2, "little")


def start_column(lengths: list[int], total: int) -> bytes | None:
    """What goes before the payloads of up to 253 messages with one descriptor each.

    None if they are too large for one frame, or if a payload's length is not its bytes: then they
    do not add up to total.
    """
    count = len(lengths)
    length = lengths[0]
    if lengths.count(length) == count:
        if length * count != total or total + 4 > _MAX_BODY:
            return None
        flags = _SAME_LENGTH | _ONE_EACH
        return _pack_packed(MAGIC, _PACKED, flags, count, count, total + 4, length)
    body = total + 4 * count
    if sum(lengths) != total or body > _MAX_BODY:
        return None
    head = _pack_header(MAGIC, _PACKED, _ONE_EACH, count, count, body)
    return head + struct.pack(f"<{count}I", *lengths)


class Frame(NamedTuple):
    """One frame to send: buffers to join, and the range of the descriptors that go with it."""

    buffers: list[bytes]
    first_fd: int
    fd_count: int
    messages_done: int
    """How many messages are complete for the receiver once it has this frame."""
    inside: bool
    """Whether a large message is begun and not finished after it."""


class Column(NamedTuple):
    """Messages to send: payloads, their lengths, all descriptors in a row and how many go with
    each message (None: one each)."""

    payloads: list[bytes]
    lengths: list[int]
    fds: "array[int]"
    fd_counts: list[int] | None


def make_frames(column: Column) -> Iterator[Frame]:
    """The frames that carry a column, packed as full as the caps allow without reordering."""
    step = MAX_FDS if column.fds else lib.FDP_FRAME_MESSAGES
    fds_done = 0
    for start in range(0, len(column.payloads), step):
        for frame in _pack_range(column, start, start + step, fds_done):
            fds_done = frame.first_fd + frame.fd_count
            yield frame


def _pack_range(column: Column, start: int, end: int, first_fd: int) -> Iterator[Frame]:
    """Messages start to end as one frame if they fit, else by halves."""
    lengths = column.lengths[start:end]
    count = len(lengths)
    end = start + count
    fd_counts = None if column.fd_counts is None else column.fd_counts[start:end]
    fd_count = count if fd_counts is None else sum(fd_counts)
    head = start_packed(lengths, fd_counts, fd_count) if fd_count <= MAX_FDS else None
    if head is not None:
        yield Frame([head, *column.payloads[start:end]], first_fd, fd_count, end, False)
    elif count == 1:
        yield from _split(column.payloads[start], first_fd, fd_count, start)
    else:
        middle = start + count // 2
        for frame in _pack_range(column, start, middle, first_fd):
            first_fd = frame.first_fd + frame.fd_count
            yield frame
        yield from _pack_range(column, middle, end, first_fd)


def start_packed(lengths: list[int], fd_counts: list[int] | None, fd_count: int) -> bytes | None:
    """Header and tables, or None if the frame would be too large."""
    count = len(lengths)
    flags = 0
    body = sum(lengths)
    if body > _MAX_BODY:
        return None
    if lengths.count(lengths[0]) == count:
        flags |= _SAME_LENGTH
        tables = lengths[0].to_bytes(4, "little")
    else:
        tables = struct.pack(f"<{count}I", *lengths)
    if fd_counts is None or (fd_count == count and fd_counts.count(1) == count):
        flags |= _ONE_EACH
    elif fd_count > 0:
        tables += struct.pack(f"<{count}H", *fd_counts)
    body += len(tables)
    if body > _MAX_BODY:
        return None
    return _pack_header(MAGIC, _PACKED, flags, fd_count, count, body) + tables


def _split(payload: bytes, first_fd: int, fd_count: int, index: int) -> Iterator[Frame]:
    """One large message: pieces of payload with up to 253 descriptors each."""
    view = memoryview(payload)
    totals = _pack_totals(len(payload), fd_count)
    kind = lib.FDP_FIRST
    at = 0
    last_fd = first_fd + fd_count
    while at < len(payload) or first_fd < last_fd or kind == lib.FDP_FIRST:
        piece = view[at : at + _MAX_BODY - len(totals)]
        attached = min(MAX_FDS, last_fd - first_fd)
        head = _pack_header(MAGIC, kind, 0, attached, 0, len(totals) + len(piece)) + totals
        at += len(piece)
        done = at == len(payload) and first_fd + attached == last_fd
        buffers: list[bytes] = [head, piece]  # type: ignore[list-item]
        yield Frame(buffers, first_fd, attached, index + done, not done)
        first_fd += attached
        kind, totals = lib.FDP_NEXT, b""
