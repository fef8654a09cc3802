"""Plain messages under an event loop: the functions of fdpass_c over a non-blocking socket."""

import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import fdpass_c
from fdpass_c.aio.directions import Direction, Result, growing_pauses, take
from fdpass_c.aio.loops import running
from fdpass_c.batches import read_progress, send_rest, start_batch
from fdpass_c.buffers import Buffer, view_bytes
from fdpass_c.descriptors import Descriptors, as_list
from fdpass_c.messages import recv_single
from fdpass_c.outcomes import NOTHING_SENT, Batch, Progress
from fdpass_c.waiting import HasFileno, raw_fileno

# Another process that shares the socket may have made it blocking. The tries must not wait then.
_DONTWAIT = int(socket.MSG_DONTWAIT)


class _Shared:
    """A direction of a socket, and how many calls are using it."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.users = 0


# The directions in use, by loop, descriptor and direction. All tasks share them, because a loop can
# watch one direction of a descriptor only once.
_shared: dict[tuple[Any, int, bool], _Shared] = {}


class _FixedDescriptor:
    """A descriptor that stays the same, whatever happens to the socket from which it was read."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


async def _take(
    sock: int | HasFileno,
    writes: bool,
    attempt: Callable[[], Result],
    wait: Callable[[], Awaitable[None]] | None = None,
) -> Result:
    """Calls take for one direction of a socket. All tasks that use this direction share it."""
    fd = raw_fileno(sock)
    timeout = getattr(sock, "gettimeout", lambda: None if os.get_blocking(fd) else 0)()
    if timeout != 0:
        raise ValueError("an event loop needs a socket in non-blocking mode: setblocking(False)")
    key, loop = running()
    place = key, fd, writes
    shared = _shared.get(place)
    if shared is None:
        shared = _shared[place] = _Shared(loop.watch(_FixedDescriptor(fd), writes))
    shared.users += 1
    try:
        return await take(shared.direction, attempt, wait)
    finally:
        shared.users -= 1
        if not shared.users:
            del _shared[place]
            try:
                # Not stop, which announces that the descriptor will be closed: other code may still
                # wait for it.
                shared.direction.drop()
            except BaseException:
                shared.direction.drop()  # A signal handler has interrupted the first one.
                raise


async def send_fds(
    sock: int | HasFileno,
    buffers: Iterable[Buffer],
    fds: Iterable[int | HasFileno],
    flags: int = 0,
    address: str | bytes | None = None,
) -> int:
    """Sends buffers as one message with descriptors: see fdpass_c.send_fds.

    Tasks that use one direction of a socket take turns. After a cancellation or an error nothing
    was sent.

    Args:
        sock: A Unix domain socket in non-blocking mode. It must stay open until the await returns.
        buffers: As for fdpass_c.send_fds. They must not change until the await returns.
        fds: As for fdpass_c.send_fds. They must stay open until the await returns.
        flags: As for fdpass_c.send_fds.
        address: As for fdpass_c.send_fds. If the receiver's queue is full, this tries again with
            growing delays.

    Returns:
        The number of bytes sent.

    Raises:
        ValueError: sock is not in non-blocking mode; others as for fdpass_c.send_fds.
        OSError: As for fdpass_c.send_fds.
    """
    parts, listed = [*buffers], as_list(fds)

    def attempt() -> int:
        return fdpass_c.send_fds(sock, parts, listed, flags | _DONTWAIT, address)

    if address is None:
        return await _take(sock, True, attempt)
    # The loop cannot report when the receiver's queue has room: the sending socket has no peer, and
    # so it is always writable.
    _, loop = running()
    return await _take(sock, True, attempt, growing_pauses(loop.sleep))


async def recv_fds(
    sock: int | HasFileno, bufsize: int, maxfds: int, flags: int = 0
) -> tuple[bytes, list[int], int, Any]:
    """Receives one message with descriptors: see fdpass_c.recv_fds.

    A call that is cancelled has received nothing.

    Args:
        sock: As for send_fds.
        bufsize: As for fdpass_c.recv_fds.
        maxfds: As for fdpass_c.recv_fds.
        flags: As for fdpass_c.recv_fds.

    Returns:
        A tuple (data, fds, msg_flags, address). The caller owns and closes the ints in fds.

    Raises:
        ValueError: sock is not in non-blocking mode; others as for fdpass_c.recv_fds.
        OSError: As for fdpass_c.recv_fds.
    """

    received: list[int] = []

    def attempt() -> tuple[bytes, list[int], int, Any]:
        nonlocal received
        answer = fdpass_c.recv_fds(sock, bufsize, maxfds, flags | _DONTWAIT)
        received = answer[1]
        return answer

    try:
        return await _take(sock, False, attempt)
    except BaseException:
        # A signal handler may have raised this after attempt had received descriptors.
        fdpass_c.close_fds(received)
        raise


