"""Many plain messages per system call: send_many and recv_many."""

import errno
import socket
from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.buffers import Buffer
from fdpass_c.descriptors import (
    MANY,
    Descriptors,
    as_list,
    get_memory,
    join,
    many,
    new_memory,
    own,
    recycle,
)
from fdpass_c.errors import (
    ENODATA,
    MAX_FDS,
    check_fd_count,
    describe_errno,
    raise_oserror,
)
from fdpass_c.jobs import check_unsent, flatten_fds, make_job
from fdpass_c.outcomes import (
    NOTHING_SENT,
    Batch,
    Progress,
    TruncatedBatchError,
    gather,
    read_messages,
)
from fdpass_c.peer import check_unix
from fdpass_c.scratch import MOST, make_scratch, new_uncleared
from fdpass_c.shapes import LONGEST_IN_ROW, UNFIT, pack_rows
from fdpass_c.waiting import (
    READABLE,
    WRITABLE,
    Deadline,
    HasFileno,
    fileno,
    flags_of_try,
    persist,
    raw_fileno,
)

_try_recv_batch = lib.fdp_try_recv_batch
_try_send_messages = lib.fdp_try_send_messages

_MIXED_COUNTS = lib.FDP_MIXED_COUNTS
_MORE = lib.FDP_MORE
_BATCH = lib.FDP_BATCH


def send_many(
    sock: int | HasFileno,
    payloads: Sequence[Buffer],
    fds: Sequence[int | HasFileno | Iterable[int | HasFileno]],
    flags: int = 0,
    *,
    start: Progress = NOTHING_SENT,
) -> int:
    """Sends many plain messages, up to 64 per system call.

    Each is an ordinary message, as send_fds sends it, which any peer can receive. Everything is
    checked before anything is sent.

    Every OSError of this function has an attribute progress (Progress.of(error) is typed): the
    first progress.messages messages were sent, exactly once, and the error is about the next one,
    of which progress.bytes bytes were sent. To go on without loss or repetition, call again with
    the same payloads and fds and start=error.progress.

    Args:
        sock: A connected Unix domain socket of any type. Its timeout applies to all messages
            together.
        payloads: One bytes-like object per message.
        fds: One descriptor per message, or one iterable of up to 253 descriptors per message. They
            are ints or objects with fileno(). The caller still owns them, and may close them
            immediately after the call.
        flags: As for socket.sendmsg.
        start: Where to begin in payloads and fds.

    Returns:
        The number of messages sent, which is len(payloads).

    Raises:
        ValueError: payloads and fds have different lengths, a payload with descriptors is empty on
            a stream, or start is outside the batch.
        TypeError: An element has the wrong type.
        OSError: EINVAL: more than 253 descriptors in a message. EFAULT: a payload is a mapping of a
            truncated file. Others as for send_fds.
        BlockingIOError: The socket is in non-blocking mode and has no room.
        TimeoutError: The socket's timeout is over.
    """
    data = [*payloads]
    job = start_batch(sock, data, fds, flags, start)
    if job is not None:
        send_rest(sock, job, flags)
    return len(data)


def start_batch(
    sock: int | HasFileno,
    data: list[Buffer],
    fds: Sequence[int | HasFileno | Iterable[int | HasFileno]],
    flags: int,
    start: Progress,
) -> Any:
    """Checks the arguments of send_many, and may send some of the messages without waiting.

    Returns None if all were sent, and otherwise a struct fdp_job * for send_rest. It reads fds only
    once, because that may contain iterators.
    """
    # How many were sent without waiting. None if an exception of a signal handler hides the number.
    sent: int | None = 0
    try:
        fd = raw_fileno(sock)
        listed = as_list(fds)
        count = len(data)
        if start is NOTHING_SENT and 0 < count == len(listed) and type(data[0]) is bytes:
            width = len(data[0]) + 2
            if count <= _BATCH and width <= LONGEST_IN_ROW + 2:
                try:
                    rows = pack_rows[count, width](*listed, *data)
                except UNFIT:
                    pass  # Not ints, or not bytes.
                else:
                    check_unix(fd, sock)
                    sent = None
                    sent = _try_send_messages(fd, rows, count, width, flags)
                    if sent == count:
                        return None
                    if sent > 0:
                        start = Progress(sent, 0)
                    if sent == -errno.ECONNRESET:  # A packet socket reports this only once.
                        raise_oserror(errno.ECONNRESET)
        flat, counts = flatten_fds(listed)
        job, lengths, _ = make_job(data, flat, counts)
        _check_start(start, lengths)
        _check_batch(sock, fd, lengths, flat, counts)
    except OSError as error:
        if sent is not None:
            error.progress = Progress(sent, 0) if sent > 0 else start  # type: ignore[attr-defined]
        raise
    at = job.at
    at.message, at.bytes = start
    at.data_offset = sum(lengths[: start.messages])
    at.fd_offset = start.messages if counts is None else sum(counts[: start.messages])
    return job


