"""Gather writes: many buffers to one descriptor, the same buffers to many."""

import errno
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.buffers import NOT_BYTES_LIKE, PLAIN, Buffer, is_plain, view_bytes, view_each
from fdpass_c.descriptors import as_fd_list, as_ints, as_list
from fdpass_c.shapes import UNFIT, Shapes, pack_ints
from fdpass_c.waiting import WRITABLE, Deadline, HasFileno, fileno, is_from, raw_fileno

# The most buffers per system call (IOV_MAX on Linux, man 2 writev).
_MAX_BUFFERS = 1024

# Up to this mean size, joining buffers takes less time than describing each to the kernel.
_JOIN_BELOW = 768

# Up to this size, two buffers are written faster as one.
_SMALL = 512

# A row of fdp_write_rows holds a buffer's length, its bytes, and room for one more, so that a
# longer buffer is detected. A row is cleared before it is filled, so narrow ones take less time.
_NARROW = 66
_WIDE = 256
_WRITTEN = 2**32 - 1

_MOST_COPIED = 2**20

_WHOLE_SHIFT = lib.FDP_WHOLE_SHIFT
_PART = 2**_WHOLE_SHIFT - 1
_REFUSED = lib.FDP_REFUSED
_MOST_TARGETS = lib.FDP_MOST_TARGETS

_join = b"".join
_length: Callable[[Any], int] = len
_write = os.write
_write_rows = lib.fdp_write_rows
_broadcast_bytes = lib.fdp_broadcast_bytes
# If the system or PyPy has no such call, the buffers are joined.
_writev = getattr(os, "writev", lambda fd, buffers: os.write(fd, _join(buffers)))
_pwritev = getattr(os, "pwritev", lambda fd, buffers, at: os.pwrite(fd, _join(buffers), at))


def _pack_each(item: str) -> Shapes:
    """For each count, a function that packs so many buffers. It raises UNFIT if one is not bytes or
    bytearray."""
    return Shapes(lambda count: struct.Struct(item * count).pack)


_pack_narrow = _pack_each(f"{_NARROW}p")
_pack_wide = _pack_each(f"{_WIDE}p")
_check_types = _pack_each("0s")


def writev(fd: int | HasFileno, buffers: Iterable[Buffer], offset: int | None = None) -> int:
    """Writes all of buffers, one after the other.

    It goes on after short writes and signals until everything is written. If there is nothing to
    write, it writes nothing. More than 1024 buffers take several system calls, so the bytes are not
    one message. Small buffers are copied, at most 768 KiB at a time.

    Args:
        fd: A descriptor, a socket, an unbuffered file, or another object whose bytes may be written
            through its fileno(). The caller still owns it.
        buffers: Any number of bytes-like objects of any size.
        offset: Where in the file to write, without moving its position (man 2 pwritev). None writes
            at the position.

    Returns:
        The number of bytes written, which is all of them.

    Raises:
        BlockingIOError: fd is in non-blocking mode and full.
        TimeoutError: The socket's timeout is over; it applies to the whole call.
        OSError: As for os.writev. EFAULT: a buffer is a mapping of a file that was truncated. The
            attribute characters_written, here and of the two above, is the number of bytes that
            were written before.
        TypeError: An element of buffers is not bytes-like; if it is among the first 1024, nothing
            was written. Or fd must be written to through its own methods: a TLS socket, a buffered,
            text or compressed file, a multiprocessing Connection, a Channel. For a file: flush it
            and pass its fileno().
    """
    # A fast path for the usual cases. _write_all handles every other.
    if offset is None and type(fd) is int:
        listed: Sequence[Buffer] = buffers  # type: ignore[assignment]
        try:
            count = len(listed)
            first = listed[0]
        except (TypeError, LookupError):
            return _write_all(fd, buffers, None)
        if type(first) is bytes and first:
            if count == 2:
                second = listed[1]
                if type(second) is bytes:
                    size = len(first) + len(second)
                    try:
                        if size <= _SMALL:
                            written = _write(fd, first + second)
                        else:
                            written = _writev(fd, listed)
                    except OSError as error:
                        if not _is_full(error):
                            raise
                        written = 0
                    return size if written == size else _finish(fd, listed, written, None)
            elif count <= _MAX_BUFFERS:
                try:
                    return _write_part(fd, fd, listed, None)
                except NOT_BYTES_LIKE:
                    view_each(listed, "buffers[{}]")  # Its error names the buffer.
                    raise
    return _write_all(fd, buffers, offset)