async def send_fd(sock: int | HasFileno, fd: int | HasFileno, data: Buffer = b"\0") -> None:
    """Sends exactly one descriptor, with all of data: see fdpass_c.send_fd.

    If a cancellation or an error comes after some bytes of data were sent, the exception's
    attribute characters_written says how many. The descriptor went with the first of them.

    Args:
        sock: As for send_fds.
        fd: An int or an object with fileno(). It must stay open until the await returns.
        data: As for fdpass_c.send_fd. It must not change until the await returns.

    Raises:
        ValueError: sock is not in non-blocking mode, or data is empty on a stream.
        OSError: As for fdpass_c.send_fd.
    """
    sent = 0

    def attempt() -> None:
        nonlocal sent
        if sent == 0:
            sent = fdpass_c.send_fds(sock, [data], [fd], _DONTWAIT)
        view = view_bytes(data)
        while sent < view.nbytes:
            sent += fdpass_c.send_fds(sock, [view.cast("B")[sent:]], (), _DONTWAIT)

    try:
        await _take(sock, True, attempt)
    except BaseException as error:
        if sent:
            error.characters_written = sent  # type: ignore[attr-defined]
        raise


async def recv_fd(sock: int | HasFileno, bufsize: int = 4096) -> tuple[bytes, Descriptors]:
    """Receives one message that must carry exactly one descriptor: see fdpass_c.recv_fd.

    A call that is cancelled has received nothing.

    Args:
        sock: As for send_fds.
        bufsize: As for fdpass_c.recv_fd.

    Returns:
        A tuple of the bytes and the owner of the descriptor, which the caller closes.

    Raises:
        ValueError: sock is not in non-blocking mode, or bufsize is negative.
        FdpassError: PeerClosedError, ProtocolError or TruncatedError, as for fdpass_c.recv_fd.
        OSError: As for fdpass_c.recv_fd.
    """
    return await _take(sock, False, lambda: recv_single(sock, bufsize, _DONTWAIT))


async def send_many(
    sock: int | HasFileno,
    payloads: Sequence[Buffer],
    fds: Sequence[int | HasFileno | Iterable[int | HasFileno]],
    flags: int = 0,
    *,
    start: Progress = NOTHING_SENT,
) -> int:
    """Sends many plain messages: see fdpass_c.send_many.

    After a cancellation or an OSError, the exception's attribute progress says how much was sent.
    To go on from there, call again with start=error.progress.

    Args:
        sock: As for send_fds.
        payloads: As for fdpass_c.send_many. They must not change until the await returns.
        fds: As for fdpass_c.send_many. They must stay open until the await returns.
        flags: As for fdpass_c.send_many.
        start: As for fdpass_c.send_many.

    Returns:
        The number of messages, which is len(payloads).

    Raises:
        ValueError: sock is not in non-blocking mode; others as for fdpass_c.send_many.
        OSError: As for fdpass_c.send_many.
    """
    data = [*payloads]
    job: Any = None

    def attempt() -> int:
        nonlocal job
        if job is None:
            job = start_batch(sock, data, fds, flags, start)
        if job is not None:
            send_rest(sock, job, flags | _DONTWAIT)
        return len(data)

    try:
        return await _take(sock, True, attempt)
    except BaseException as error:
        error.progress = start if job is None else read_progress(job)  # type: ignore[attr-defined]
        raise


async def recv_many(
    sock: int | HasFileno,
    max_messages: int = 64,
    bufsize: int = 4096,
    maxfds: int = 1,
    flags: int = 0,
) -> Batch:
    """Receives the plain messages that are queued, at least one: see fdpass_c.recv_many.

    A call that is cancelled has received nothing.

    Args:
        sock: As for send_fds.
        max_messages: As for fdpass_c.recv_many.
        bufsize: As for fdpass_c.recv_many.
        maxfds: As for fdpass_c.recv_many.
        flags: As for fdpass_c.recv_many.

    Returns:
        A Batch, which owns every received descriptor. It is empty at end of file.

    Raises:
        ValueError: sock is not in non-blocking mode; others as for fdpass_c.recv_many.
        TruncatedBatchError: As for fdpass_c.recv_many.
        OSError: As for fdpass_c.recv_many.
    """

    def attempt() -> Batch:
        return fdpass_c.recv_many(sock, max_messages, bufsize, maxfds, flags | _DONTWAIT)

    return await _take(sock, False, attempt)
