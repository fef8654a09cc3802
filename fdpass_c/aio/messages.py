"""Plain messages under an event loop: the functions of fdpass_c over a non-blocking socket."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fdpass_c
from fdpass_c.aio.loops import Direction, Result, running, take
from fdpass_c.batches import Batch, Progress
from fdpass_c.buffers import Buffer
from fdpass_c.descriptors import Descriptors
from fdpass_c.waiting import HasFileno, raw_fileno

_NOTHING_SENT = Progress()


class _Shared:
    """A direction of a socket, and how many calls are inside of it."""

    def __init__(self, direction: Direction[Any]) -> None:
        self.direction = direction
        self.users = 0


# A loop watches one direction of a descriptor for one only. By loop, descriptor and direction.
_shared: dict[tuple[Any, int, bool], _Shared] = {}


class _Number:
    """A descriptor that stays the same, whatever happens to the socket it was read from."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


@contextmanager
def _share(sock: int | HasFileno, writes: bool) -> Iterator[Direction[Any]]:
    """One direction of a socket, for all tasks that use it."""
    fd = raw_fileno(sock)
    timeout = getattr(sock, "gettimeout", lambda: None if os.get_blocking(fd) else 0)()
    if timeout != 0:
        raise ValueError("an event loop needs a socket in non-blocking mode: setblocking(False)")
    key, loop = running()
    place = key, fd, writes
    shared = _shared.get(place)
    if shared is None:
        shared = _shared[place] = _Shared(loop.watch(_Number(fd), writes))
    shared.users += 1
    try:
        yield shared.direction
    finally:
        shared.users -= 1
        if not shared.users:
            del _shared[place]
            shared.direction.stop()


async def _take(sock: int | HasFileno, writes: bool, attempt: Callable[[], Result]) -> Result:
    with _share(sock, writes) as direction:
        return await take(direction, attempt)


async def send_fds(
    sock: int | HasFileno,
    buffers: Iterable[Buffer],
    fds: Iterable[int | HasFileno],
    flags: int = 0,
    address: str | bytes | None = None,
) -> int:
    """As fdpass_c.send_fds: buffers as one message with descriptors; returns the bytes sent.

    sock: in non-blocking mode, ValueError otherwise; it must stay open, and buffers and fds as they
    are, until the await has returned. Tasks that use one direction of a socket take turns.
    Cancelled, or after an error: nothing was sent.
    """
    parts, listed = [*buffers], [*fds]

    def attempt() -> int:
        return fdpass_c.send_fds(sock, parts, listed, flags, address)

    return await _take(sock, True, attempt)


async def recv_fds(
    sock: int | HasFileno, bufsize: int, maxfds: int, flags: int = 0
) -> tuple[bytes, list[int], int, Any]:
    """As fdpass_c.recv_fds: (data, fds, msg_flags, address); the caller closes fds.

    sock: as for send_fds. Cancelled, it has received nothing.
    """

    def attempt() -> tuple[bytes, list[int], int, Any]:
        return fdpass_c.recv_fds(sock, bufsize, maxfds, flags)

    return await _take(sock, False, attempt)


async def send_fd(sock: int | HasFileno, fd: int | HasFileno, data: Buffer = b"\0") -> None:
    """As fdpass_c.send_fd: exactly one descriptor with data, whole.

    sock: as for send_fds. Cancelled, or after an error: what has left of data is in the exception's
    attribute characters_written; the descriptor went with the first byte.
    """
    view = memoryview(data).cast("B")
    sent = 0

    def attempt() -> None:
        nonlocal sent
        if sent == 0:
            sent = fdpass_c.send_fds(sock, [view], [fd])
        while sent < len(view):
            sent += fdpass_c.send_fds(sock, [view[sent:]], ())

    try:
        await _take(sock, True, attempt)
    except BaseException as error:
        if sent:
            error.characters_written = sent  # type: ignore[attr-defined]
        raise


async def recv_fd(sock: int | HasFileno, bufsize: int = 4096) -> tuple[bytes, Descriptors]:
    """As fdpass_c.recv_fd: one message that must carry exactly one descriptor.

    sock: as for send_fds. Cancelled, it has received nothing.
    """
    return await _take(sock, False, lambda: fdpass_c.recv_fd(sock, bufsize))


async def send_many(
    sock: int | HasFileno,
    payloads: Sequence[Buffer],
    fds: Sequence[int | HasFileno] | Sequence[Iterable[int | HasFileno]],
    flags: int = 0,
    *,
    start: Progress = _NOTHING_SENT,
) -> int:
    """As fdpass_c.send_many: many messages; returns how many.

    sock: as for send_fds. Cancelled, or after an OSError: the exception's attribute progress says
    how far it has come, and to go on from there is start=error.progress.
    """
    at = start

    def attempt() -> int:
        nonlocal at
        try:
            return fdpass_c.send_many(sock, payloads, fds, flags, start=at)
        except OSError as error:
            at = error.progress  # type: ignore[attr-defined]
            raise

    try:
        return await _take(sock, True, attempt)
    except BaseException as error:
        error.progress = at  # type: ignore[attr-defined]
        raise


async def recv_many(
    sock: int | HasFileno,
    max_messages: int = 64,
    bufsize: int = 4096,
    maxfds: int = 1,
    flags: int = 0,
) -> Batch:
    """As fdpass_c.recv_many: the messages that are there, at least one, empty at end of file.

    sock: as for send_fds. Cancelled, it has received nothing.
    """
    return await _take(
        sock, False, lambda: fdpass_c.recv_many(sock, max_messages, bufsize, maxfds, flags)
    )
