"""One plain message: send_fds and recv_fds as in the socket module, and the strict pair."""

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.batches import recv_one
from fdpass_c.buffers import Buffer, describe, join, view_bytes, view_each
from fdpass_c.descriptors import LISTS, Descriptors, as_fd_ints, as_list, check_open
from fdpass_c.errors import (
    ENODATA,
    MAX_FDS,
    PeerClosedError,
    ProtocolError,
    TruncatedError,
    check_fd_count,
)
from fdpass_c.peer import AF_UNIX, check_unix, get_family
from fdpass_c.scratch import MOST, new_uncleared
from fdpass_c.unix import read_name
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

# Looked up once: reading an attribute of lib takes as long as passing an argument.
# eventlet replaces it by a class that get_family does not take.
_Socket = socket.socket if issubclass(socket.socket, socket.SocketType) else socket.SocketType
_try_send_fd = lib.fdp_try_send_fd
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
    """Sends buffers as one message with descriptors, like socket.send_fds.

    On a stream socket fewer bytes may be sent than buffers hold. The descriptors then went with the
    first byte: send the rest without them. After an exception nothing was sent.

    Unlike the standard library's function, flags and address take effect.

    Args:
        sock: A Unix domain socket of any type. Its timeout applies. An int is taken for a blocking
            socket.
        buffers: Bytes-like objects, sent one after the other.
        fds: Up to 253 ints or objects with fileno(). The caller still owns them, and may close them
            immediately after the call.
        flags: As for socket.sendmsg.
        address: The receiver, for a datagram socket that is not connected.

    Returns:
        The number of bytes sent.

    Raises:
        ValueError: There are descriptors but no byte on a stream, where the kernel would drop the
            descriptors silently.
        OSError: EINVAL: more than 253 descriptors. EBADF: one of them is not open. ETOOMANYREFS:
            the user already has RLIMIT_NOFILE descriptors in flight. EAFNOSUPPORT: sock is not a
            Unix domain socket. EPERM: the receiver refuses descriptors (SO_PASSRIGHTS, Linux 6.16).
            EFAULT: a buffer is a mapping of a truncated file. Others as for socket.sendmsg.
        BrokenPipeError: The peer has closed.
        BlockingIOError: The socket is in non-blocking mode and has no room.
        TimeoutError: The socket's timeout is over.
        TypeError: An element of buffers or fds has the wrong type.
    """
    tried = None
    # A fast path for the usual case. The code below handles every other.
    if (
        type(sock) is _Socket
        and address is None
        and type(buffers) in LISTS
        and type(fds) in LISTS
        and len(buffers) == 1 == len(fds)  # type: ignore[arg-type]
    ):
        data, fd = buffers[0], fds[0]  # type: ignore[index]
        if type(data) is bytes and type(fd) is int and get_family(sock) == AF_UNIX:
            tried = _try_send_fd(sock.fileno(), data, len(data), fd, flags)
            if tried >= 0:
                return tried
    number = raw_fileno(sock)
    parts, listed = [*buffers], as_list(fds)
    if listed:
        check_unix(number, sock)
    check_fd_count(len(listed))
    ints = as_fd_ints(listed)
    if address is not None:
        return _send_to(sock, parts, ints, flags, address)
    return _send(sock, parts, ints, len(listed), flags, tried=tried)


def _send(
    sock: int | HasFileno,
    parts: list[Buffer],
    fds: Any,
    count: int,
    flags: int,
    tried: int | None = None,
    deadline: Deadline | None = None,
) -> int:
    """tried: the result of a first try that did not wait; None if there was none."""
    call: Callable[..., int]
    joined = join(parts)
    if joined is None:
        vector, sizes = describe(parts, "buffers[{}]")
        call, data, length = lib.fdp_send_message, vector, len(sizes)
    else:
        call, data, length = lib.fdp_send_bytes, joined[0], len(joined[0])
        if tried is None:
            tried = lib.fdp_try_send_bytes(fileno(sock), data, length, fds, count, flags)
    attempt = partial(_try_to_send, sock, call, data, length, fds, count)
    if tried is None:
        tried = attempt(flags_of_try(sock, flags))
    if tried == -ENODATA:
        raise ValueError("on a stream, descriptors need at least one byte to travel with")
    if tried == -errno.EBADF:
        check_open(fds, count)
    return persist(sock, WRITABLE, tried, flags, attempt, deadline=deadline)


def _try_to_send(
    sock: int | HasFileno,
    call: Callable[..., int],
    data: Any,
    length: int,
    fds: Any,
    count: int,
    flags: int,
) -> int:
    return call(fileno(sock), data, length, fds, count, flags)


