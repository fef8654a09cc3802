"""Channel: whole messages with any number of descriptors over a connected Unix socket."""

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, chain, islice
from types import TracebackType
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.batches import Batch, Progress, flatten_fds
from fdpass_c.descriptors import Descriptors, as_fd_list, own
from fdpass_c.errors import (
    MAX_FDS,
    DescriptorTableFullError,
    FdpassError,
    PeerClosedError,
    ProtocolError,
    raise_oserror,
)
from fdpass_c.frames import (
    SINGLE_LIMIT,
    TAGGED,
    WITHDRAWN,
    Column,
    Frame,
    make_frames,
    pack_tagged,
    start_column,
    start_single,
)
from fdpass_c.messages import Buffer
from fdpass_c.peer import Credentials, is_unix, peer_credentials, peer_pidfd
from fdpass_c.waiting import READABLE, WRITABLE, Deadline, HasFileno, persist

_send_fd = lib.fdp_send_fd
_send_frame = lib.fdp_send_frame
_read_frame = lib.fdp_read_frame
_new_owner = Descriptors.__new__
_unpack_fds = ffi.unpack
_join = b"".join
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)

# Up to this payload Linux takes a frame whole or not at all, even into the smallest SO_SNDBUF, so
# that nothing needs to be remembered of it.
_ATOMIC = 2000 if sys.platform == "linux" else -1

# Frames for one call of the C core, which sends them with one system call.
_GROUP = 64

# Linux 6.16; Python has no name for it yet.
_SO_PASSRIGHTS = 83

_BYTES_AT = ffi.offsetof("struct fdp_reader", "bytes")
_FRAME_AT = ffi.offsetof("struct fdp_reader", "frame")
_LENGTHS_AT = _FRAME_AT + ffi.offsetof("struct fdp_frame", "lengths")

# Of struct fdp_reader: byte_count, the first descriptor; of its frame: size, kind, message_count,
# fd_count, payload_offset, same_length, one_each; and the first of its lengths.
_unpack_frame = struct.Struct(
    f"=16xI8xi{_FRAME_AT - 32}xI4x4I2i{_LENGTHS_AT - _FRAME_AT - 32}xI"
).unpack_from

# What a frame of one message needs of that: the first descriptor, kind, message_count, fd_count,
# payload_offset; and the length.
_unpack_single = struct.Struct(
    f"=28xi{_FRAME_AT - 24}x4I{_LENGTHS_AT - _FRAME_AT - 24}xI"
).unpack_from

_PACKED = lib.FDP_PACKED

_VIOLATIONS = {
    lib.FDP_MALFORMED: "the peer sent something other than a frame",
    lib.FDP_TORN: "the peer closed the connection inside a message",
    lib.FDP_MISSING: "a frame came without all of the descriptors that it announced",
    lib.FDP_SURPLUS: "descriptors came that no frame announced",
    lib.FDP_UNWANTED: "descriptors came to a channel with receive_fds=False",
    lib.FDP_TRUNCATED: "descriptors were lost: the descriptor table is full (RLIMIT_NOFILE) "
    "or a security module refused them",
}


# The messages of one frame: payloads, all descriptors, how many go with each (None: one), and
# whether more is probably there.
_Packed = tuple[Sequence[bytes], list[int], list[int] | None, bool]


class _Partial:
    """A large message of which not all pieces are here yet."""

    def __init__(self, total_payload: int, total_fds: int) -> None:
        self.payload = bytearray()
        self.fds: list[int] = []
        self.total_payload = total_payload
        self.total_fds = total_fds


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


