"""Messages that a Channel sends, for whoever waits: a thread or an event loop."""

import errno
import socket
import threading
from array import array
from collections.abc import Iterable
from functools import partial
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.buffers import Buffer
from fdpass_c.descriptors import LISTS, as_list
from fdpass_c.errors import MAX_FDS
from fdpass_c.jobs import flatten_fds, make_job
from fdpass_c.outcomes import NOTHING_SENT, Progress
from fdpass_c.shapes import LONGEST_IN_COLUMN, UNFIT, pack_column
from fdpass_c.waiting import HasFileno

# Looked up once: reading an attribute of lib takes as long as passing an argument.
_try_send = lib.fdp_try_send
_try_send_column = lib.fdp_try_send_column

_DONE = lib.FDP_DONE
_BEGUN = lib.FDP_BEGUN
_NO_FD = lib.FDP_NO_FD


class Sending:
    """What one call still has to send. Keeps its payloads alive; dropping it abandons them."""

    __slots__ = ("_before", "_count", "_job", "_kept", "_outbox")

    def __init__(
        self, outbox: Any, job: Any, count: int, before: int = 0, kept: object = None
    ) -> None:
        """job: None where all has left but the rest of a frame, which the outbox keeps. count: the
        messages of this call, before: those of the same batch that earlier calls sent. kept: the
        job's memory, which in a cycle must outlive every finaliser."""
        self._kept = kept
        self._outbox = outbox
        # The core must not keep a job whose memory is freed.
        self._job = job and ffi.gc(job, partial(lib.fdp_abandon, outbox))
        self._count = count
        self._before = before

    def step(self, flags: int) -> int:
        """Sends what the socket accepts: FDP_DONE, FDP_LOOK, -EBUSY if another is first, or a
        negative errno. After anything but FDP_DONE it may be called again, or given up.
        """
        if self._job is not None:
            result = lib.fdp_send(self._outbox, self._job, flags)
        else:
            result = lib.fdp_flush(self._outbox, flags) or _DONE
        # A packet socket tells once that its peer left something unread, perhaps to an earlier try.
        return -errno.EPIPE if result == -errno.ECONNRESET else result

    def interrupts_own(self) -> bool:
        """Whether it must wait for another that this thread sends, as in a signal handler."""
        is_other = self._job not in (None, self._outbox.job)
        return bool(is_other and self._outbox.sender == threading.get_ident())

    def _has_ended(self) -> bool:
        """Sends what can leave now of a rest. True if the connection has ended and nothing will."""
        flags = socket.MSG_DONTWAIT
        # ECONNRESET is told once.
        return (
            lib.fdp_flush(self._outbox, flags) in (-errno.EPIPE, -errno.ECONNRESET)
            and lib.fdp_flush(self._outbox, flags) == -errno.EPIPE
        )

    def give_up(self, error: BaseException) -> bool:
        """Ends it where it stands, and sets error.progress. True if the receiver gets all messages,
        because only the rest of the last frame was not sent.
        """
        # Without the begun frame, which has all of them where there is no job any more.
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
    """Sends one message without waiting. None if it was sent, or else what is left to do."""
    if type(payload) is bytes and type(fds) in LISTS:
        count = len(fds)  # type: ignore[arg-type]
        fd = fds[0] if count == 1 else _NO_FD  # type: ignore[index]
        if count == 0 or (type(fd) is int and fd != _NO_FD):
            result = _try_send(outbox, payload, len(payload), fd)
            if result == _DONE:
                return None
            if result == _BEGUN:
                return Sending(outbox, None, 1)
    flat, counts = flatten_fds([as_list(fds)])
    return _start(outbox, [payload], flat, counts, name="payload")


def start_many(
    outbox: Any,
    payloads: list[Buffer],
    fds: list[Any],
    start: Progress,
) -> Sending | None:
    """Sends many messages without waiting, beginning at start. None if they were sent."""
    before = 0
    if start is not NOTHING_SENT:
        before = _check_whole(start, len(payloads))
        if fds and len(fds) != len(payloads):  # Of what is left, none may be left.
            raise ValueError(f"{len(payloads)} payloads, but descriptors for {len(fds)}")
        payloads, fds = payloads[before:], fds[before:]
    count = len(payloads)
    if 0 < len(fds) == count <= MAX_FDS and type(payloads[0]) is bytes:
        width = len(payloads[0]) + 2
        if width <= LONGEST_IN_COLUMN + 2:
            try:
                column = pack_column[count, width](*fds, *payloads)
            except UNFIT:
                pass  # Not ints, or not bytes.
            else:
                result = _try_send_column(outbox, column, count, width)
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


def _check_whole(start: Progress, count: int) -> int:
    """The number of messages before start; ValueError for what no error.progress can be."""
    messages, part = start
    if not 0 <= messages <= count or part != 0:
        raise ValueError(f"start is {start}, outside the {count} payloads or inside of one")
    return messages
