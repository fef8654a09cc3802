"""Many messages of the plain wire for one system call: send_many and recv_many."""

import errno
import socket
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

from fdpass_c._native import ffi, lib
from fdpass_c.descriptors import Descriptors, as_fd_list, own
from fdpass_c.errors import MAX_FDS, NotCopied, TruncatedError, raise_oserror
from fdpass_c.messages import Buffer
from fdpass_c.peer import is_unix
from fdpass_c.waiting import READABLE, WRITABLE, Deadline, HasFileno, persist, raw_fileno


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
    or repeat, call again with the same payloads and fds and start=error.progress.
    """
    fd = raw_fileno(sock)
    data = b"".join(payloads)
    count = len(payloads)
    lengths = _measure(payloads, len(data))
    flat, counts = flatten_fds(fds)
    _check_start(start, lengths)
    try:
        _check_batch(sock, fd, lengths, flat, counts)
    except OSError as error:
        error.progress = start  # type: ignore[attr-defined]
        raise

    progress = ffi.new("struct fdp_progress *")
    if start != _NOTHING_SENT:
        progress.messages, progress.bytes = start
        progress.payload_offset = sum(lengths[: start.messages])
        progress.fd_offset = start.messages if counts is None else sum(counts[: start.messages])
    arguments = (
        fd,
        data,
        ffi.from_buffer("size_t[]", array("L", lengths)),
        ffi.from_buffer("int[]", flat),
        ffi.NULL if counts is None else ffi.from_buffer("unsigned int[]", counts),
        count,
        flags,
        progress,
    )
    deadline = None
    while progress.messages < count:
        sent = lib.fdp_send_batch(*arguments)
        if sent < 0:
            try:
                deadline = deadline or Deadline(sock, WRITABLE)
                deadline.handle(-sent)
            except OSError as error:
                error.progress = Progress(progress.messages, progress.bytes)  # type: ignore[attr-defined]
                raise
    return count


def flatten_fds(fds: Sequence[Any]) -> tuple["array[int]", "array[int] | None"]:
    """All descriptors in a row, and how many go with each message: None for one each."""
    try:
        return array("i", fds), None
    except TypeError:
        pass
    if any(map(_is_single, fds)):
        return array("i", as_fd_list(fds)), None
    rows = [as_fd_list(row) for row in fds]
    return array("i", chain.from_iterable(rows)), array("I", map(len, rows))


def _is_single(fds: Any) -> bool:
    """Whether fds is one descriptor; an owner of several stands for all of them."""
    return isinstance(fds, int) or (hasattr(fds, "fileno") and not isinstance(fds, Descriptors))


def _measure(payloads: Sequence[Buffer], total: int) -> list[int]:
    """The bytes of each payload; not every buffer has a length, or one in bytes."""
    try:
        lengths = [*map(len, payloads)]
        if sum(lengths) == total:
            return lengths
    except TypeError:
        pass
    return [memoryview(payload).nbytes for payload in payloads]


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
    described = len(fds) if counts is None else len(counts)
    if described != len(lengths):
        raise ValueError(f"{len(lengths)} payloads, but descriptors for {described}")
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


# message_count, fd_count, all_flags, one_each, same_length, the first of lengths
_unpack_head = struct.Struct("=IIii4xiI").unpack_from
_IS_FULL = 4  # the int behind them
_FDS_AT = ffi.offsetof("struct fdp_inbox", "fds") // 4
_INLINE_SIZE = 4096

_LOSSY = socket.MSG_CTRUNC | socket.MSG_TRUNC

_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


def _make_memory() -> tuple[Any, Any, Any, Any]:
    """Memory for one batch on its way in, reused: fresh pages would cost more than the messages.

    As for one message, the count of descriptors in the inbox is 0 whenever nobody is between the
    system call and the handing over.
    """
    data = _new_uncleared("char[]", lib.FDP_BATCH * _INLINE_SIZE)
    inbox = ffi.new("struct fdp_inbox *")
    return data, ffi.buffer(data), inbox, memoryview(ffi.buffer(inbox)).cast("i")


_idle: list[tuple[Any, Any, Any, Any]] = []


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
    OSError, BlockingIOError and TimeoutError as for socket.recvmsg.
    """
    if max_messages < 1 or bufsize < 1 or maxfds < 0:
        raise ValueError(
            f"max_messages and bufsize are positive, maxfds is not negative, "
            f"got {max_messages}, {bufsize} and {maxfds}"
        )
    if flags & socket.MSG_PEEK:
        max_messages = 1  # The kernel would show the first one over and over.
    fd = raw_fileno(sock)
    batch = Batch([], own([]))
    lost = 0
    try:
        memory = _idle.pop()
    except IndexError:
        memory = _make_memory()
    data, view, inbox, head = memory
    if bufsize > _INLINE_SIZE:
        data = _new_uncleared("char[]", min(max_messages, lib.FDP_BATCH) * bufsize)
        view = ffi.buffer(data)
    try:
        left = max_messages
        while True:
            arguments = (fd, data, bufsize, maxfds, left, flags, inbox)
            count = lib.fdp_recv_batch(*arguments)
            if count < 0:
                if left < max_messages:
                    break
                count = persist(sock, READABLE, count, lib.fdp_recv_batch, *arguments)
            lost += _collect(batch, view, inbox, head, bufsize)
            left -= count
            if not left or not head[_IS_FULL]:
                break
            flags |= socket.MSG_DONTWAIT
    except BaseException:
        lib.fdp_close_fds(inbox.fds, head[1])
        head[1] = 0
        batch.close()
        raise
    _idle.append(memory)
    if lost:
        raise TruncatedBatchError(lost, batch)
    return batch