def _write_all(fd: int | HasFileno, buffers: Iterable[Buffer], offset: int | None) -> int:
    if type(buffers) is not list and type(buffers) is not tuple:
        buffers = [*buffers]
    target = raw_fileno(fd)
    if offset is not None and offset < 0:
        _refuse(errno.EINVAL)  # Linux takes -1 for the current position (man 2 pwritev2).
    try:
        if len(buffers) <= _MAX_BUFFERS:
            return _write_part(fd, target, buffers, offset)
        deadline = Deadline(fd, WRITABLE)
        done = 0
        for start in range(0, len(buffers), _MAX_BUFFERS):
            deadline.written = done
            part = buffers[start : start + _MAX_BUFFERS]
            at = None if offset is None else offset + done
            # The descriptor is asked for every time: a signal handler may have closed the object.
            done += _write_part(fd, fileno(fd), part, at, deadline)
        return done
    except NOT_BYTES_LIKE:
        view_each(buffers, "buffers[{}]")  # Its error names the buffer.
        raise


def _refuse(code: int, deadline: Deadline | None = None) -> NoReturn:
    # raise_oserror would add explanations that are about passing descriptors.
    error = OSError(code, os.strerror(code))
    _count_written(error, deadline)
    raise error


def _count_written(error: OSError, deadline: Deadline | None) -> None:
    error.characters_written = deadline.written if deadline else 0  # type: ignore[attr-defined]


def _is_full(error: OSError, deadline: Deadline | None = None) -> bool:
    """Whether a write failed because the descriptor is full.

    If error is another one of the write itself, and not of a signal handler, its characters_written
    is set.
    """
    # On some systems these two are written in Python, see above.
    if not (is_from(error, _writev) or is_from(error, _pwritev)):
        return False
    if not isinstance(error, BlockingIOError):
        _count_written(error, deadline)
        return False
    return True


def _write_part(
    fd: int | HasFileno,
    target: int,
    buffers: Sequence[Buffer],
    offset: int | None,
    deadline: Deadline | None = None,
) -> int:
    """Writes up to 1024 buffers with one system call, joined if that is faster at their size.

    deadline: of the same call of writev, if it has begun. It knows how many bytes were written.
    """
    count = len(buffers)
    if count > 2 and offset is None and type(buffers[0]) is bytes:
        # If the first buffer is small, this assumes that all are, and has the core join and write
        # them. To ask each for its size here would take half as long as the write itself.
        size = len(buffers[0])
        if size < _WIDE - 1:
            narrow = size < _NARROW - 1
            try:
                rows = (_pack_narrow if narrow else _pack_wide)[count](*buffers)
            except (*UNFIT, MemoryError):
                written = -errno.E2BIG
            else:
                written = _write_rows(target, rows, _NARROW if narrow else _WIDE, count)
            if 0 <= written <= _WRITTEN:
                return written
            if written > 0 or written in (-errno.EAGAIN, -errno.EINTR):
                return _finish(fd, buffers, max(written, 0) & _WRITTEN, None, deadline)
            if written != -errno.E2BIG:
                _refuse(-written, deadline)
    data = None
    try:
        _check_types[count](*buffers)
        size = sum(map(_length, buffers))
        if count > 2 and size <= _JOIN_BELOW * count:
            data = _join(buffers)
    except (*UNFIT, MemoryError):
        size = sum(map(_size, buffers))
    try:
        if size == 0:
            # For EBADF. Writing nothing to a socket would send an empty packet.
            os.fstat(target)
            return 0
        if offset is None:
            written = _writev(target, buffers) if data is None else _write(target, data)
        else:
            written = _pwritev(target, buffers if data is None else [data], offset)
    except OSError as error:
        if not _is_full(error, deadline):
            raise
        written = 0
    if written == size:
        return written
    return _finish(fd, buffers, written, offset, deadline)


