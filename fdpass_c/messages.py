"""One message of the plain wire: send_fds and recv_fds as in socket, and the strict single pair."""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.batches import recv_one
from fdpass_c.buffers import Buffer, describe, join
from fdpass_c.descriptors import Descriptors, as_fd_list, as_ints
from fdpass_c.errors import (
    MAX_FDS,
    PeerClosedError,
    ProtocolError,
    TruncatedError,
    raise_oserror,
)
from fdpass_c.peer import is_unix
from fdpass_c.waiting import READABLE, WRITABLE, HasFileno, fileno, persist, raw_fileno

# Looked up once: an attribute of lib costs as much as a cheap argument.
_try_send_fd = lib.fdp_try_send_fd
_send_bytes = lib.fdp_send_bytes
_try_recv = lib.fdp_try_recv

_SIZE_SHIFT = lib.FDP_SIZE_SHIFT
_HAS_MORE = lib.FDP_HAS_MORE
_INLINE_SIZE = lib.FDP_INLINE_SIZE
_ATOMIC_SIZE = lib.FDP_ATOMIC_SIZE


def send_fds(
    sock: int | HasFileno,
    buffers: Iterable[Buffer],
    fds: Iterable[int | HasFileno],
    flags: int = 0,
    address: str | bytes | None = None,
) -> int:
    """Sends buffers as one message with descriptors, like socket.send_fds; returns bytes sent.

    sock: a Unix domain socket of any type; its timeout is honoured. buffers: bytes-like objects,
    sent one after the other. fds: up to 253 ints or objects with fileno(); they are borrowed, the
    caller still owns and closes them, at once if it likes. flags: as for socket.sendmsg.
    address: where to, for an unconnected datagram socket.

    On a stream the count may be less than the length of buffers; then the descriptors went with
    the first byte, and the rest must be sent without them. An int as sock is taken as blocking.

    Unlike the standard library's, flags and address count.

    ValueError: descriptors but no byte on a stream, where the kernel drops them in silence.
    OSError: EINVAL for more than 253 descriptors; EBADF for one that is not open; ETOOMANYREFS
    where the user has RLIMIT_NOFILE of them in flight; EAFNOSUPPORT for another family of socket;
    EPERM where the receiver refuses descriptors (SO_PASSRIGHTS, Linux 6.16); EFAULT where a buffer
    is a mapping of a file that has shrunk; BrokenPipeError, BlockingIOError and TimeoutError as for
    socket.sendmsg. TypeError for a wrong element. After any of these nothing was sent.
    """
    fd = raw_fileno(sock)
    parts = [*buffers]
    listed: list[Any] = [*fds]
    if listed and not is_unix(fd, sock):
        raise_oserror(errno.EAFNOSUPPORT)
    if address is None and len(listed) == 1 and type(listed[0]) is int:
        data = parts[0] if len(parts) == 1 else None
        if type(data) is bytes and len(data) <= _ATOMIC_SIZE:
            sent = _try_send_fd(fd, data, len(data), listed[0], flags)
            if sent >= 0:
                return sent
    if len(listed) > MAX_FDS:
        raise_oserror(
            errno.EINVAL, f"{len(listed)} descriptors, one message takes at most {MAX_FDS}"
        )
    try:
        ints = as_ints(listed)
    except TypeError:
        ints = as_ints(as_fd_list(listed))
    if address is not None:
        return _send_to(sock, parts, ints, flags, address)
    return _send(sock, parts, ints, len(listed), flags)


def _send(sock: int | HasFileno, parts: list[Buffer], fds: Any, count: int, flags: int) -> int:
    call: Callable[..., int]
    arguments: tuple[Any, ...]
    joined = join(parts)
    if joined is None:
        vector, sizes = describe(parts)
        message = ffi.new("struct fdp_message *")
        message.buffers, message.buffer_count = vector, len(sizes)
        message.fds, message.fd_count = fds, count
        call, arguments = lib.fdp_send_message, (message, flags)
    else:
        call, arguments = _send_bytes, (joined[0], len(joined[0]), fds, count, flags)
    sent: int = call(fileno(sock), *arguments)
    if sent == -errno.ENODATA:
        raise ValueError("on a stream, descriptors need at least one byte to travel with")
    if sent < 0:
        sent = persist(sock, WRITABLE, sent, flags, call, *arguments)
    return sent


