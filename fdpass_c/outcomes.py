"""The results of many messages: the progress of a send, and the batch of a receive."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, NamedTuple, overload

from fdpass_c._native import ffi, lib
from fdpass_c.descriptors import Descriptors
from fdpass_c.errors import TruncatedError
from fdpass_c.owning import PASS_ON, Closing
from fdpass_c.shapes import cut

_COUNT_SHIFT = lib.FDP_COUNT_SHIFT
_MIXED_LENGTHS = lib.FDP_MIXED_LENGTHS
_MIXED_COUNTS = lib.FDP_MIXED_COUNTS
_MORE = lib.FDP_MORE
_LARGE = lib.FDP_LARGE
_UNUSUAL = _MIXED_LENGTHS | _MIXED_COUNTS | _MORE


class Progress(NamedTuple):
    """How much of a batch was sent.

    Attributes:
        messages: How many messages were sent completely.
        bytes: How many bytes of the next message were sent. Its descriptors went with the first.
    """

    messages: int = 0
    bytes: int = 0

    @staticmethod
    def of(error: BaseException) -> "Progress":
        """Returns the progress of an error of send_many, typed; Progress(0, 0) if it has none."""
        progress: Progress = getattr(error, "progress", NOTHING_SENT)
        return progress


NOTHING_SENT = Progress()


class Batch(Closing):
    """The messages of one recv_many, and the owner of their descriptors.

    len(), indexing and iterating go by message: batch[i] is a tuple (payload, list of borrowed
    ints), and a slice is a list of those. Unlike the messages of a Channel they have no owner each:
    fds is the owner of all. If every message carries one descriptor, zip(batch.payloads, batch.fds)
    pairs them.

    A context manager: its exit calls close(). A batch cannot be copied or pickled (TypeError).

    Attributes:
        payloads: A list of bytes, one per message.
        fds: The Descriptors of all messages, in the order of the messages.
    """

    __slots__ = ("_counts", "fds", "payloads")
    _instead = PASS_ON

    def __init__(
        self, payloads: list[bytes], fds: Descriptors, counts: list[int] | None = None
    ) -> None:
        """Takes ownership of fds. Programs get batches from recv_many.

        Args:
            payloads: One per message.
            fds: The descriptors of all messages.
            counts: How many descriptors each message has; None for one each.
        """
        self.payloads: list[bytes] = payloads
        self.fds: Descriptors = fds
        self._counts = counts

    def __len__(self) -> int:
        """The number of messages."""
        return len(self.payloads)

    @overload
    def __getitem__(self, index: int) -> tuple[bytes, list[int]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[bytes, list[int]]]: ...
    def __getitem__(
        self, index: int | slice
    ) -> tuple[bytes, list[int]] | list[tuple[bytes, list[int]]]:
        """The message at a position, or those of a slice."""
        if isinstance(index, slice):
            return [*self._read(range(len(self.payloads))[index])]
        payload = self.payloads[index]
        index %= len(self.payloads)
        if self._counts is None:
            return payload, [self.fds[index]]
        start = sum(self._counts[:index])
        return payload, [self.fds[at] for at in range(start, start + self._counts[index])]

    def __iter__(self) -> Iterator[tuple[bytes, list[int]]]:
        """The messages in the order in which they were sent."""
        return self._read(range(len(self.payloads)))

    def _read(self, positions: Iterable[int]) -> Iterator[tuple[bytes, list[int]]]:
        starts = [0, *accumulate(self._counts or [1] * len(self.payloads))]
        for position in positions:
            start, end = starts[position : position + 2]
            yield self.payloads[position], [self.fds[at] for at in range(start, end)]

    def __repr__(self) -> str:
        return f"<Batch of {len(self.payloads)} messages, {self.fds!r}>"

    def close(self) -> None:
        """Closes every descriptor that was not taken out of fds. Calling it again does nothing."""
        self.fds.close()


_new = Batch.__new__


def gather(payloads: list[bytes], fds: Descriptors, counts: list[int] | None) -> Batch:
    """Makes a Batch, in half the time that a call of the class takes."""
    batch = _new(Batch)
    batch.payloads = payloads
    batch.fds = fds
    batch._counts = counts
    return batch


class TruncatedBatchError(TruncatedError):
    """Some messages of a batch were truncated. Their descriptors are closed.

    Attributes:
        batch: The Batch of the messages that arrived whole, in order. The caller owns and closes
            it.
    """

    def __init__(self, lost: int, batch: Batch) -> None:
        super().__init__(
            f"{lost} messages lost descriptors or bytes: they had more than maxfds or bufsize "
            "allow, or this process's descriptor table is full (RLIMIT_NOFILE)"
        )
        self.batch = batch


def read_messages(
    code: int, scratch: Any, view: Any, owned: Any
) -> tuple[list[bytes], list[int] | None]:
    """The payloads that a receive brought, and how many descriptors each has: None for one each.

    code: the result of the receive. view: the bytes of the payloads. owned: the descriptors.
    """
    if not code & _UNUSUAL:
        return [*cut[code](view)], None
    if code >= _LARGE:
        return [bytes(ffi.buffer(scratch.large, scratch.large_size))], [owned.count]
    count = (code & ~_MORE) >> _COUNT_SHIFT
    payloads: list[bytes]
    if code & _MIXED_LENGTHS:
        lengths = ffi.unpack(scratch.lengths, count)
        ends = accumulate(lengths)
        payloads = [view[end - size : end] for end, size in zip(ends, lengths, strict=True)]
    else:
        payloads = [*cut[code & ~_UNUSUAL](view)]
    return payloads, ffi.unpack(scratch.fd_counts, count) if code & _MIXED_COUNTS else None
