"""Gather writes: many buffers to one descriptor, the same buffers to many."""

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.descriptors import as_fd_list, as_ints
from fdpass_c.errors import raise_oserror
from fdpass_c.messages import Buffer
from fdpass_c.waiting import WRITABLE, Deadline, HasFileno, fileno

# What one system call takes at most (IOV_MAX on Linux, man 2 writev).
_MAX_BUFFERS = 1024

# Up to this mean size, copying buffers into one costs less than describing each to the kernel.
_JOIN_BELOW = 1024

# Up to so many buffers, each is asked for its size.
_FEW = 16

_join = b"".join
_write = os.write
# Where the system or PyPy has no such call, the buffers are joined.
_writev = getattr(os, "writev", lambda fd, buffers: os.write(fd, _join(buffers)))
_pwritev = getattr(os, "pwritev", lambda fd, buffers, at: os.pwrite(fd, _join(buffers), at))


def writev(fd: int | HasFileno, buffers: Iterable[Buffer], offset: int | None = None) -> int:
    """Writes all of buffers, one after the other; returns the number of bytes.

    fd: a descriptor or an object with fileno(), borrowed. buffers: any number of bytes-like
    objects of any size, empty ones too. offset: where in the file to write, leaving its position
    alone (man 2 pwritev); None writes at the position.

    It goes on after short writes and signals until everything is written. A non-blocking
    descriptor that is full is a BlockingIOError; a socket with a timeout waits that long in all,
    then TimeoutError. Every OSError says in its attribute characters_written how many bytes were
    written before it. TypeError for what has no buffer; among the first 1024 nothing is written
    then.

    What it writes is one stretch of bytes, not one message: it may take several system calls
    where there are over 1024 buffers.
    """
    # With as little around the system call as can be: the ends of the list stand for all of it,
    # and a wrong guess costs a copy. All else, and all that goes wrong, is _write_all's.
    if offset is None and type(fd) is int:
        listed: Sequence[Buffer] = buffers  # type: ignore[assignment]
        try:
            size = len(listed[0]) + len(listed[-1])
            if size <= 2 * _JOIN_BELOW and len(listed) <= _MAX_BUFFERS:
                data = _join(listed)
                size = len(data)
            elif len(listed) == 2 and type(listed[0]) is type(listed[1]) is bytes:
                data = None
            else:
                return _write_all(fd, listed, None)
        except (TypeError, LookupError):
            return _write_all(fd, buffers, None)
        try:
            written = _writev(fd, listed) if data is None else _write(fd, data)
        except BlockingIOError:
            written = 0
        except OSError as error:
            _count_written(error, 0)
            raise
        return size if written == size else _finish(fd, listed, written, None)
    return _write_all(fd, buffers, offset)


def _write_all(fd: int | HasFileno, buffers: Iterable[Buffer], offset: int | None) -> int:
    if type(buffers) is not list and type(buffers) is not tuple:
        buffers = [*buffers]
    target = fd if type(fd) is int else fileno(fd)
    count = len(buffers)
    if offset is not None and offset < 0:
        _refuse_offset()  # Linux takes -1 for the position (man 2 pwritev2).
    if count <= _MAX_BUFFERS:
        return _write_part(fd, target, buffers, offset)
    deadline = Deadline(fd, WRITABLE)
    done = 0
    for start in range(0, count, _MAX_BUFFERS):
        part = buffers[start : start + _MAX_BUFFERS]
        try:
            at = None if offset is None else offset + done
            done += _write_part(fd, target, part, at, deadline)
        except OSError as error:
            _count_written(error, done)
            raise
    return done


def _refuse_offset() -> NoReturn:
    try:
        raise_oserror(errno.EINVAL)
    except OSError as error:
        _count_written(error, 0)
        raise