def send_rest(sock: int | HasFileno, job: Any, flags: int) -> None:
    """Sends what is left of a job, and waits as the socket's timeout says.

    After an exception it may be called again, and goes on.
    """
    at, count = job.at, job.count
    deadline = Deadline(sock, WRITABLE, flags)
    try:
        while at.message < count:
            # Asked for every time: a signal handler may have closed the socket, and another file
            # may have its number now.
            sent = lib.fdp_send_batch(raw_fileno(sock), job, flags_of_try(sock, flags))
            if sent < 0:
                if sent == -errno.EBADF:
                    check_unsent(job)
                deadline.handle(-sent)
    except OSError as error:
        error.progress = read_progress(job)  # type: ignore[attr-defined]
        raise


def read_progress(job: Any) -> Progress:
    """How far a job has come."""
    return Progress(job.at.message, job.at.bytes)


def _check_start(start: Progress, lengths: list[int]) -> None:
    """ValueError for a start that no error.progress of this batch can be."""
    messages, part = start
    if start == NOTHING_SENT or (messages == len(lengths) and part == 0):
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
    check_fd_count(max(counts or (), default=0))
    if fds:
        check_unix(fd, sock)
    if 0 in lengths and lib.fdp_check_empty(fd) == -ENODATA:
        for position, length in enumerate(lengths):
            if length == 0 and (counts is None or counts[position] > 0):
                raise ValueError(
                    f"payloads[{position}] is empty: on a stream, descriptors need at least "
                    "one byte to travel with"
                )


_MOST_BYTES = _BATCH * lib.FDP_INLINE_SIZE
_DONTWAIT = int(socket.MSG_DONTWAIT)
_MSG_PEEK = int(socket.MSG_PEEK)
# Removes MSG_WAITALL, with which a call that does not wait receives nothing.
_LATER = ~int(socket.MSG_WAITALL)


# A stack of memory to be used again, as in scratch.py.
_idle: list[Any] = []


def _get_memory() -> tuple[Any, Any, Any]:
    """Memory to receive one batch: its description, the bytes, and a view of them."""
    try:
        memory: tuple[Any, Any, Any] = _idle.pop()
    except IndexError:
        data = new_uncleared("char[]", _MOST_BYTES)
        memory = make_scratch()[0], data, ffi.buffer(data)
    return memory


