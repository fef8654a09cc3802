"""Sending messages over a Channel, apart from the waiting, which a thread or an event loop does."""

import errno
import socket
import threading
from array import array
from collections.abc import Iterable
from functools import partial
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.buffers import Buffer
from fdpass_c.descriptors import LISTS, as_fd_list
from fdpass_c.errors import MAX_FDS
from fdpass_c.jobs import check_unsent, flatten_fds, make_job
from fdpass_c.outcomes import NOTHING_SENT, Progress
from fdpass_c.shapes import LONGEST_IN_ROW, UNFIT, pack_rows
from fdpass_c.waiting import HasFileno

# Looked up once: reading an attribute of lib takes as long as passing an argument.
_try_send = lib.fdp_try_send
_try_send_rows = lib.fdp_try_send_rows

_DONE = lib.FDP_DONE
_BEGUN = lib.FDP_BEGUN
_NO_FD = lib.FDP_NO_FD


class Sending:
    """The messages that one call still has to send. Keeps their payloads alive. If it is dropped,
    the messages are abandoned."""

    __slots__ = ("_before", "_count", "_job", "_kept", "_outbox")

    def __init__(
        self, outbox: Any, job: Any, count: int, before: int = 0, kept: object = None
    ) -> None:
        """job: None if only the rest of a frame is left, which the outbox keeps. count: how many
        messages this call sends. before: how many of the same batch earlier calls have sent. kept:
        the memory of the job, which a finaliser still uses if this is in a reference cycle."""
        self._kept = kept
        self._outbox = outbox
        # If this object is dropped, the core must not keep a pointer to the job.
        self._job = job and ffi.gc(job, partial(lib.fdp_abandon, outbox))
        self._count = count
        self._before = before

    def step(self, flags: int) -> int:
        """Sends as much as the socket accepts.

        Returns FDP_DONE, FDP_LOOK, -EBUSY if another thread or task comes first, or another
        negative errno. After anything but FDP_DONE, call it again, or give_up.
        """
        if self._job is not None:
            result = lib.fdp_send(self._outbox, self._job, flags)
            if result == -errno.EBADF and self._outbox.sock >= 0:  # The channel is not closed.
                check_unsent(self._job)
        else:
            result = lib.fdp_flush(self._outbox, flags) or _DONE
        # A packet socket reports only once, as ECONNRESET, that its peer has closed without reading
        # everything. Later it reports EPIPE, and an earlier try may have got the first.
        return -errno.EPIPE if result == -errno.ECONNRESET else result

    def interrupts_own(self) -> bool:
        """Whether it would wait for a call of this thread, which a signal handler interrupts."""
        is_other = self._job not in (None, self._outbox.job)
        return bool(is_other and self._outbox.sender == threading.get_ident())

    def _has_ended(self) -> bool:
        """Tries to send the kept rest of a frame. True if the connection has ended."""
        flags = socket.MSG_DONTWAIT
        # ECONNRESET is reported only once. If the connection has ended, EPIPE follows.
        return (
            lib.fdp_flush(self._outbox, flags) in (-errno.EPIPE, -errno.ECONNRESET)
            and lib.fdp_flush(self._outbox, flags) == -errno.EPIPE
        )

    def give_up(self, error: BaseException) -> bool:
        """Abandons what is left, and sets error.progress.

        Returns True if the receiver gets all messages nevertheless, because only the rest of the
        last frame was left, which the outbox keeps.
        """
        # How many messages the receiver gets without the frame that was sent in part, and with its
        # rest. Without a job, that frame has all of them.
        without, done = 0, self._count
        if self._job is not None:
            without = self._job.at.message
            lib.fdp_abandon(self._outbox, self._job)
            done = self._job.at.message
        if self._outbox.cut or (self._outbox.unsent and self._has_ended()):
            done = without
        error.progress = Progress(self._before + done, 0)  # type: ignore[attr-defined]
        return done == self._count


def start_one(outbox: Any, payload: Buffer, fds: Iterable[int | HasFileno]) -> Sending | None:
    """Sends one message without waiting. Returns None if it was sent, or what is left."""
    if type(payload) is bytes and type(fds) in LISTS:
        count = len(fds)  # type: ignore[arg-type]
        if count == 1 and type(fds[0]) is not int:  # type: ignore[index]
            fds = as_fd_list(fds)
        fd = fds[0] if count == 1 else _NO_FD  # type: ignore[index]
        if count == 0 or (type(fd) is int and fd != _NO_FD):
            result = _try_send(outbox, payload, len(payload), fd)
            if result == _DONE:
                return None
            if result == _BEGUN:
                return Sending(outbox, None, 1)
    flat = array("i", as_fd_list(fds))
    return _start(outbox, [payload], flat, array("I", [len(flat)]), name="payload")


def start_many(
    outbox: Any,
    payloads: list[Buffer],
    fds: list[Any],
    start: Progress,
) -> Sending | None:
    """Sends many messages without waiting, beginning at start. Returns None if all were sent, and
    otherwise what is left."""
    before = 0
    if start is not NOTHING_SENT:
        before, part = start
        if not 0 <= before <= len(payloads) or part != 0:
            raise ValueError(
                f"start is {start}, outside the {len(payloads)} payloads or inside of one"
            )
        if fds and len(fds) != len(payloads):  # Now, because both may be empty behind start.
            raise ValueError(f"{len(payloads)} payloads, but descriptors for {len(fds)}")
        payloads, fds = payloads[before:], fds[before:]
    count = len(payloads)
    if 0 < len(fds) == count <= MAX_FDS and type(payloads[0]) is bytes:
        width = len(payloads[0]) + 2
        if width <= LONGEST_IN_ROW + 2:
            try:
                rows = pack_rows[count, width](*fds, *payloads)
            except UNFIT:
                pass  # Not ints, or not bytes.
            else:
                result = _try_send_rows(outbox, rows, count, width)
                if result == _DONE:
                    return None
                if result == _BEGUN:
                    return Sending(outbox, None, count, before)
    if fds:
        flat, counts = flatten_fds(fds)
    else:
        flat, counts = array("i"), array("I", [0]) * count
    return _start(outbox, payloads, flat, counts, before)


def _start(
    outbox: Any,
    payloads: list[Buffer],
    flat: "array[int]",
    counts: "array[int] | None",
    before: int = 0,
    name: str = "payloads[{}]",
) -> Sending:
    job, _, kept = make_job(payloads, flat, counts, name)
    job.sender = threading.get_ident()
    return Sending(outbox, job, len(payloads), before, kept)