def _write_part(
    fd: int | HasFileno,
    target: int,
    buffers: Sequence[Buffer],
    offset: int | None,
    deadline: Deadline | None = None,
) -> int:
    """Up to 1024 buffers with one system call, joined or not as their size makes it faster.

    Asking every buffer for its size costs as much as half of the writing where they are many and
    small. Then a few are asked, and a wrong guess costs a copy.
    """
    asked = buffers if len(buffers) <= _FEW else buffers[:: len(buffers) // 4]
    try:
        size = sum(map(len, asked))
    except TypeError:
        size = sum(map(_size, asked))
    try:
        if size <= _JOIN_BELOW * len(asked):
            data = _join(buffers)
            size = len(data)
            written = _write(target, data) if offset is None else os.pwrite(target, data, offset)
        else:
            # What len says of other types may be items wider than a byte.
            for buffer in asked:
                if type(buffer) is not bytes or asked is not buffers:
                    size = sum(map(_size, buffers))
                    break
            if offset is None:
                written = _writev(target, buffers)
            else:
                written = _pwritev(target, buffers, offset)
    except BlockingIOError:
        written = 0
    except OSError as error:
        _count_written(error, 0)
        raise
    if written == size:
        return written
    return _finish(fd, buffers, written, offset, deadline)


def _count_written(error: OSError, written: int) -> None:
    """Adds to what error says was written; one that a signal handler raised has no errno."""
    if error.errno is not None or type(error) is TimeoutError:
        error.characters_written = getattr(error, "characters_written", 0) + written  # type: ignore[attr-defined]


def _size(buffer: Buffer) -> int:
    return len(buffer) if type(buffer) is bytes else memoryview(buffer).nbytes


def _skip(buffers: Sequence[Buffer], written: int) -> list[memoryview]:
    rest = []
    for buffer in buffers:
        view = memoryview(buffer)
        if written >= view.nbytes:
            written -= view.nbytes
        else:
            rest.append(view.cast("B")[written:])
            written = 0
    return rest


def _finish(
    fd: int | HasFileno,
    buffers: Sequence[Buffer],
    written: int,
    offset: int | None,
    deadline: Deadline | None = None,
) -> int:
    """What is left after a short write, or after one that could not even start."""
    deadline = deadline or Deadline(fd, WRITABLE)
    target = fileno(fd)
    rest = _skip(buffers, written)
    try:
        while rest:
            try:
                if offset is None:
                    now = _writev(target, rest)
                else:
                    now = _pwritev(target, rest, offset + written)
            except BlockingIOError:
                deadline.handle(errno.EAGAIN)
                continue
            written += now
            rest = _skip(rest, now)
    except OSError as error:
        _count_written(error, written)
        raise
    return written


def broadcast(fds: Iterable[int | HasFileno], buffers: Iterable[Buffer]) -> list[int | OSError]:
    """Writes the same buffers to many descriptors, without waiting for any that is full.

    fds: descriptors or objects with fileno(), borrowed. buffers: bytes-like objects.

    Returns one result for each of fds, in their order: the number of bytes that it took, fewer
    than all where it filled up on the way, or the OSError that it gave: BlockingIOError where it
    was full, BrokenPipeError where its peer had gone. No target disturbs the others, and no
    socket's timeout is waited for. A device may make it wait.

    TypeError for a wrong element of fds or buffers, before anything is written.
    """
    targets: list[Any] = [*fds]
    if not {*map(type, targets)} <= {int}:
        targets = as_fd_list(targets)
    data = _join(buffers)
    total = len(data)
    results = ffi.new("ssize_t[]", len(targets))
    view = ffi.new("struct iovec *", (ffi.from_buffer("char[]", data), total))
    lib.fdp_broadcast(as_ints(targets), len(targets), view, 1, results)
    listed: list[Any] = ffi.unpack(results, len(targets))
    if min(listed, default=0) < 0:
        listed = [result if result >= 0 else _as_error(-result) for result in listed]
    return listed


def _as_error(code: int) -> OSError:
    try:
        raise_oserror(code)
    except OSError as error:
        return error.with_traceback(None)
