"""The sending half of a Channel."""

import contextlib
import socket
import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.batches import Progress, flatten_fds
from fdpass_c.descriptors import as_fd_list, as_ints
from fdpass_c.errors import MAX_FDS, ProtocolError
from fdpass_c.frames import (
    SINGLE_LIMIT,
    WITHDRAWN,
    Column,
    Frame,
    make_frames,
    start_column,
    start_single,
)
from fdpass_c.messages import Buffer
from fdpass_c.turns import Turn
from fdpass_c.waiting import WRITABLE, Deadline, HasFileno, persist

_send_tagged = lib.fdp_send_tagged
_send_same = lib.fdp_send_column
_send_frame = lib.fdp_send_frame
_join = b"".join

# Up to this payload Linux takes a frame whole or not at all, even into the smallest SO_SNDBUF, so
# that nothing needs to be remembered of it.
_ATOMIC = 2000 if sys.platform == "linux" else -1

# Frames for one call of the C core, which sends them with one system call.
_GROUP = 64


def _convert(fds: list[Any]) -> list[int]:
    """Ints for what the C core would not take: called where it raised TypeError."""
    converted = as_fd_list(fds)
    if converted == fds:
        raise  # A signal handler's, after the call.
    return converted


class _Once:
    """One deadline for all that a call sends; most never need it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._deadline: Deadline | None = None

    def handle(self, code: int) -> None:
        """As Deadline.handle, from the first time on."""
        if self._deadline is None:
            self._deadline = Deadline(self._sock, WRITABLE)
        self._deadline.handle(code)


class Sending:
    """What a Channel sends with. Between two calls the receiver stands at the end of a message, or
    comes there with the bytes in _unsent."""

    _sock: socket.socket
    _fd: int
    _poison: str

    def _start_sending(self) -> None:
        self._sending = Turn()
        sent = ffi.new("size_t *")
        self._sent = sent, memoryview(ffi.buffer(sent)).cast("L")
        self._unsent = b""

    def send(self, payload: Buffer, fds: Iterable[int | HasFileno] = ()) -> None:
        """Sends one message: payload, bytes-like, may be empty; any number of descriptors.

        All or nothing: after any exception but that of a signal handler the receiver does not
        get the message, and no descriptor of it stays there. BlockingIOError and TimeoutError: the
        socket's buffer is full; in non-blocking mode a message must fit into it. OSError: EBADF
        for a descriptor that is not open, ETOOMANYREFS where the user has RLIMIT_NOFILE in flight,
        PermissionError where the peer refuses descriptors, BrokenPipeError where it has closed.
        ProtocolError where a receive found the peer to have broken the protocol. TypeError for a
        wrong element. A frame that is begun when time runs out counts as sent: its rest is kept,
        see unsent.
        """
        listed: list[Any] = [*fds]
        data = payload if type(payload) is bytes else _join((payload,))
        count = len(listed)
        size = len(data)
        if count == 1 and size <= _ATOMIC and type(listed[0]) is int:
            with self._sending:
                if not self._unsent and _send_tagged(self._fd, data, size, listed[0]) > 0:
                    return
        if size <= SINGLE_LIMIT and count <= MAX_FDS:
            self._send_frame(start_single(size, count) + data, listed)
        else:
            self._send_column(Column([data], [size], array("i", as_fd_list(listed)), [count]))

    def _send_frame(self, frame: bytes, fds: list[Any]) -> None:
        size = len(frame)
        count = len(fds)
        ints = as_ints(fds)
        memory, head = self._sent
        with self._sending:
            self._catch_up()
            head[0] = 0
            try:
                try:
                    sent = _send_frame(self._fd, frame, size, ints, count, 0, memory)
                except TypeError:
                    ints = _convert(fds)
                    sent = _send_frame(self._fd, frame, size, ints, count, 0, memory)
                if sent < 0:
                    persist(
                        self._sock, WRITABLE, sent,
                        _send_frame, self._fd, frame, size, ints, count, 0, memory,
                    )  # fmt: skip
            finally:
                # What is begun is sent, whatever a signal handler raises.
                if 0 < head[0] < size:
                    self._unsent = frame[head[0] :]
            if self._unsent:
                with contextlib.suppress(BlockingIOError, TimeoutError):
                    self._flush()

    def send_many(
        self,
        payloads: Sequence[Buffer],
        fds: Sequence[int | HasFileno] | Sequence[Iterable[int | HasFileno]] = (),
    ) -> int:
        """Sends many messages, packed into as few as the kernel allows; returns how many.

        payloads: one bytes-like object a message. fds: one descriptor a message, or one iterable
        of any number a message, or nothing at all. All are checked before anything is sent:
        TypeError for a wrong element, ValueError for unequal lengths.

        Errors as for send; the error's attribute progress says in progress.messages how many
        messages the receiver gets, whole; none of the others, and progress.bytes is 0.
        """
        data = [*payloads]
        listed = [*fds]
        if 0 < len(data) == len(listed) <= MAX_FDS and type(listed[0]) is int:
            try:
                lengths = [*map(len, data)]
            except TypeError:
                lengths = []  # A buffer without a length.
            if lengths and self._send_usual(_join(data), lengths, listed):
                return len(data)
        if not {*map(type, data)} <= {bytes}:
            data = [_join((payload,)) for payload in data]
        lengths = [*map(len, data)]
        if fds:
            flat, counts = flatten_fds(fds)
        else:
            flat, counts = array("i"), array("I", [0]) * len(data)
        described = len(flat) if counts is None else len(counts)
        if described != len(data):
            raise ValueError(f"{len(data)} payloads, but descriptors for {described}")
        if data:
            self._send_column(
                Column(data, lengths, flat, None if counts is None else counts.tolist())
            )
        return len(data)

    def _send_usual(self, body: bytes, lengths: list[int], fds: list[Any]) -> bool:
        """Sends a column of one descriptor each as one frame; False where it is too large."""
        count = len(lengths)
        length = lengths[0]
        size = len(body)
        if size <= _ATOMIC and length * count == size and lengths.count(length) == count:
            ints = as_ints(fds)
            try:
                with self._sending:
                    if not self._unsent and _send_same(self._fd, body, length, ints, count) > 0:
                        return True
            except TypeError:
                _convert(fds)
        head = start_column(lengths, size)
        if head is None:
            return False
        try:
            self._send_frame(head + body, fds)
        except OSError as error:
            error.progress = Progress(0, 0)  # type: ignore[attr-defined]
            raise
        return True

    def _send_column(self, column: Column) -> None:
        frames = make_frames(column)
        groups = iter(lambda: [*islice(frames, _GROUP)], [])
        total = len(column.payloads)
        deadline = _Once(self._sock)
        # What is being sent, and where the receiver stands before it. These change together, by
        # assignments, between which no signal handler runs.
        group: list[Frame] = []
        sizes: list[int] = []
        data = b""
        progress = ffi.new("struct fdp_progress *")
        done, inside = 0, False
        with self._sending:
            try:
                self._catch_up(deadline)
            except OSError as error:
                error.progress = Progress(0, 0)  # type: ignore[attr-defined]
                raise
            try:
                for following in groups:
                    lengths = [sum(map(len, frame.buffers)) for frame in following]
                    joined = _join([buffer for frame in following for buffer in frame.buffers])
                    counts = array("I", [frame.fd_count for frame in following])
                    fresh = ffi.new("struct fdp_progress *")
                    fresh.fd_offset = following[0].first_fd
                    if group:
                        done, inside = group[-1].messages_done, group[-1].inside
                    group, sizes, data, progress = following, lengths, joined, fresh
                    self._send_batch(data, sizes, column.fds, counts, progress, deadline)
            except BaseException as error:
                begun = progress.messages + (progress.bytes > 0)
                if begun:
                    done, inside = group[begun - 1].messages_done, group[begun - 1].inside
                rest = b""
                if progress.bytes:
                    start = progress.payload_offset
                    rest = data[start + progress.bytes : start + sizes[progress.messages]]
                # It brings the receiver to the end of a message.
                self._unsent = rest + WITHDRAWN if inside else rest
                if not isinstance(error, OSError):
                    raise
                if self._unsent:
                    self._flush(socket.MSG_DONTWAIT)
                if done == total and isinstance(error, (BlockingIOError, TimeoutError)):
                    return  # The rest of the last frame is in self._unsent.
                error.progress = Progress(done, 0)  # type: ignore[attr-defined]
                raise

    def _send_batch(
        self,
        data: bytes,
        sizes: list[int],
        fds: "array[int]",
        counts: "array[int]",
        progress: Any,
        deadline: "_Once",
        flags: int = 0,
    ) -> None:
        """progress is right at any moment, also after an exception of a signal handler."""
        arguments = (
            self._fd,
            data,
            ffi.from_buffer("size_t[]", array("L", sizes)),
            ffi.from_buffer("int[]", fds),
            ffi.from_buffer("unsigned int[]", counts),
            len(sizes),
            flags,
            progress,
        )
        while progress.messages < len(sizes):
            sent = lib.fdp_send_batch(*arguments)
            if sent < 0:
                if flags:
                    return
                deadline.handle(-sent)

    def _catch_up(self, deadline: "_Once | None" = None) -> None:
        """What comes before a frame."""
        if self._poison:
            raise ProtocolError(self._poison)
        if self._unsent:
            self._flush(deadline=deadline)

    def _flush(self, flags: int = 0, deadline: "_Once | None" = None) -> None:
        """With MSG_DONTWAIT as flags, what can be sent now and no complaint about the rest."""
        progress = ffi.new("struct fdp_progress *")
        rest = self._unsent
        try:
            deadline = deadline or _Once(self._sock)
            nothing = array("i"), array("I", [0])
            self._send_batch(rest, [len(rest)], *nothing, progress, deadline, flags)
        finally:
            self._unsent = b"" if progress.messages else rest[progress.bytes :]

    @property
    def unsent(self) -> int:
        """How many bytes of a frame that is begun wait for the next send, or for flush()."""
        return len(self._unsent)

    def flush(self) -> None:
        """Sends what unsent counts. BlockingIOError or TimeoutError where the buffer is full."""
        with self._sending:
            self._catch_up()
