"""The receiving half of a Channel."""

import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.batches import Batch, Cuts
from fdpass_c.descriptors import Descriptors, own
from fdpass_c.errors import (
    DescriptorTableFullError,
    FdpassError,
    PeerClosedError,
    ProtocolError,
    raise_oserror,
)
from fdpass_c.turns import Turn
from fdpass_c.waiting import READABLE, Deadline

_read_frame = lib.fdp_read_frame
_poll_frame = lib.fdp_poll_frame
_new_owner = Descriptors.__new__
_new_batch = Batch.__new__
_join = b"".join
_new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)

_BYTES_AT = ffi.offsetof("struct fdp_reader", "bytes")
_FDS_AT = ffi.offsetof("struct fdp_reader", "fds")
_FRAME_AT = ffi.offsetof("struct fdp_reader", "frame")
_LENGTHS_AT = _FRAME_AT + ffi.offsetof("struct fdp_frame", "lengths")
_FD_COUNTS_AT = _FRAME_AT + ffi.offsetof("struct fdp_frame", "fd_counts")

_FIRST_FD = _FDS_AT // 4

# Of struct fdp_reader: byte_count, the first descriptor; of its frame: size, kind, message_count,
# fd_count, payload_offset, same_length, one_each; and the first of its lengths.
_unpack_frame = struct.Struct(
    f"=16xI{_FDS_AT - 20}xi{_FRAME_AT - _FDS_AT - 4}xI4x4I2i{_LENGTHS_AT - _FRAME_AT - 32}xI"
).unpack_from

# What a frame of one message needs of that: the first descriptor, kind, message_count, fd_count,
# payload_offset; and the length.
_unpack_single = struct.Struct(
    f"={_FDS_AT}xi{_FRAME_AT - _FDS_AT + 4}x4I{_LENGTHS_AT - _FRAME_AT - 24}xI"
).unpack_from

_PACKED = lib.FDP_PACKED

_cuts = Cuts()

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