def _size(buffer: Buffer) -> int:
    return len(buffer) if type(buffer) is bytes else view_bytes(buffer).nbytes


def _skip(buffers: Sequence[Buffer], written: int) -> list[memoryview]:
    rest = []
    for buffer in buffers:
        view = view_bytes(buffer)
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
    """Writes the rest, after a write that wrote only written bytes. Waits as the timeout says."""
    deadline = deadline or Deadline(fd, WRITABLE)
    before = deadline.written or 0
    rest = _skip(buffers, written)
    while rest:
        target = fileno(fd)
        deadline.written = before + written
        try:
            if offset is None:
                now = _writev(target, rest)
            else:
                now = _pwritev(target, rest, offset + written)
        except OSError as error:
            if not _is_full(error, deadline):
                raise
            deadline.handle(errno.EAGAIN)
            continue
        written += now
        rest = _skip(rest, now)
    return written


def broadcast(fds: Iterable[int | HasFileno], buffers: Iterable[Buffer]) -> list[int | OSError]:
    """Writes the same buffers to many descriptors, and does not wait for those that are full.

    A target that fails does not affect the others, and timeouts of sockets have no effect. A device
    may block until a signal arrives. If there is nothing to write, nothing is written and each
    result is 0.

    Args:
        fds: Descriptors, sockets, unbuffered files, or other objects whose bytes may be written
            through their fileno(). The caller still owns them.
        buffers: Bytes-like objects.

    Returns:
        One result for each of fds, in their order. An int is the number of bytes that it accepted,
            which is less than all if it filled up, or if they are more than the 2 GiB that Linux
            writes at once. An OSError says why it accepted none: BlockingIOError if it was full,
            BrokenPipeError if its peer has gone, EFAULT if a buffer is a mapping of a file that was
            truncated.

    Raises:
        TypeError: An element of fds or buffers has the wrong type, or must be written to through
            its own methods, as for writev. Nothing was written.
    """
    targets = as_list(fds)
    numbers: Any
    try:
        numbers = pack_ints[len(targets)](*targets)
    except UNFIT:
        numbers = as_ints(as_fd_list(targets, raw_fileno))
    listed = [*buffers]
    if {*map(type, listed)} <= PLAIN:
        size = sum(map(_length, listed))
    elif all(map(is_plain, listed)):
        size = sum(map(_size, listed))
    else:
        size = None
    if size is not None and size <= _MOST_COPIED:
        data = _join(listed)
        size = len(data)  # Another thread can have resized a bytearray since it was measured.
        return _write_to_each(_broadcast_bytes, numbers, len(targets), data, size, size)
    held = view_each(listed, "buffers[{}]")
    try:
        sizes = [*map(_length, held)]
        vector = ffi.new("struct iovec[]", [*zip(held, sizes, strict=True)])
        return _write_to_each(
            lib.fdp_broadcast, numbers, len(targets), vector, len(held), sum(sizes)
        )
    finally:
        for memory in held:
            ffi.release(memory)  # type: ignore[attr-defined]


def _write_to_each(
    write: Callable[..., int], fds: Any, count: int, memory: Any, length: int, size: int
) -> list[int | OSError]:
    """length: the size of memory as write counts it. size: the same in bytes."""
    results: list[int | OSError] = []
    while (start := len(results)) < count:
        end = min(start + _MOST_TARGETS, count)
        code = write(fds, start, end, memory, length)
        results += [size] * (code >> _WHOLE_SHIFT)
        if len(results) < end:
            # A signal may have interrupted this write. Its handler has run by now.
            part = code & _PART
            results.append(part if part < _REFUSED else _as_error(part - _REFUSED))
    return results


def _as_error(code: int) -> OSError:
    if code == errno.EINTR:
        code = errno.EAGAIN  # The device made the write wait until a signal came, so it is full.
    return OSError(code, os.strerror(code))