def recv_many(
    sock: int | HasFileno,
    max_messages: int = 64,
    bufsize: int = 4096,
    maxfds: int = 1,
    flags: int = 0,
) -> Batch:
    """Receives the plain messages that are queued, up to 64 per system call.

    It waits for the first message only, as the socket's timeout says. On a stream, messages are
    told apart only by the descriptors that they carry: send at least one with each. On a seqpacket
    socket whose peer has closed, an empty message without descriptors looks like the end of file,
    unless another message was queued behind it. Outside of Linux that is so before the
    peer closes, too.

    Args:
        sock: A Unix domain socket of any type.
        max_messages: The largest number of messages to receive.
        bufsize: The largest number of bytes per message.
        maxfds: The largest number of descriptors per message. More than 253 counts as 253.
        flags: As for socket.recvmsg. MSG_PEEK shows the first message only.

    Returns:
        A Batch, which owns every received descriptor. It is empty at end of file.

    Raises:
        TruncatedBatchError: A message carried more than maxfds descriptors, was a datagram longer
            than bufsize, or found the descriptor table full. The descriptors that arrived with it
            are closed. The messages that arrived whole are in the error's attribute batch, which
            the caller closes.
        ConnectionResetError: The peer closed without receiving everything that was sent to it. What
            it had sent is in the error's attribute batch, which the caller closes.
        ValueError: max_messages or bufsize is less than 1, or maxfds is negative.
        BlockingIOError: The socket is in non-blocking mode and nothing is queued.
        TimeoutError: The socket's timeout is over.
        OSError: As for socket.recvmsg.
    """
    if max_messages < 1 or bufsize < 1 or maxfds < 0:
        raise ValueError(
            "max_messages and bufsize must be at least 1, and maxfds not negative, "
            f"got {max_messages}, {bufsize} and {maxfds}"
        )
    if flags & _MSG_PEEK:
        max_messages = 1  # A peek always shows the first message.
    fd = raw_fileno(sock)
    scratch, data, view = memory = _get_memory()
    most = max_messages if max_messages < _BATCH else _BATCH
    receive_more = _try_recv_batch
    if most * bufsize > _MOST_BYTES:
        data = new_uncleared("char[]", most * bufsize)
        view = ffi.buffer(data)
        receive_more = lib.fdp_recv_batch  # A try would keep the interpreter's lock for long.
    if maxfds > MAX_FDS:
        maxfds = MAX_FDS
    room = most * maxfds
    pool = many if room <= MANY else None
    owned = get_memory(many, MANY) if room <= MANY else new_memory(room)
    held = [owned]
    error: Exception | None = None
    try:
        code = _try_recv_batch(fd, data, bufsize, maxfds, max_messages, flags, scratch, owned)
        if code < 0:
            del _idle[MOST:]
            attempt = partial(_receive, sock, data, bufsize, maxfds, max_messages, scratch, owned)
            code = persist(sock, READABLE, code, flags, attempt, last=-errno.ECONNRESET)
            if code == -errno.ECONNRESET:
                # The kernel reports this only once, and even if messages are still queued.
                error, code = _make_reset(), _MORE
        payloads, counts = read_messages(code, scratch, view, owned)
        lost = _count_lost(code, scratch)
        while code & _MORE and (left := max_messages - len(payloads) - lost) > 0:
            pool = None
            held.append(new_memory(max(room, 1)))
            arguments = (data, bufsize, maxfds, left, flags & _LATER | _DONTWAIT, scratch, held[-1])
            code = receive_more(fileno(sock), *arguments)
            if code == -errno.ECONNRESET:  # As above.
                error, code = _make_reset(), _MORE
                continue
            if code <= 0:
                break
            more, their_counts = read_messages(code, scratch, view, held[-1])
            if counts or their_counts:
                counts = (counts or [1] * len(payloads)) + (their_counts or [1] * len(more))
            payloads += more
            lost += _count_lost(code, scratch)
        if len(held) > 1:
            held.append(join(held))
        batch = gather(payloads, own(held[-1], pool), counts)
        if error is not None:
            error.batch = batch  # type: ignore[attr-defined]
        elif lost:
            error = TruncatedBatchError(lost, batch)
        # The lines up to the return make no call, so no signal handler runs between them.
        stack = _idle
        stack += (memory,)
    except BaseException:
        lib.fdp_close_surplus(scratch)
        for owned in held:
            recycle(owned, pool)
        _idle.append(memory)
        raise
    if error is not None:
        raise error
    return batch


def _receive(
    sock: int | HasFileno,
    data: Any,
    bufsize: int,
    maxfds: int,
    most: int,
    scratch: Any,
    owned: Any,
    flags: int,
) -> int:
    code: int = lib.fdp_recv_batch(fileno(sock), data, bufsize, maxfds, most, flags, scratch, owned)
    return code


def _make_reset() -> OSError:
    return OSError(errno.ECONNRESET, describe_errno(errno.ECONNRESET))


def _count_lost(code: int, scratch: Any) -> int:
    """How many messages lost something. Closes the descriptors that came with them."""
    if not code & _MIXED_COUNTS or not scratch.lost:
        return 0
    lib.fdp_close_surplus(scratch)
    return int(scratch.lost)


def recv_one(
    sock: int | HasFileno, bufsize: int, maxfds: int, flags: int
) -> tuple[bytes | None, Descriptors, int]:
    """One message: its payload, the owner of its descriptors, and the flags of what was lost.

    The payload is None at end of file, and if something was lost.
    """
    scratch, data, view = memory = _get_memory()
    if bufsize > _MOST_BYTES:
        data = new_uncleared("char[]", bufsize)
        view = ffi.buffer(data)
    owned = get_memory(many, MANY)
    try:
        fd = raw_fileno(sock)
        code = _try_recv_batch(fd, data, bufsize, maxfds, 1, flags, scratch, owned)
        if code < 0:
            del _idle[MOST:]
            attempt = partial(_receive, sock, data, bufsize, maxfds, 1, scratch, owned)
            code = persist(sock, READABLE, code, flags, attempt)
        payloads, _ = read_messages(code, scratch, view, owned)
        lost = scratch.lost_flags if _count_lost(code, scratch) else 0
        message = payloads[0] if payloads else None, own(owned, many), lost
        # The lines up to the return make no call, so no signal handler runs between them. After the
        # last of them another receive may take the memory, so the return must not fail.
        stack = _idle
        stack += (memory,)
        return message
    except BaseException:
        lib.fdp_close_surplus(scratch)
        recycle(owned, many)
        _idle.append(memory)
        raise