def _send_to(sock: Any, parts: list[Buffer], fds: Any, flags: int, address: str | bytes) -> int:
    """Sends with the standard library's sendmsg, which encodes the address."""
    view_each(parts, "buffers[{}]")  # Its TypeError says which one is wrong.
    control = ffi.buffer(fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, control)] if len(control) else []
    if hasattr(sock, "sendmsg"):
        sent: int = sock.sendmsg(parts, ancillary, flags, address)
        return sent
    blocking = os.get_blocking(fileno(sock))
    with socket.socket(fileno=os.dup(fileno(sock))) as copy:
        copy.setblocking(blocking)  # PyPy makes it blocking, and sock with it.
        return copy.sendmsg(parts, ancillary, flags, address)


_FDS_AT = ffi.offsetof("struct fdp_received", "fds") // ffi.sizeof("int")
_COUNT_AT = ffi.offsetof("struct fdp_received", "arrival", "fd_count") // ffi.sizeof("int")


def _make_memory() -> tuple[Any, Any, Any]:
    """Memory to receive one message: a struct fdp_received, its data, and all of it as ints."""
    # If it is dropped, what is in it is closed. So an exception leaks nothing.
    received = ffi.gc(ffi.new("struct fdp_received *"), lib.fdp_drop_received)
    ints = memoryview(ffi.buffer(received)).cast("i")
    return received, ffi.buffer(received.data), ints


# Memory to be used again. A list, because its pop and append are atomic.
_idle: list[Any] = []
_take_idle = _idle.pop


def recv_fds(
    sock: int | HasFileno, bufsize: int, maxfds: int, flags: int = 0
) -> tuple[bytes, list[int], int, Any]:
    """Receives one message with descriptors, like socket.recv_fds.

    Unlike with the standard library's function, received descriptors are close-on-exec, and those
    beyond maxfds are closed. Credentials, security labels and pidfds that socket options ask for
    take no room from descriptors and do not leak.

    If a signal handler raises an exception while this function runs, what it received is closed.
    Only at the moment of the return itself such an exception can lose the descriptors; recv_fd does
    not have that moment.

    Args:
        sock: A Unix domain socket of any type. Its timeout applies.
        bufsize: The largest number of bytes to receive.
        maxfds: The largest number of descriptors to receive. More than 253 counts as 253.
        flags: As for socket.recvmsg. With MSG_PEEK the message stays queued, and each call installs
            descriptors of its own.

    Returns:
        A tuple (data, fds, msg_flags, address). The bytes, data, are empty at end of file. The
            caller owns and closes the ints in fds; close_fds does so with few system calls. An
            element is a negative errno only if SO_RIGHTS_NOTRUNC was switched on. In msg_flags,
            MSG_CTRUNC says that descriptors were lost, because there were more than maxfds or
            because the descriptor table is full, and MSG_TRUNC that a datagram was longer than
            bufsize. The sender's name, address, is a str, or bytes in the abstract namespace, or
            None. For a network socket it is a pair of the family and bytes.

    Raises:
        ValueError: bufsize or maxfds is negative.
        BlockingIOError: The socket is in non-blocking mode and nothing is queued.
        TimeoutError: The socket's timeout is over.
        OSError: As for socket.recvmsg.
    """
    fd = sock.fileno() if type(sock) is socket.socket else raw_fileno(sock)
    try:
        memory = _take_idle()
    except IndexError:
        memory = _make_memory()
    received, view, ints = memory
    try:
        code = _try_recv(fd, bufsize, maxfds, flags, received)
    except OverflowError:
        if bufsize < 0 or maxfds < 0:
            raise ValueError(f"negative bufsize {bufsize} or maxfds {maxfds}") from None
        if maxfds <= MAX_FDS:
            raise
        return recv_fds(sock, bufsize, MAX_FDS, flags)
    size, count = code >> _SIZE_SHIFT, code & 255
    msg_flags, address = 0, None
    if code < 0:
        del _idle[MOST:]
        if bufsize > _INLINE_SIZE:
            data = new_uncleared("char[]", bufsize)
            view = ffi.buffer(data)
        else:
            data = received.data
        try:
            attempt = partial(_receive, sock, data, bufsize, maxfds, received)
            size = persist(sock, READABLE, code, flags, attempt)
        except BaseException:
            if ints[_COUNT_AT]:  # A signal handler has raised it.
                lib.fdp_drop_received(received)
            _idle.append(memory)
            raise
    if code < 0 or code & _HAS_MORE:
        arrival = received.arrival
        if arrival.fd_count > maxfds:
            lib.fdp_trim_received(received, maxfds)
        size, count, msg_flags = min(size, bufsize), arrival.fd_count, arrival.flags
        length = received.address_length
        address = _read_address(received, length) if length else None
    fds = [ints[_FDS_AT]] if count == 1 else ints[_FDS_AT : _FDS_AT + count].tolist()
    answer = view[:size], fds, msg_flags, address
    back: tuple[Any, ...] = (memory,)
    stack = _idle
    # The lines up to the return make no call, so no signal handler runs between them.
    ints[_COUNT_AT] = 0
    try:
        stack += back
    except MemoryError:
        back = ()  # This memory is then not used again.
    return answer