class Receiving:
    """What a Channel receives with: the C core's reader, and what is decoded and not handed out."""

    _sock: socket.socket
    _fd: int

    def _start_receiving(self, max_payload: int, max_fds: int, receive_fds: bool) -> None:
        self._max_payload = max_payload
        self._max_fds = max_fds
        # What a message of at most one descriptor may have without a closer look.
        self._small = max_payload if max_fds > 0 else -1
        self._receiving = Turn()
        self._poison = ""
        self._ready: deque[tuple[bytes, list[int]]] = deque()
        self._partial: _Partial | None = None
        self._reader = _new_uncleared("struct fdp_reader *")
        lib.fdp_start_reader(self._reader, self._fd, receive_fds)
        self._bytes = ffi.buffer(self._reader)
        self._ints = memoryview(self._bytes).cast("i")
        self._incoming = (self._reader, self._bytes, ffi.buffer(self._reader.bytes), self._ints)

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
                result = _read_frame(reader)
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
        reader, head, received, ints = self._incoming
        with self._receiving:
            more = False
            if not self._ready:
                result = _read_frame(reader)
                # fmt: off
                (buffered, _, size, kind, count, fd_count, offset, same_length, one_each,
                 length) = _unpack_frame(head)
                # fmt: on
                if (
                    result == 1
                    and one_each
                    and same_length
                    and kind == _PACKED
                    and count <= max_messages
                    and buffered == size
                    and length <= self._small
                    and self._partial is None
                ):
                    # The usual column is all there is, and becomes the batch as it stands.
                    batch = _new_batch(Batch)
                    batch.payloads = [*_cuts[count, length, length](received, offset)]
                    batch.fds = owner
                    batch._counts = None
                    owner._fds = ints[_FIRST_FD : _FIRST_FD + fd_count].tolist()
                    ints[0] = 1
                    return batch
                packed = self._receive(result)
                if packed is not None:
                    payloads, fds, counts, more = packed
                    if not more and len(payloads) <= max_messages:
                        batch = Batch([*payloads], owner, counts)
                        owner._fds = fds
                        ints[0] = 1
                        return batch
                    self._store(packed)
            # All by way of self._ready, so that an exception on the way loses nothing.
            if more:
                self._gather(max_messages)
            rows = [*islice(self._ready, max_messages)]
            batch = Batch([payload for payload, _ in rows], owner, [len(fds) for _, fds in rows])
            fds = [*chain.from_iterable(fds for _, fds in rows)]
            rest = deque(islice(self._ready, len(rows), None))
            owner._fds = fds
            self._ready = rest
        return batch

    def _gather(self, count: int) -> None:
        """Adds what is here to what is ready, until that is count messages or more."""
        more = True
        while more and len(self._ready) < count:
            try:
                packed = self._receive(_poll_frame(self._reader), _poll_frame)
            except (OSError, FdpassError):
                if not self._ready:
                    raise
                return  # It comes again with the next call.
            more = packed is not None and packed[3]
            if packed is not None:
                self._store(packed)

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
        # A for loop: after a call a handler may run, and if it raises nobody gives the turn back.
        for taken in map(self._receiving.acquire, (False,) if whole else ()):
            if taken:
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

    def _receive(self, result: int, read: Callable[[Any], int] = _read_frame) -> "_Packed | None":
        """The messages of the next packed frame; result is what read returned.

        They stay the reader's until the caller has stored them and sets self._ints[0] to 1; until
        then the next call finds them again.

        None: a large message is complete, and in self._ready.
        """
        deadline = None
        while True:
            while result != 1:
                if result == -errno.EAGAIN and read is _poll_frame:
                    raise_oserror(errno.EAGAIN)
                deadline = deadline or Deadline(self._sock, READABLE)
                self._explain(result, deadline)
                result = read(self._reader)
            # fmt: off
            (buffered, first_fd, size, kind, count, fd_count, offset, same_length, one_each,
             length) = _unpack_frame(self._bytes)
            # fmt: on
            fds = [first_fd] if fd_count == 1 else self._ints_at(_FDS_AT, fd_count)
            start = _BYTES_AT + offset
            if kind != _PACKED:
                if self._add_piece(kind, self._bytes[start : _BYTES_AT + size], fds):
                    return None
                result = read(self._reader)
                continue
            if self._partial is not None:
                self._violate(_VIOLATIONS[lib.FDP_MALFORMED])
            counts = None
            if not one_each:
                counts = self._ints_at(_FD_COUNTS_AT, count) if fd_count else [0] * count
            payloads: Sequence[bytes]
            if count == 1:
                payloads = (self._bytes[start : start + length],)
            elif same_length:
                payloads = _cuts[count, length, length](self._bytes, start)
            else:
                lengths = self._ints_at(_LENGTHS_AT, count)
                length = max(lengths)
                ends = accumulate(lengths, initial=start)
                payloads = [self._bytes[at : at + size] for at, size in zip(ends, lengths)]  # noqa: B905
            if length > self._max_payload:
                self._violate(f"a message of {length} bytes, max_payload is {self._max_payload}")
            most = fd_count if count == 1 else max(counts or (1,))
            if most > self._max_fds:
                self._violate(f"a message with {most} descriptors, max_fds is {self._max_fds}")
            return payloads, fds, counts, buffered > size

    def _ints_at(self, offset: int, count: int) -> list[int]:
        first = offset // 4
        return self._ints[first : first + count].tolist()

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
        # The peer, and a thread that sends, shall hear of it now and not when a buffer is full.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
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

    def _drop_all(self) -> None:
        """_drop_received, and the messages that are ready."""
        self._drop_received()
        owner = own([])
        nothing: deque[tuple[bytes, list[int]]] = deque()
        fds = [*chain.from_iterable(fds for _, fds in self._ready)]
        # By assignments, between which no signal handler runs.
        owner._fds = fds
        self._ready = nothing
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
