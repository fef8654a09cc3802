"""Many messages of the plain wire for one system call: send_many and recv_many."""

import errno
import socket
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from fdpass_c._native import ffi, lib
from fdpass_c.buffers import Buffer
from fdpass_c.descriptors import (
    MANY,
    Descriptors,
    get_memory,
    join,
    many,
    new_memory,
    own,
    recycle,
)
from fdpass_c.errors import MAX_FDS, NotCopied, TruncatedError, raise_oserror
from fdpass_c.jobs import flatten_fds, make_job
from fdpass_c.peer import is_unix
from fdpass_c.scratch import make_scratch
from fdpass_c.shapes import LONGEST_IN_COLUMN, cut, pack_column
from fdpass_c.waiting import READABLE, WRITABLE, Deadline, HasFileno, fileno, persist, raw_fileno

_try_recv_batch = lib.fdp_try_recv_batch
_try_send_messages = lib.fdp_try_send_messages

_COUNT_SHIFT = lib.FDP_COUNT_SHIFT
_MIXED_LENGTHS = lib.FDP_MIXED_LENGTHS
_MIXED_COUNTS = lib.FDP_MIXED_COUNTS
_LENGTH = _MIXED_LENGTHS - 1
_MORE = lib.FDP_MORE
_LARGE = lib.FDP_LARGE
_UNUSUAL = _MIXED_LENGTHS | _MIXED_COUNTS | _MORE | _LARGE


class Progress(NamedTuple):
    """How far a batch has come: messages sent whole, then bytes of the next one that left.

    With the first of those bytes that message's descriptors left too.
    """

    messages: int = 0
    bytes: int = 0


_NOTHING_SENT = Progress()


class Batch(NotCopied):
    """The messages of one recv_many, and the owner of their descriptors.

    payloads: a list of bytes, one each. fds: the Descriptors of all messages, one message's
    behind the other's; where every message carries one, zip(batch.payloads, batch.fds) pairs
    them. len, indexing and iterating go by message: batch[i] is (payload, list of borrowed ints).

    A context manager: close() closes every descriptor that was not taken out of fds, in few
    system calls. It cannot be copied or pickled (TypeError).
    """

    __slots__ = ("_counts", "fds", "payloads")

    def __init__(
        self, payloads: list[bytes], fds: Descriptors, counts: list[int] | None = None
    ) -> None:
        """counts: how many descriptors go with each payload; None for one with each."""
        self.payloads = payloads
        self.fds = fds
        self._counts = counts

    def __len__(self) -> int:
        return len(self.payloads)

    def __getitem__(self, index: int) -> tuple[bytes, list[int]]:
        payload = self.payloads[index]
        index %= len(self.payloads)
        if self._counts is None:
            return payload, [self.fds[index]]
        start = sum(self._counts[:index])
        return payload, [self.fds[at] for at in range(start, start + self._counts[index])]

    def __iter__(self) -> Iterator[tuple[bytes, list[int]]]:
        counts = self._counts or [1] * len(self.payloads)
        for payload, count, end in zip(self.payloads, counts, accumulate(counts), strict=True):
            yield payload, [self.fds[at] for at in range(end - count, end)]

    def __repr__(self) -> str:
        return f"<Batch of {len(self.payloads)} messages, {self.fds!r}>"

    def close(self) -> None:
        """Closes all that was not taken. Again is harmless."""
        self.fds.close()

    def __enter__(self) -> "Batch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TruncatedBatchError(TruncatedError):
    """Some messages of a batch were truncated; their descriptors are closed.

    batch: the Batch of those that arrived whole, in order; the caller closes it.
    """

    def __init__(self, lost: int, batch: Batch) -> None:
        super().__init__(
            f"{lost} messages lost descriptors or bytes: they had more than maxfds or bufsize "
            "allow, or this process's descriptor table is full (RLIMIT_NOFILE)"
        )
        self.batch = batch


def send_many(
    sock: int | HasFileno,
    payloads: Sequence[Buffer],
    fds: Sequence[int | HasFileno] | Sequence[Iterable[int | HasFileno]],
    flags: int = 0,
    *,
    start: Progress = _NOTHING_SENT,
) -> int:
    """Sends many messages for one system call in each 64; returns how many: len(payloads).

    sock: a connected Unix domain socket of any type; its timeout is honoured, for all of them
    together. payloads: one bytes-like object a message. fds: one descriptor a message, or one
    iterable of up to 253 a message; ints or objects with fileno(), borrowed. Each is an ordinary
    message, as from send_fds: any peer can receive it.

    Everything is checked before anything is sent: TypeError and ValueError (unequal lengths, a
    wrong element, an empty payload with descriptors on a stream, a start outside the batch),
    OSError (EINVAL for more than 253 descriptors in a message, EAFNOSUPPORT for another family
    of socket).

    An OSError, BlockingIOError and TimeoutError among them, has an attribute
    progress: the first progress.messages are sent, exactly once, and the error is that of the
    next one, of which progress.bytes bytes left with all its descriptors. To go on without loss
    or repeat, call again with the same payloads and fds and start=error.progress. EFAULT: the next
    payload is a mapping of a file that has shrunk.
    """
    fd = raw_fileno(sock)
    data = [*payloads]
    listed = [*fds]
    count = len(data)
    if start == _NOTHING_SENT and 0 < count == len(listed) and type(data[0]) is bytes:
        width = len(data[0]) + 2
        if count <= lib.FDP_BATCH and width <= LONGEST_IN_COLUMN + 2:
            try:
                column = pack_column[count, width](*listed, *data)
            except struct.error:
                pass  # Not ints, or not bytes.
            else:
                if not is_unix(fd, sock):
                    raise _without_progress(errno.EAFNOSUPPORT)
                sent = _try_send_messages(fd, column, count, width, flags)
                if sent == count:
                    return count
                if sent > 0:
                    start = Progress(sent, 0)
    return _send_all(sock, fd, data, listed, flags, start)


