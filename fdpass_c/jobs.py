"""Messages to send, as the C core expects them."""

import operator
from array import array
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

from fdpass_c._native import ffi
from fdpass_c.buffers import Buffer, describe, join
from fdpass_c.descriptors import Descriptors, as_fd_list, check_open
from fdpass_c.shapes import UNFIT, pack_ints


def make_job(
    payloads: list[Buffer],
    fds: "array[int]",
    counts: "array[int] | None",
    name: str = "payloads[{}]",
) -> tuple[Any, list[int], object]:
    """Makes a struct fdp_job * of messages.

    name: as for view_each. ValueError: payloads and fds have different lengths.

    Returns the job, which keeps alive what it points to; the size of each payload; and an object
    that keeps the same memory alive, for a finaliser that uses the job.
    """
    joined = join(payloads)
    data: Any = ffi.NULL
    vector: Any = ffi.NULL
    if joined is None:
        vector, sizes = describe(payloads, name)
    else:
        data = ffi.from_buffer("unsigned char[]", joined[0])
        sizes = joined[1]
    described = len(fds) if counts is None else len(counts)
    if described != len(payloads):
        raise ValueError(f"{len(payloads)} payloads, but descriptors for {described}")
    lengths = ffi.new("size_t[]", sizes)
    ints = ffi.from_buffer("int[]", fds)
    numbers = ffi.NULL if counts is None else ffi.from_buffer("unsigned int[]", counts)
    plain = ffi.new("struct fdp_job *")
    plain.data, plain.lengths, plain.buffers = data, lengths, vector
    plain.fds, plain.fd_counts, plain.count = ints, numbers, len(payloads)
    kept = (data, lengths, vector, ints, numbers)
    job = ffi.gc(plain, partial(operator.is_, kept))
    return job, sizes, (plain, kept)


def check_unsent(job: Any) -> None:
    """As check_open, for the descriptors of the messages that were not sent."""
    counts, start = job.fd_counts, job.at.fd_offset
    total = job.count if counts == ffi.NULL else sum(ffi.unpack(counts, job.count))
    check_open(job.fds + start, total - start)


def flatten_fds(fds: Sequence[Any]) -> tuple["array[int]", "array[int] | None"]:
    """All descriptors, one after the other, and how many each message has: None for one each."""
    try:
        # Packed first, because PyPy's array accepts any object with __int__.
        return array("i", pack_ints[len(fds)](*fds)), None
    except UNFIT:
        pass
    if any(map(_is_single, fds)):
        return array("i", as_fd_list(fds)), None
    rows = [as_fd_list(row, row=position) for position, row in enumerate(fds)]
    return array("i", chain.from_iterable(rows)), array("I", map(len, rows))


def _is_single(fds: Any) -> bool:
    """Whether fds is one descriptor. A Descriptors is not: it stands for all that it owns."""
    return isinstance(fds, int) or (hasattr(fds, "fileno") and not isinstance(fds, Descriptors))