def _collect(batch: Batch, view: Any, inbox: Any, head: Any, bufsize: int) -> int:
    """Moves what the inbox holds into batch; returns how many messages had to be thrown away."""
    messages, fd_count, all_flags, one_each, same_length, length = _unpack_head(head)
    if batch._counts is None and not one_each:
        batch._counts = [1] * len(batch)
    # From the inbox to the batch by assignments, between which no signal handler runs.
    fds = head[_FDS_AT : _FDS_AT + fd_count].tolist()
    owned = batch.fds._fds
    owned += fds
    head[1] = 0
    if same_length:
        # The usual case: one unpack cuts them all, ten times as fast.
        batch.payloads += _cuts[messages, length, bufsize](view)
    else:
        lengths = ffi.unpack(inbox.lengths, messages)
        starts = range(0, messages * bufsize, bufsize)
        batch.payloads += [view[at : at + size] for at, size in zip(starts, lengths, strict=True)]
    if batch._counts is not None:
        batch._counts += ffi.unpack(inbox.fd_counts, messages)
    if all_flags & _LOSSY:
        return _drop_truncated(batch, ffi.unpack(inbox.flags, messages))
    return 0


class Cuts(dict[tuple[int, int, int], Callable[..., tuple[bytes, ...]]]):
    """By count, length and stride, what cuts that many equal payloads out of memory.

    No lru_cache: PyPy's is written in Python, and stays broken where a signal handler raises in it.
    """

    def __missing__(self, shape: tuple[int, int, int]) -> Callable[..., tuple[bytes, ...]]:
        if len(self) > 64:
            self.clear()
        count, length, stride = shape
        cut = struct.Struct(f"{length}s{stride - length}x" * count).unpack_from
        self[shape] = cut
        return cut


_cuts = Cuts()


def _drop_truncated(batch: Batch, flags: list[int]) -> int:
    """Takes the truncated ones of the last len(flags) messages out of batch and closes theirs."""
    first = len(batch) - len(flags)
    truncated = [first + at for at, flag in enumerate(flags) if flag & _LOSSY]
    counts = batch._counts = batch._counts or [1] * len(batch)
    owned = batch.fds._fds or []
    for position in reversed(truncated):
        start = sum(counts[:position])
        number = counts[position]
        end = start + number
        surplus = owned[start:end]
        # No call between these two, so no signal handler that could raise.
        del owned[start:end], counts[position], batch.payloads[position]
        lib.fdp_close_fds(surplus, number)
    return len(truncated)