def _send_all(
    sock: int | HasFileno,
    fd: int,
    payloads: list[Buffer],
    fds: list[Any],
    flags: int,
    start: Progress,
) -> int:
    count = len(payloads)
    job, lengths, flat, counts = make_job(payloads, *flatten_fds(fds))
    _check_start(start, lengths)
    try:
        _check_batch(sock, fd, lengths, flat, counts)
        at = job.at
        at.message, at.bytes = start
        at.data_offset = sum(lengths[: start.messages])
        at.fd_offset = start.messages if counts is None else sum(counts[: start.messages])
        deadline = None
        while at.message < count:
            sent = lib.fdp_send_batch(fd, job, flags)
            if sent < 0:
                deadline = deadline or Deadline(sock, WRITABLE, flags)
                deadline.handle(-sent)
                fd = raw_fileno(sock)
    except OSError as error:
        error.progress = Progress(job.at.message, job.at.bytes)  # type: ignore[attr-defined]
        raise
    return count


def _without_progress(code: int) -> OSError:
    try:
        raise_oserror(code)
    except OSError as error:
        error.progress = _NOTHING_SENT  # type: ignore[attr-defined]
        return error


def _check_start(start: Progress, lengths: list[int]) -> None:
    """ValueError for what no error.progress of this batch could be: it would send other memory."""
    messages, part = start
    if start == _NOTHING_SENT or (messages == len(lengths) and part == 0):
        return
    if not (0 <= messages < len(lengths) and 0 <= part < max(lengths[messages], 1)):
        raise ValueError(f"start is {start}, outside the {len(lengths)} payloads")


def _check_batch(
    sock: int | HasFileno,
    fd: int,
    lengths: list[int],
    fds: "array[int]",
    counts: "array[int] | None",
) -> None:
    if counts is not None and max(counts, default=0) > MAX_FDS:
        raise_oserror(
            errno.EINVAL, f"{max(counts)} descriptors, one message takes at most {MAX_FDS}"
        )
    if fds and not is_unix(fd, sock):
        raise_oserror(errno.EAFNOSUPPORT)
    if 0 in lengths and lib.fdp_check_empty(fd) == -errno.ENODATA:
        for position, length in enumerate(lengths):
            if length == 0 and (counts is None or counts[position] > 0):
                raise ValueError(
                    f"payloads[{position}] is empty: on a stream, descriptors need at least "
                    "one byte to travel with"
                )


_INLINE_SIZE = lib.FDP_INLINE_SIZE

_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)

# Memory for one batch on its way in: what describes it, and the bytes.
_idle: list[tuple[Any, Any, Any]] = []


def _make_memory() -> tuple[Any, Any, Any]:
    data = _new_uncleared("char[]", lib.FDP_BATCH * _INLINE_SIZE)
    return make_scratch()[0], data, ffi.buffer(data)


def _get_memory() -> tuple[Any, Any, Any]:
    try:
        return _idle.pop()
    except IndexError:
        return _make_memory()


