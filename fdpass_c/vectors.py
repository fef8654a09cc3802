"""Gather writes: many buffers to one descriptor, the same buffers to many."""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterable, Sequence
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

# A row of fdp_write_rows holds a buffer's length, its bytes, and room for one more, so that a
# longer buffer shows. A row is cleared before it is filled, so that narrow ones cost less.
_NARROW = 66
_WIDE = 256
_WRITTEN = 2**32 - 1
_DOES_NOT_FIT = -errno.E2BIG

_join = b"".join
_write = os.write
_write_rows = lib.fdp_write_rows
# Where the system or PyPy has no such call, the buffers are joined.
_writev = getattr(os, "writev", lambda fd, buffers: os.write(fd, _join(buffers)))
_pwritev = getattr(os, "pwritev", lambda fd, buffers, at: os.pwrite(fd, _join(buffers), at))


class _Packers(dict[tuple[str, int], Callable[..., bytes]]):
    """By item and count, what packs so many of them; struct.error for all but bytes, bytearray.

    These are Python's own memory. Bytes of another object may be a mapping, which only the kernel
    may touch: where the file behind it was cut, that is EFAULT, and SIGBUS in this process.
    """

    def __missing__(self, shape: tuple[str, int]) -> Callable[..., bytes]:
        if len(self) >= 64:
            self.clear()
        item, count = shape
        pack = self[shape] = struct.Struct(item * count).pack
        return pack


_packers = _Packers()


def writev(fd: int | HasFileno, buffers: Iterable[Buffer], offset: int | None = None) -> int:
    """Writes all of buffers, one after the other; returns the number of bytes.

    fd: a descriptor or an object with fileno(), borrowed. buffers: any number of bytes-like
    objects of any size, empty ones too. offset: where in the file to write, leaving its position
    alone (man 2 pwritev); None writes at the position.

    It goes on after short writes and signals until everything is written; where there is nothing
    to write it writes nothing. A non-blocking descriptor that is full is a BlockingIOError; a
    socket with a timeout waits that long in all, then TimeoutError. Every OSError says in its
    attribute characters_written how many bytes were written before it; EFAULT is a mapping whose
    file was cut. TypeError for what has no buffer; among the first 1024 nothing is written then.

    What it writes is one stretch of bytes, not one message: it may take several system calls
    where there are over 1024 buffers. Small buffers are copied, at most 1 MiB at a time.
    """
    target = fd if type(fd) is int else fileno(fd)
    if type(buffers) is not list and type(buffers) is not tuple:
        buffers = [*buffers]
    count = len(buffers)
    # Two are a head and a body: nothing beats os.writev, if little is around it.
    if count == 2 and offset is None:
        first, second = buffers
        if type(first) is type(second) is bytes and (size := len(first) + len(second)):
            try:
                written = _writev(target, buffers)
            except BlockingIOError:
                written = 0
            except OSError as error:
                _count_written(error, 0)
                raise
            return size if written == size else _finish(fd, buffers, written, None)
    if offset is not None and offset < 0:
        _refuse(errno.EINVAL)  # Linux takes -1 for the position (man 2 pwritev2).
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


def _refuse(code: int) -> NoReturn:
    try:
        raise_oserror(code)
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
    """Up to 1024 buffers with one system call.

    The core writes small ones: asking each for its size here costs as much as half of the writing.
    """
    count = len(buffers)
    if count > 2 and offset is None and type(buffers[0]) is type(buffers[1]) is bytes:
        larger = max(len(buffers[0]), len(buffers[1]))
        if larger < _WIDE - 1:
            width = _NARROW if larger < _NARROW - 1 else _WIDE
            try:
                rows = _packers[f"{width}p", count](*buffers)
                result = _write_rows(target, rows, width, count)
            except (struct.error, MemoryError):
                result = _DOES_NOT_FIT
            if 0 <= result <= _WRITTEN:
                return result
            if result >= 0 or result in (-errno.EAGAIN, -errno.EINTR):
                return _finish(fd, buffers, max(result, 0) & _WRITTEN, None, deadline)
            if result != _DOES_NOT_FIT:
                _refuse(-result)
    data, size = _measure(buffers)
    try:
        if size == 0:
            os.fstat(target)  # For EBADF. Writing nothing to a socket sends an empty packet.
            return 0
        if offset is None:
            written = _writev(target, buffers) if data is None else _write(target, data)
        elif data is None:
            written = _pwritev(target, buffers, offset)
        else:
            written = os.pwrite(target, data, offset)
    except BlockingIOError:
        written = 0
    except OSError as error:
        _count_written(error, 0)
        raise
    if written == size:
        return written
    return _finish(fd, buffers, written, offset, deadline)


def _measure(buffers: Sequence[Buffer]) -> tuple[bytes | None, int]:
    """The buffers joined, where that is cheaper and may be done, and their size."""
    count = len(buffers)
    try:
        _packers["0s", count](*buffers)
    except struct.error:
        return None, sum(map(_size, buffers))
    size = sum(map(len, buffers))
    if count > 2 and size <= _JOIN_BELOW * count:
        with contextlib.suppress(MemoryError):
            return _join(buffers), size
    return None, size


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
    done = lib.fdp_broadcast(as_ints(targets), len(targets), view, 1, results)
    if done < len(targets):
        # The core stops where a signal may have cut a write short: its handler runs here.
        numbers = ffi.new("int[]", targets)
        while done < len(targets):
            rest = len(targets) - done
            done += lib.fdp_broadcast(numbers + done, rest, view, 1, results + done)
    listed: list[Any] = ffi.unpack(results, len(targets))
    if min(listed, default=0) < 0:
        listed = [result if result >= 0 else _as_error(-result) for result in listed]
    return listed


def _as_error(code: int) -> OSError:
    if code == errno.EINTR:
        code = errno.EAGAIN  # A device that waited until a signal came is full.
    try:
        raise_oserror(code)
    except OSError as error:
        return error.with_traceback(None)