def _send_to(sock: Any, parts: list[Buffer], fds: Any, flags: int, address: str | bytes) -> int:
    """The standard library's own sendmsg knows how to write an address; nothing beats it here."""
    control = ffi.buffer(fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, control)] if len(control) else []
    sent: int = sock.sendmsg(parts, ancillary, flags, address)
    return sent


_FDS_AT = ffi.offsetof("struct fdp_received", "fds") // ffi.sizeof("int")
_COUNT_AT = ffi.offsetof("struct fdp_received", "arrival", "fd_count") // ffi.sizeof("int")

# Memory for one message on its way in, reused because making it costs as much as a receive: a
# struct fdp_received, its data, and all of it as ints. A list used as a stack: pop and append are
# atomic, so that threads and signal handlers which receive while a receive is under way each get
# memory of their own.
_idle: list[tuple[Any, Any, Any]] = []

_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


def _make_memory() -> tuple[Any, Any, Any]:
    # It closes what is in it when it is dropped, so that an exception leaks nothing.
    received = ffi.gc(ffi.new("struct fdp_received *"), lib.fdp_drop_received)
    ints = memoryview(ffi.buffer(received)).cast("i")
    return received, ffi.buffer(received.data), ints


def recv_fds(
    sock: int | HasFileno, bufsize: int, maxfds: int, flags: int = 0
) -> tuple[bytes, list[int], int, Any]:
    """Receives one message with descriptors, like socket.recv_fds.

    bufsize: bytes to receive at most. maxfds: descriptors at most, more than 253 counts as 253.
    flags: as for socket.recvmsg; with MSG_PEEK the message stays and each call installs
    descriptors of its own.

    Returns (data, fds, msg_flags, address). data: bytes, empty at end of file. fds: a list of
    ints, close-on-exec; the caller owns and closes them (close_fds does it in few system calls).
    A slot is a negative errno only on a socket where SO_RIGHTS_NOTRUNC was switched on.
    msg_flags: MSG_CTRUNC in it means that descriptors were lost, because there were more than
    maxfds or because the descriptor table was full; MSG_TRUNC that a datagram was longer than
    bufsize. address: the sender's name (str, or bytes in the abstract namespace), None without.

    Unlike the standard library's, descriptors beyond maxfds are closed rather than squeezed into
    padding, and credentials, security labels and pidfds that socket options add neither take the
    room of descriptors nor leak.

    OSError, BlockingIOError and TimeoutError as for socket.recvmsg; ValueError for a negative
    size. A signal handler that raises while descriptors are between the kernel and the caller
    leaves none of them open, but for the instant of the return itself: recv_fd closes that too.
    """
    fd = raw_fileno(sock)
    try:
        memory = _idle.pop()
    except IndexError:
        memory = _make_memory()
    received, view, ints = memory
    try:
        code = _try_recv(fd, bufsize, maxfds, flags, received)
    except OverflowError:
        if bufsize >= 0 <= maxfds:
            raise
        raise ValueError(f"negative bufsize {bufsize} or maxfds {maxfds}") from None
    if code >= 0 and not code & _HAS_MORE:
        count = code & 255
        fds = [ints[_FDS_AT]] if count == 1 else ints[_FDS_AT : _FDS_AT + count].tolist()
        answer = view[: code >> _SIZE_SHIFT], fds, 0, None
        back: tuple[Any, ...] = (memory,)
        stack = _idle
        # No call, after which a signal handler could run: from here on they are the caller's.
        ints[_COUNT_AT] = 0
        try:
            stack += back
        except MemoryError:
            back = ()  # Then it is not used again.
        return answer
    if code >= 0:
        size = code >> _SIZE_SHIFT
    else:
        if bufsize > _INLINE_SIZE:
            data = _new_uncleared("char[]", bufsize)
            view = ffi.buffer(data)
        else:
            data = received.data
        try:
            size = _receive(sock, code, data, bufsize, maxfds, flags, received)
        except OSError:
            _idle.append(memory)
            raise
    arrival = received.arrival
    msg_flags = arrival.flags
    length = received.address_length
    address = _read_address(received, length) if length else None
    result = view[: min(size, bufsize)]
    count = arrival.fd_count
    fds = ints[_FDS_AT : _FDS_AT + count].tolist()
    answer = result, fds, msg_flags, address
    back = (memory,)
    stack = _idle
    ints[_COUNT_AT] = 0
    try:
        stack += back
    except MemoryError:
        back = ()
    return answer