class Channel:
    """Passes whole messages, each a payload and descriptors, over a connected Unix socket.

    Messages arrive whole, in order and exactly once; payloads and descriptors of any size and
    number, up to what the receiver accepts; many small ones travel as one. The other end must
    be a Channel too, or speak docs/wire-format.md.

    Sending borrows descriptors: the caller still closes them, at once if it likes. Receiving
    gives their owner, a Descriptors or a Batch; all are close-on-exec. A context manager, and an
    iterator over (payload, fds) until the peer closes.

    Threads: one may send while another receives. Several may send, or receive: they take turns,
    and a message is never mixed with another. A signal handler must leave alone the direction
    that it interrupts: it would wait for itself.

    Fork: a child has a copy of both ends and of the messages already received but not handed out.
    What arrives later goes to whichever process reads first, so let only one go on with an end and
    the other close its copy, which does not disturb the first. Fork while no other thread is
    inside a call.

    Selectors: fileno() is readable when bytes are there; after that, receive until pending is 0,
    because messages that came in one frame are not seen by a selector again.

    A violation of the protocol, by accident or by malice, closes every descriptor received and
    not handed out, and every later receive raises the same ProtocolError.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        max_payload: int = 16 * 2**20,
        max_fds: int = 65536,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> None:
        """Takes ownership of sock, a connected Unix socket of the type stream or seqpacket.

        max_payload: bytes, and max_fds: descriptors, that a received message may have.
        allow_uids: the users whose processes may be at the other end; None for all.
        receive_fds: False makes any descriptor a violation; where the kernel has SO_PASSRIGHTS
        (Linux 6.16) the peer's send then fails with PermissionError instead.

        ValueError: another type of socket. OSError: EAFNOSUPPORT for another family, ENOTCONN
        without a peer. PermissionError: the peer's user is not in allow_uids; sock is closed.
        """
        if not is_unix(sock.fileno()):
            raise_oserror(errno.EAFNOSUPPORT)
        if sock.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            raise ValueError(f"a channel needs a stream or seqpacket socket, not {sock.type!r}")
        self._peer = peer_credentials(sock)
        if allow_uids is not None and self._peer.uid not in allow_uids:
            sock.close()
            raise PermissionError(errno.EACCES, f"the peer's user {self._peer.uid} is not allowed")
        if not receive_fds:
            refuse_fds(sock)
        self._sock = sock
        self._fd = sock.fileno()
        self._max_payload = max_payload
        self._max_fds = max_fds
        # What a message of at most one descriptor may have without a closer look.
        self._small = max_payload if max_fds > 0 else -1
        self._sending = threading.Lock()
        self._receiving = threading.Lock()
        sent = ffi.new("size_t *")
        self._sent = sent, memoryview(ffi.buffer(sent)).cast("L")
        self._unsent = b""
        self._poison = ""
        self._ready: deque[tuple[bytes, list[int]]] = deque()
        self._partial: _Partial | None = None
        self._reader = _new_uncleared("struct fdp_reader *")
        lib.fdp_start_reader(self._reader, receive_fds)
        self._reader_fds = self._reader.fds
        self._bytes = ffi.buffer(self._reader)
        self._ints = memoryview(self._bytes).cast("i")
        self._incoming = (self._reader, self._bytes, ffi.buffer(self._reader.bytes), self._ints)
        self._wait = sock.gettimeout() is None

    @classmethod
    def pair(cls, **options: Any) -> tuple["Channel", "Channel"]:
        """Two connected channels, for a child process or a thread. options: as for Channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channels = cls(ours, **options), cls(theirs, **options)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return channels

    @classmethod
    def connect(
        cls, path: str | bytes | os.PathLike[str], *, timeout: float | None = None, **options: Any
    ) -> "Channel":
        """A channel to whoever listens at path; a leading NUL means Linux's abstract namespace.

        timeout: seconds, for connecting and as the channel's own. options: as for Channel.
        OSError as for socket.connect: FileNotFoundError, ConnectionRefusedError, PermissionError.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect(os.fspath(path))
            return cls(sock, **options)
        except BaseException:
            sock.close()
            raise

    # -- sending ---------------------------------------------------------------------------------

    def send(self, payload: Buffer, fds: Iterable[int | HasFileno] = ()) -> None:
        """Sends one message: payload, bytes-like, may be empty; any number of descriptors.

        All or nothing: after any exception but that of a signal handler the receiver does not
        get the message, and no descriptor of it stays there. BlockingIOError and TimeoutError: the
        socket's buffer is full; in non-blocking mode a message must fit into it. OSError: EBADF
        for a descriptor that is not open, ETOOMANYREFS where the user has RLIMIT_NOFILE in flight,
        PermissionError where the peer refuses descriptors, BrokenPipeError where it has closed.
        TypeError for a wrong element. A frame that is begun when time runs out counts as sent:
        its rest is kept, see unsent.
        """
        listed: list[Any] = [*fds]
        data = payload if type(payload) is bytes else _join((payload,))
        count = len(listed)
        size = len(data)
        if count == 1 and size <= _ATOMIC and type(listed[0]) is int:
            frame = pack_tagged(TAGGED, size + 4, size) + data
            with self._sending:
                if not self._unsent and _send_fd(self._fd, frame, len(frame), listed[0], 0) > 0:
                    return
        if size <= SINGLE_LIMIT and count <= MAX_FDS:
            self._send_frame(start_single(size, count) + data, listed)
        else:
            self._send_column(Column([data], [size], array("i", as_fd_list(listed)), [count]))

    def _send_frame(self, frame: bytes, fds: list[Any]) -> None:
        size = len(frame)
        memory, head = self._sent
        with self._sending:
            if self._unsent:
                self._flush()
            head[0] = 0
            try:
                try:
                    sent = _send_frame(self._fd, frame, size, fds, len(fds), 0, memory)
                except TypeError:
                    converted = as_fd_list(fds)
                    if converted == fds:
                        raise  # A signal handler's, after the frame was sent.
                    fds = converted
                    sent = _send_frame(self._fd, frame, size, fds, len(fds), 0, memory)
                if sent < 0:
                    persist(
                        self._sock, WRITABLE, sent,
                        _send_frame, self._fd, frame, size, fds, len(fds), 0, memory,
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
            # The usual column, which fits into one frame.
            body = _join(data)
            try:
                head = start_column([*map(len, data)], len(body))
            except TypeError:
                head = None  # A buffer without a length.
            if head is not None:
                try:
                    self._send_frame(head + body, listed)
                except OSError as error:
                    error.progress = Progress(0, 0)  # type: ignore[attr-defined]
                    raise
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

    def _send_column(self, column: Column) -> None:
        frames = make_frames(column)
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
                if self._unsent:
                    self._flush(deadline=deadline)
            except OSError as error:
                error.progress = Progress(0, 0)  # type: ignore[attr-defined]
                raise
            try:
                while following := [*islice(frames, _GROUP)]:
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
            if self._unsent:
                self._flush()

    # -- receiving -------------------------------------------------------------------------------

    def recv(self) -> tuple[bytes, Descriptors]:
        """Receives one message: its payload and the owner of its descriptors, perhaps of none.

        PeerClosedError: the peer closed, after a whole message. ProtocolError: it closed inside
        one, or broke the protocol, or sent more than max_payload or max_fds; everything received
        is closed and the channel is poisoned. DescriptorTableFullError: no room for the next
        message's descriptors; it is still queued. BlockingIOError, TimeoutError: nothing there, or
        not all of it yet; what came stays for the next call. ConnectionResetError: the peer closed
        without having received everything that was sent to it; all that it sent came before.
        """
        reader, head, received, ints = self._incoming
        with self._receiving:
            ready = self._ready
            if not ready:
                result = _read_frame(self._fd, reader, self._wait)
                if result == 1 and self._partial is None:
                    fd, kind, count, fd_count, offset, length = _unpack_single(head)
                    if kind == _PACKED and count == 1 and fd_count < 2 and length <= self._small:
                        # The usual message. It is ours by assignments, between which no signal
                        # handler runs.
                        payload = received[offset : offset + length]
                        owner = _new_owner(Descriptors)
                        owner._fds = [fd] if fd_count else []
                        ints[0] = 1
                        return payload, owner
                packed = self._receive(result)
                if packed is not None:
                    self._store(packed)
            owner = _new_owner(Descriptors)
            payload, owner._fds = ready[0]
            del ready[0]
        return payload, owner

    def recv_many(self, max_messages: int = 253) -> Batch:
        """Receives at least one message, and with it those that came in the same frame or are
        already here, at most max_messages; others may still be queued.

        Returns a Batch, which owns their descriptors. Errors as for recv, but only where not one
        message came: PeerClosedError rather than an empty Batch.
        """
        if max_messages < 1:
            raise ValueError(f"max_messages is positive, got {max_messages}")
        owner = _new_owner(Descriptors)
        owner._fds = []
        with self._receiving:
            more = False
            if not self._ready:
                # The usual frame is all there is, and becomes the batch as it stands.
                packed = self._receive(_read_frame(self._fd, self._reader, self._wait))
                if packed is not None:
                    payloads, fds, counts, more = packed
                    if not more and len(payloads) <= max_messages:
                        batch = Batch([*payloads], owner, counts)
                        owner._fds = fds
                        self._ints[0] = 1
                        return batch
                    self._store(packed)
            # All by way of self._ready, so that an exception on the way loses nothing.
            while more and len(self._ready) < max_messages:
                try:
                    packed = self._receive(_read_frame(self._fd, self._reader, 0), wait=False)
                except (OSError, FdpassError):
                    if not self._ready:
                        raise
                    break  # It comes again with the next call.
                more = packed is not None and packed[3]
                if packed is not None:
                    self._store(packed)
            rows = [*islice(self._ready, max_messages)]
            batch = Batch([payload for payload, _ in rows], owner, [len(fds) for _, fds in rows])
            fds = [*chain.from_iterable(fds for _, fds in rows)]
            rest = deque(islice(self._ready, len(rows), None))
            owner._fds = fds
            self._ready = rest
        return batch

    def _store(self, packed: "_Packed") -> None:
        payloads, fds, counts, _ = packed
        rows = _by_message(payloads, fds, counts)
        self._ready += rows
        self._ints[0] = 1

    def __iter__(self) -> Iterator[tuple[bytes, Descriptors]]:
        """The messages until the peer closes; each Descriptors is the loop's to close."""
        while True:
            try:
                message = self.recv()
            except PeerClosedError:
                return
            yield message

    @property
    def pending(self) -> int:
        """How many whole messages are here and not handed out: no selector tells of them."""
        count = len(self._ready)
        reader = self._reader
        start = reader.frame.size if reader.taken else 0
        whole = reader.violation == 0 and reader.byte_count > start
        if whole and self._receiving.acquire(blocking=False):
            try:
                count += self._count_buffered()
            finally:
                self._receiving.release()
        return count

    def _count_buffered(self) -> int:
        """The messages that are whole in the reader's bytes, behind the frame that was taken."""
        reader = self._reader
        frame = ffi.new("struct fdp_frame *")
        at = reader.frame.size if reader.taken else 0
        count = missing_bytes = missing_fds = 0
        if self._partial is not None:
            missing_bytes = self._partial.total_payload - len(self._partial.payload)
            missing_fds = self._partial.total_fds - len(self._partial.fds)
        while lib.fdp_parse_frame(reader.bytes + at, reader.byte_count - at, frame) == 1:
            at += frame.size
            if frame.kind == _PACKED:
                count += frame.message_count
                continue
            if frame.kind == lib.FDP_FIRST:
                missing_bytes, missing_fds = frame.total_payload, frame.total_fds
            missing_bytes -= frame.size - frame.payload_offset
            missing_fds -= frame.fd_count
            count += frame.kind != lib.FDP_WITHDRAWN and not missing_bytes and not missing_fds
        return count

    def _receive(self, result: int, wait: bool = True) -> "_Packed | None":
        """The messages of the next packed frame; result is what reading it returned.

        They stay the reader's until the caller has stored them and sets self._ints[0] to 1; until
        then the next call finds them again.

        None: a large message is complete, and in self._ready.
        """
        deadline = None
        while True:
            while result != 1:
                if result == -errno.EAGAIN and not wait:
                    raise_oserror(errno.EAGAIN)
                deadline = deadline or Deadline(self._sock, READABLE)
                self._explain(result, deadline)
                result = _read_frame(self._fd, self._reader, wait and self._wait)
            # fmt: off
            (buffered, first_fd, size, kind, count, fd_count, offset, same_length, one_each,
             length) = _unpack_frame(self._bytes)
            # fmt: on
            if fd_count == 1:
                fds = [first_fd]
            else:
                fds = _unpack_fds(self._reader_fds, fd_count) if fd_count else []
            start = _BYTES_AT + offset
            if kind != _PACKED:
                if self._add_piece(kind, self._bytes[start : _BYTES_AT + size], fds):
                    return None
                result = _read_frame(self._fd, self._reader, wait and self._wait)
                continue
            if self._partial is not None:
                self._violate(_VIOLATIONS[lib.FDP_MALFORMED])
            counts = None
            if not one_each:
                counts = (
                    _unpack_fds(self._reader.frame.fd_counts, count) if fd_count else [0] * count
                )
            payloads: Sequence[bytes]
            if count == 1:
                payloads = (self._bytes[start : start + length],)
            elif same_length:
                payloads = _cut_same(count, length)(self._bytes, start)
            else:
                lengths = _unpack_fds(self._reader.frame.lengths, count)
                length = max(lengths)
                ends = accumulate(lengths, initial=start)
                payloads = [self._bytes[at : at + size] for at, size in zip(ends, lengths)]  # noqa: B905
            if length > self._max_payload:
                self._violate(f"a message of {length} bytes, max_payload is {self._max_payload}")
            most = fd_count if count == 1 else max(counts or (1,))
            if most > self._max_fds:
                self._violate(f"a message with {most} descriptors, max_fds is {self._max_fds}")
            return payloads, fds, counts, buffered > size

    def _explain(self, result: int, deadline: Deadline) -> None:
        """Raises what a result of the reader means, or returns where it is worth another try."""
        if self._fd < 0:
            raise_oserror(errno.EBADF, "the channel is closed")
        if self._poison:
            raise ProtocolError(self._poison)
        if result == 0:
            if self._partial is not None:
                self._violate(_VIOLATIONS[lib.FDP_TORN])
            raise PeerClosedError("the peer closed the connection")
        if result == -errno.EMFILE:
            needed = self._reader.needed
            if self._partial is not None:
                needed = self._partial.total_fds - len(self._partial.fds)
            raise DescriptorTableFullError(needed, self._reader.room)
        if result == -errno.EPROTO:
            self._violate(_VIOLATIONS[self._reader.violation])
        deadline.handle(-result)

    def _violate(self, text: str) -> NoReturn:
        """Poisons the channel: closes all that was received and not handed out."""
        self._poison = f"{text}; every descriptor received and not handed out is closed"
        self._drop_received()
        raise ProtocolError(self._poison)

    def _drop_received(self) -> None:
        self._reader.violation = self._reader.violation or lib.FDP_MALFORMED
        lib.fdp_close_reader(self._reader)
        owner = own([])
        if self._partial is not None:
            # By assignments, between which no signal handler runs.
            owner._fds = self._partial.fds
            self._partial = None
        owner.close()

    def _add_piece(self, kind: int, piece: bytes, fds: list[int]) -> bool:
        """One frame of a large message; True when that was the last, and it is in self._ready."""
        partial = self._partial
        if (kind == lib.FDP_FIRST) != (partial is None):
            self._violate(_VIOLATIONS[lib.FDP_MALFORMED])
        if partial is None:
            partial = self._begin_large(len(fds))
        if kind == lib.FDP_WITHDRAWN:
            withdrawn = own([])
            withdrawn._fds = partial.fds
            self._partial = None
            self._ints[0] = 1
            withdrawn.close()
            return False
        payload_size = len(partial.payload) + len(piece)
        fd_count = len(partial.fds) + len(fds)
        if payload_size > partial.total_payload or fd_count > partial.total_fds:
            self._violate(_VIOLATIONS[lib.FDP_MALFORMED])
        # By assignments, between which no signal handler runs.
        if (payload_size, fd_count) == (partial.total_payload, partial.total_fds):
            rows = [(_join((partial.payload, piece)), partial.fds + fds)]
            self._ready += rows
            self._partial = None
            self._ints[0] = 1
            return True
        partial.payload += piece
        partial.fds += fds
        self._partial = partial
        self._ints[0] = 1
        return False

    def _begin_large(self, fd_count: int) -> _Partial:
        """Refuses what is too large before anything of its size is allocated or received."""
        total_payload = self._reader.frame.total_payload
        total_fds = self._reader.frame.total_fds
        if total_payload > self._max_payload:
            self._violate(f"a message of {total_payload} bytes, max_payload is {self._max_payload}")
        if total_fds > self._max_fds:
            self._violate(f"a message with {total_fds} descriptors, max_fds is {self._max_fds}")
        if total_fds > 0 and not self._reader.accept_fds:
            self._violate(_VIOLATIONS[lib.FDP_UNWANTED])
        room = lib.fdp_count_room()
        if 0 <= room < total_fds - fd_count:
            raise DescriptorTableFullError(total_fds - fd_count, room)
        return _Partial(total_payload, total_fds)

    # -- the connection --------------------------------------------------------------------------

    def fileno(self) -> int:
        """The socket's descriptor, borrowed; -1 once closed."""
        return self._fd

    def gettimeout(self) -> float | None:
        """Seconds that a call waits in all; None for ever, 0 not at all."""
        return self._sock.gettimeout()

    def settimeout(self, timeout: float | None) -> None:
        """Sets what gettimeout returns."""
        self._sock.settimeout(timeout)
        self._wait = timeout is None

    def setblocking(self, flag: bool) -> None:
        """True waits for ever, False not at all."""
        self.settimeout(None if flag else 0.0)

    @property
    def peer(self) -> Credentials:
        """Who was at the other end when it was connected: pid, uid, gid."""
        return self._peer

    def peer_pidfd(self) -> int | None:
        """As fdpass_c.peer_pidfd: a pidfd of the peer, which the caller owns, or None."""
        return peer_pidfd(self._sock)

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._fd < 0

    def close(self) -> None:
        """Closes the socket and every descriptor received and not handed out. Again is harmless.

        What unsent counts is lost: flush() before, and the peer sees a violation otherwise. No
        other thread may be inside a call.
        """
        if self._fd >= 0:
            self._drop_received()
            owner = own([])
            nothing: deque[tuple[bytes, list[int]]] = deque()
            fds = [*chain.from_iterable(fds for _, fds in self._ready)]
            # By assignments, between which no signal handler runs.
            owner._fds = fds
            self._ready = nothing
            owner.close()
            self._fd = -1
            self._sock.close()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}, peer pid={self._peer.pid}"
        return f"<Channel {state}>"


def _by_message(
    payloads: Sequence[bytes], fds: list[int], counts: list[int] | None
) -> list[tuple[bytes, list[int]]]:
    if counts is None:
        return [(payload, [fd]) for payload, fd in zip(payloads, fds, strict=True)]
    ends = accumulate(counts)
    return [
        (payload, fds[end - count : end])
        for payload, count, end in zip(payloads, counts, ends, strict=True)
    ]


@lru_cache(maxsize=64)
def _cut_same(count: int, length: int) -> Callable[..., tuple[bytes, ...]]:
    return struct.Struct(f"{length}s" * count).unpack_from


def refuse_fds(sock: socket.socket) -> None:
    """Has the kernel refuse descriptors for sock in the sender's face, where it can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
