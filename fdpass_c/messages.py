"""One message of the plain wire: send_fds and recv_fds as in socket, and the strict single pair."""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.descriptors import Descriptors, as_fd_list, as_ints, close_fds
from fdpass_c.errors import (
    MAX_FDS,
    PeerClosedError,
    ProtocolError,
    TruncatedError,
    raise_oserror,
)
from fdpass_c.peer import is_unix
from fdpass_c.waiting import READABLE, WRITABLE, HasFileno, persist, raw_fileno

Buffer = Any
"""bytes, bytearray, memoryview or anything else with a C-contiguous buffer (PEP 688 names it)."""

# socket.family builds an enum, ten times as slow as the slot below it.
_family = socket.SocketType.family.__get__
_AF_UNIX = int(socket.AF_UNIX)

# Looked up once: an attribute of lib costs as much as a cheap argument.
_send_fd = lib.fdp_send_fd
_send_bytes = lib.fdp_send_bytes
_recv_bytes = lib.fdp_recv_bytes
_join = b"".join


def _check_count(fds: list[int]) -> None:
    if len(fds) > MAX_FDS:
        raise_oserror(errno.EINVAL, f"{len(fds)} descriptors, one message takes at most {MAX_FDS}")


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
    EPERM where the receiver refuses descriptors (SO_PASSRIGHTS, Linux 6.16); BrokenPipeError,
    BlockingIOError and TimeoutError as for socket.sendmsg. TypeError for a wrong element. After
    any of these nothing was sent.
    """
    fd = sock.fileno() if type(sock) is socket.socket else raw_fileno(sock)
    data = _join(buffers)
    listed: list[Any] = [*fds]
    if listed:
        try:
            unix = _family(sock) == _AF_UNIX
        except TypeError:
            unix = is_unix(fd)
        if not unix:
            raise_oserror(errno.EAFNOSUPPORT)
    if address is not None:
        return _send_to(sock, data, as_fd_list(listed), flags, address)
    try:
        if len(listed) == 1:
            sent = _send_fd(fd, data, len(data), listed[0], flags)
        else:
            sent = _send_bytes(fd, data, len(data), as_ints(listed), len(listed), flags)
    except TypeError:
        listed = as_fd_list(listed)
        sent = _send_bytes(fd, data, len(data), listed, len(listed), flags)
    if sent >= 0:
        return sent
    _check_count(listed)
    if sent == -errno.ENODATA:
        raise ValueError("on a stream, descriptors need at least one byte to travel with")
    return persist(
        sock, WRITABLE, sent, _send_bytes, fd, data, len(data), listed, len(listed), flags
    )


def _send_to(sock: Any, data: bytes, fds: list[int], flags: int, address: str | bytes) -> int:
    """The standard library's own sendmsg knows how to write an address; nothing beats it here."""
    _check_count(fds)
    control = ffi.buffer(ffi.new("int[]", fds))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, control)] if fds else []
    sent: int = sock.sendmsg([data], ancillary, flags, address)
    return sent


_INLINE_SIZE = 4096


# fd_count, flags; past the credentials, address_length and the first descriptor.
_unpack_head = struct.Struct("=Ii16xIi").unpack_from
_FDS_AT = ffi.offsetof("struct fdp_received", "fds") // 4


def _make_memory() -> tuple[Any, Any, Any, Any]:
    """Memory for one message on its way in, reused because making it costs as much as a receive.

    data and a buffer over it, a struct fdp_received and the same as ints. The first int is the
    count of descriptors: it is 0 whenever nobody is between the system call and the handing over,
    so that an exception in between, a signal handler's say, knows what there is to close.
    """
    data = ffi.new("char[]", _INLINE_SIZE)
    received = ffi.new("struct fdp_received *")
    return data, ffi.buffer(data), received, memoryview(ffi.buffer(received)).cast("i")


# A list used as a stack: pop and append are atomic, so that threads and signal handlers which
# receive while a receive is under way each get memory of their own.
_idle: list[tuple[Any, Any, Any, Any]] = []
_reuse = _idle.pop
_release = _idle.append
# Stands in for the first int of memory that others may be receiving into by now.
_RELEASED: Any = [0]

_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)


def recv_fds(
    sock: int | HasFileno,
    bufsize: int,
    maxfds: int,
    flags: int = 0,
    *,
    _into: list[int] | None = None,
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
    # Signal handlers run after calls and nowhere else, so descriptors change hands by assignments:
    # at every call they belong either to the memory or to fds, and an exception closes them once.
    fds: list[int] = []
    try:
        memory = _reuse()
    except IndexError:
        memory = _make_memory()
    data, view, received, head = memory
    try:
        fd = sock.fileno() if type(sock) is socket.socket else raw_fileno(sock)
        if bufsize > _INLINE_SIZE:
            data = _new_uncleared("char[]", bufsize)
            view = ffi.buffer(data)
        size = _recv_bytes(fd, data, bufsize, maxfds, flags, received)
        if size < 0:
            size = persist(
                sock, READABLE, size, _recv_bytes, fd, data, bufsize, maxfds, flags, received
            )
        count, msg_flags, length, first = _unpack_head(head)
        if count:
            fds = [first] if count == 1 else head[_FDS_AT : _FDS_AT + count].tolist()
            head[0] = 0
            if _into is not None:
                _into += fds
        if msg_flags:
            size = min(size, bufsize)  # With MSG_TRUNC in flags it is the datagram's own.
        address = _read_address(received, length) if length else None
        result = view[:size], fds, msg_flags, address
        head = _RELEASED
        _release(memory)
        return result
    except BaseException as error:
        lib.fdp_close_fds(received.fds, head[0])
        head[0] = 0
        close_fds(fds)
        if _into is not None:
            _into.clear()
        if isinstance(error, OverflowError) and (bufsize < 0 or maxfds < 0):
            raise ValueError(f"negative bufsize {bufsize} or maxfds {maxfds}") from None
        raise


def _read_address(received: Any, length: int) -> Any:
    """The sender's name as the socket module shows it; other families as (family, bytes)."""
    raw = bytes(ffi.buffer(received.address, length))
    # The family is two bytes on Linux, a length and one byte on the BSDs.
    family = raw[1] if sys.platform != "linux" else int.from_bytes(raw[:2], sys.byteorder)
    if family != _AF_UNIX:
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
    fds = Descriptors(())
    try:
        data, listed, flags, _ = recv_fds(sock, bufsize, 2, _into=fds._fds)
        if len(listed) != 1 or flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            _refuse(data, len(listed), flags)
    except BaseException:
        fds.close()
        raise
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