def _receive(
    sock: int | HasFileno,
    code: int,
    data: Any,
    bufsize: int,
    maxfds: int,
    flags: int,
    received: Any,
) -> int:
    """Waits, as the socket's timeout says, after a try that brought nothing."""
    arguments = (data, bufsize, maxfds, flags, received)
    if code in (-errno.EAGAIN, -errno.EMSGSIZE):
        code = lib.fdp_recv_bytes(fileno(sock), *arguments)
    if code < 0:
        code = persist(sock, READABLE, code, flags, lib.fdp_recv_bytes, *arguments)
    return code


def _read_address(received: Any, length: int) -> Any:
    """The sender's name as the socket module shows it; other families as (family, bytes)."""
    raw = bytes(ffi.buffer(received.address, length))
    # The family is two bytes on Linux, a length and one byte on the BSDs.
    family = raw[1] if sys.platform != "linux" else int.from_bytes(raw[:2], sys.byteorder)
    if family != socket.AF_UNIX:
        return family, raw[2:]
    path = raw[2:]
    if path.startswith(b"\0"):
        return path
    return os.fsdecode(path.split(b"\0", 1)[0])


def send_fd(sock: int | HasFileno, fd: int | HasFileno, data: Buffer = b"\0") -> None:
    """Sends exactly one descriptor with data, whole.

    fd is borrowed: the caller still owns and closes it. data: bytes-like, at least one byte on a
    stream. On a stream recv_fd has no boundaries to go by: let the receiver know the length.

    Errors as for send_fds. A stream socket with a timeout or in non-blocking mode can take a part
    of a long data: then the error is raised with characters_written, the bytes that left (the
    descriptor with the first of them), as an attribute.
    """
    sent = send_fds(sock, (data,), (fd,))
    if type(data) is bytes and sent == len(data):
        return
    view = memoryview(data).cast("B")
    while sent < len(view):
        try:
            sent += send_fds(sock, (view[sent:],), ())
        except OSError as error:
            error.characters_written = sent  # type: ignore[attr-defined]
            raise


def recv_fd(sock: int | HasFileno, bufsize: int = 4096) -> tuple[bytes, Descriptors]:
    """Receives one message that must carry exactly one descriptor.

    bufsize: bytes to receive at most; on a stream the rest of the sender's data follows.
    Returns (data, fds): bytes, and the owner of the one descriptor: fds[0] or fds.fileno()
    borrows it, fds.take(), fds.as_socket() and fds.as_file() hand it over.

    PeerClosedError: the peer closed. ProtocolError: no descriptor, or more than one.
    TruncatedError: descriptors were lost, because this process's table is full or because there
    were several; or a datagram was longer than bufsize. OSError, BlockingIOError and TimeoutError
    as for socket.recvmsg. Everything received with the error has been closed.
    """
    if bufsize < 0:
        raise ValueError(f"negative bufsize {bufsize}")
    data, fds, lost_flags = recv_one(sock, bufsize, MAX_FDS)
    if len(fds) != 1 or lost_flags:
        count = len(fds)
        fds.close()
        _refuse(data, count, lost_flags)
    return data, fds


def _refuse(data: bytes, count: int, flags: int) -> NoReturn:
    if count > 1:
        raise ProtocolError("expected one descriptor, received several; all are closed")
    if flags & socket.MSG_CTRUNC:
        raise TruncatedError(
            "the message lost descriptors: this process's descriptor table is full "
            "(RLIMIT_NOFILE) or a security module refused them; all are closed"
        )
    if flags & socket.MSG_TRUNC:
        raise TruncatedError("the datagram is longer than bufsize; its descriptor is closed")
    if not data:
        raise PeerClosedError("the peer closed the connection")
    raise ProtocolError(f"expected one descriptor, received none with {len(data)} bytes")