def _read_address(received: Any, length: int) -> Any:
    """The sender's name as the socket module shows it; other families as (family, bytes)."""
    raw = bytes(ffi.buffer(received.address, length))
    # On Linux the family takes two bytes. On the BSDs it takes one, after a byte for the length.
    family = raw[1] if sys.platform != "linux" else int.from_bytes(raw[:2], sys.byteorder)
    if family != socket.AF_UNIX:
        return family, raw[2:]
    return read_name(raw[2:])


def send_fd(sock: int | HasFileno, fd: int | HasFileno, data: Buffer = b"\0") -> None:
    """Sends exactly one descriptor, with all of data.

    Args:
        sock: A Unix domain socket of any type. Its timeout applies to all of data together.
        fd: An int or an object with fileno(). The caller still owns it, and may close it
            immediately after the call.
        data: Bytes-like, on a stream at least one byte. A stream has no boundaries between
            messages: the receiver must know the length.

    Raises:
        OSError: As for send_fds. A stream socket with a timeout or in non-blocking mode can accept
            a part of a long data. The attribute characters_written of the error then says how many
            bytes were sent; the descriptor went with the first of them.
        ValueError: data is empty on a stream.
        TypeError: fd or data has the wrong type.
    """
    size = len(data) if type(data) is bytes else None
    is_long = size is None or size > _ATOMIC_SIZE
    deadline = Deadline(sock, WRITABLE) if is_long else None
    try:
        sent = send_fds(sock, (data,), (fd,))
    except TypeError:
        view_each([data], "data")  # If the type of data is the reason, its error says so.
        raise
    if sent == size:
        return
    view = view_bytes(data)
    deadline = deadline or Deadline(sock, WRITABLE)
    while sent < view.nbytes:
        deadline.written = sent
        sent += _send(sock, [view.cast("B")[sent:]], as_fd_ints([]), 0, 0, deadline=deadline)


def _receive(
    sock: int | HasFileno, data: Any, bufsize: int, maxfds: int, received: Any, flags: int
) -> int:
    code: int = lib.fdp_recv_bytes(fileno(sock), data, bufsize, maxfds, flags, received)
    return code


def recv_fd(sock: int | HasFileno, bufsize: int = 4096) -> tuple[bytes, Descriptors]:
    """Receives one message that must carry exactly one descriptor.

    After an exception everything that was received is closed.

    Args:
        sock: A Unix domain socket of any type. Its timeout applies.
        bufsize: The largest number of bytes to receive. On a stream, the rest of a longer message
            is still queued.

    Returns:
        A tuple of the bytes and the owner of the one descriptor. owner[0] and owner.fileno() borrow
            it; take(), as_socket() and as_file() hand it over.

    Raises:
        PeerClosedError: The peer closed the connection.
        ProtocolError: The message had no descriptor, or more than one.
        TruncatedError: Descriptors were lost, because this process's descriptor table is full or
            because a security module refused them; or a datagram was longer than bufsize.
        ValueError: bufsize is negative.
        BlockingIOError: The socket is in non-blocking mode and nothing is queued.
        TimeoutError: The socket's timeout is over.
        OSError: As for socket.recvmsg.
    """
    return recv_single(sock, bufsize, 0)


def recv_single(sock: int | HasFileno, bufsize: int, flags: int) -> tuple[bytes, Descriptors]:
    """recv_fd, with flags for recvmsg."""
    if bufsize < 0:
        raise ValueError(f"negative bufsize {bufsize}")
    data, fds, lost_flags = recv_one(sock, bufsize, MAX_FDS, flags)
    if data is None or len(fds) != 1:
        count = len(fds)
        fds.close()
        _refuse(data, count, lost_flags)
    return data, fds


def _refuse(data: bytes | None, count: int, flags: int) -> NoReturn:
    if count > 1:
        raise ProtocolError("expected one descriptor, received several; all are closed")
    if flags & socket.MSG_CTRUNC:
        raise TruncatedError(
            "the message lost descriptors: this process's descriptor table is full "
            "(RLIMIT_NOFILE) or a security module refused them; all are closed"
        )
    if flags & socket.MSG_TRUNC:
        raise TruncatedError("the datagram is longer than bufsize; its descriptor is closed")
    if data is None:
        raise PeerClosedError("the peer closed the connection")
    raise ProtocolError(f"expected one descriptor, but the message of {len(data)} bytes has none")