def recv_many(
    sock: int | HasFileno,
    max_messages: int = 64,
    bufsize: int = 4096,
    maxfds: int = 1,
    flags: int = 0,
) -> Batch:
    """Receives the messages that are there, up to 64 for one system call.

    sock: a Unix domain socket; it waits, as its timeout says, for the first message only.
    max_messages: at most so many. bufsize: bytes a message. maxfds: descriptors a message, more
    than 253 counts as 253. flags: as for socket.recvmsg; MSG_PEEK shows the first message only.

    Returns a Batch, which owns every descriptor received; an empty one at end of file. On a
    stream, messages are told apart only by the descriptors they carry: send one with each. On a
    seqpacket socket an empty message without descriptors cannot be told from the end of file,
    unless it came before another one.

    TruncatedError: a message carried more than maxfds descriptors, was a datagram longer than
    bufsize, or met a full descriptor table. Its own descriptors are closed; the messages that
    arrived whole are in the error's attribute batch, open and to be closed by the caller.
    ConnectionResetError: the peer closed without having received everything that was sent to it;
    what it had sent is in the error's attribute batch, likewise. OSError, BlockingIOError and
    TimeoutError as for socket.recvmsg.
    """
    if max_messages < 1 or bufsize < 1 or maxfds < 0:
        raise ValueError(
            f"max_messages and bufsize are positive, maxfds is not negative, "
            f"got {max_messages}, {bufsize} and {maxfds}"
        )
    if flags & socket.MSG_PEEK:
        max_messages = 1  # The kernel would show the first one over and over.
    fd = raw_fileno(sock)
    scratch, data, view = memory = _get_memory()
    most = min(max_messages, lib.FDP_BATCH)
    if bufsize > _INLINE_SIZE:
        data = _new_uncleared("char[]", most * bufsize)
        view = ffi.buffer(data)
    room = most * min(maxfds, MAX_FDS)
    pool = many if room <= MANY else None
    held = [get_memory(many, MANY) if room <= MANY else new_memory(room)]
    arguments = (data, bufsize, maxfds, max_messages, flags, scratch, held[0])
    error: Exception | None = None
    try:
        try:
            code = _try_recv_batch(fd, *arguments)
            if code < 0:
                code = _wait_to_receive(sock, code, flags, *arguments)
        except ConnectionResetError as reset:
            # The kernel says so before the queue is empty, and only once.
            error = reset
            code = max(_try_recv_batch(fd, *arguments), 0)
        payloads, counts = read_messages(code, scratch, view, held[0])
        lost = scratch.lost if code & _MIXED_COUNTS else 0
        while code & _MORE and (left := max_messages - len(payloads) - lost) > 0:
            held.append(new_memory(max(room, 1)))
            code = _try_recv_batch(fd, data, bufsize, maxfds, left, flags, scratch, held[-1])
            if code <= 0:
                break
            more, their_counts = read_messages(code, scratch, view, held[-1])
            if counts or their_counts:
                counts = (counts or [1] * len(payloads)) + (their_counts or [1] * len(more))
            payloads += more
            lost += scratch.lost if code & _MIXED_COUNTS else 0
        if len(held) > 1:
            pool = None
            held.append(join(held))
        batch = Batch(payloads, own(held[-1], pool), counts)
        if error is not None:
            error.batch = batch  # type: ignore[attr-defined]
        elif lost:
            error = TruncatedBatchError(lost, batch)
        # No call, after which a signal handler could run: from here on it is the caller's.
        stack = _idle
        stack += (memory,)
    except BaseException:
        for owned in held:
            recycle(owned, pool if len(held) == 1 else None)
        _idle.append(memory)
        raise
    if error is not None:
        raise error
    return batch


def _wait_to_receive(sock: int | HasFileno, code: int, flags: int, *arguments: Any) -> int:
    """Waits, as the socket's timeout says, after a try that brought nothing."""
    if code == -errno.EAGAIN:
        code = lib.fdp_recv_batch(fileno(sock), *arguments)
    if code < 0:
        code = persist(sock, READABLE, code, flags, lib.fdp_recv_batch, *arguments)
    return code


def recv_one(sock: int | HasFileno, bufsize: int, maxfds: int) -> tuple[bytes, Descriptors, int]:
    """One message: its payload, the owner of its descriptors, and the flags of what was lost."""
    scratch, data, view = memory = _get_memory()
    if bufsize > lib.FDP_BATCH * _INLINE_SIZE:
        data = _new_uncleared("char[]", bufsize)
        view = ffi.buffer(data)
    owned = get_memory(many, MANY)
    arguments = (data, bufsize, maxfds, 1, 0, scratch, owned)
    try:
        code = _try_recv_batch(raw_fileno(sock), *arguments)
        if code < 0:
            code = _wait_to_receive(sock, code, 0, *arguments)
        payloads, _ = read_messages(code, scratch, view, owned)
        flags = scratch.lost_flags
        owner = own(owned, many)
        # No call, after which a signal handler could run: from here on it is the caller's.
        stack = _idle
        stack += (memory,)
        return payloads[0] if payloads else b"", owner, flags
    except BaseException:
        recycle(owned, many)
        _idle.append(memory)
        raise


def read_messages(
    code: int, scratch: Any, view: Any, owned: Any
) -> tuple[list[bytes], list[int] | None]:
    """The payloads of what a receive brought, and how many descriptors go with each, None for one.

    code and scratch describe it, view shows the payloads, owned has the descriptors.
    """
    if not code & _UNUSUAL:
        return [*cut[code >> _COUNT_SHIFT, code & _LENGTH](view)], None
    if code >= _LARGE:
        return [bytes(ffi.buffer(scratch.large, scratch.large_size))], [owned.count]
    count = (code & ~_MORE) >> _COUNT_SHIFT
    payloads: list[bytes]
    if code & _MIXED_LENGTHS:
        lengths = ffi.unpack(scratch.lengths, count)
        ends = accumulate(lengths)
        payloads = [view[end - size : end] for end, size in zip(ends, lengths, strict=True)]
    else:
        payloads = [*cut[count, code & _LENGTH](view)]
    return payloads, ffi.unpack(scratch.fd_counts, count) if code & _MIXED_COUNTS else None
