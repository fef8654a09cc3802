"""Channel: whole messages with any number of descriptors over a connected Unix socket."""

import contextlib
import errno
import os
import socket
import warnings
import weakref
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.batches import Batch, read_messages
from fdpass_c.buffers import Buffer
from fdpass_c.descriptors import (
    FEW,
    MANY,
    Descriptors,
    few,
    get_memory,
    many,
    new_memory,
    own,
    recycle,
)
from fdpass_c.errors import (
    DescriptorTableFullError,
    NotCopied,
    PeerClosedError,
    ProtocolError,
    raise_oserror,
)
from fdpass_c.peer import Credentials, is_unix, peer_credentials, peer_pidfd
from fdpass_c.scratch import get_scratch, make_scratch, spare
from fdpass_c.sending import Sending, is_own, start_many, start_one
from fdpass_c.turns import Turns
from fdpass_c.unix import connect_unix
from fdpass_c.waiting import READABLE, WRITABLE, Deadline, HasFileno, raw_fileno

# Linux 6.16; Python has no name for it yet.
_SO_PASSRIGHTS = 83
# Of most of Linux's processors; Python has no name for it everywhere.
_SO_OOBINLINE = getattr(socket, "SO_OOBINLINE", 10)

# Looked up once: an attribute of lib costs as much as a cheap argument.
_try_receive = lib.fdp_try_receive

_LARGE = lib.FDP_LARGE
_LENGTH = lib.FDP_MIXED_LENGTHS - 1
_DONE = lib.FDP_DONE

_UNDECIDED = {lib.FDP_LOOK, -errno.EPROTO}

_VIOLATIONS = {
    lib.FDP_MALFORMED: "the peer sent something other than a frame",
    lib.FDP_TORN: "the peer closed the connection inside a message",
    lib.FDP_MISSING: "a frame came without all of the descriptors that it announced",
    lib.FDP_SURPLUS: "descriptors came that no frame announced",
    lib.FDP_UNWANTED: "descriptors came to a channel with receive_fds=False",
    lib.FDP_TRUNCATED: "descriptors were lost: the descriptor table is full (RLIMIT_NOFILE) "
    "or a security module refused them",
    lib.FDP_TOO_LONG: "a message of {needed} bytes, max_payload is {max_payload}",
    lib.FDP_TOO_MANY: "a message with {needed} descriptors, max_fds is {max_fds}",
    lib.FDP_NO_MEMORY: "no memory for what was received",
}

_all: "weakref.WeakSet[Channel]" = weakref.WeakSet()


class Channel(NotCopied):
    """Passes whole messages, each a payload and descriptors, over a connected Unix socket.

    Messages arrive whole, in order and exactly once; payloads and descriptors of any size and
    number, up to what the receiver accepts; many small ones travel as one. The other end must
    be a Channel too, or speak docs/wire-format.md.

    Sending borrows descriptors: the caller still closes them, at once if it likes. Receiving
    gives their owner, a Descriptors or a Batch; all are close-on-exec. A context manager, and an
    iterator over (payload, fds) until the peer closes. It cannot be copied or pickled (TypeError).

    Threads: one may send while another receives. Several may send, or receive: they take turns,
    and a message is never mixed with another. A signal handler must not send on a channel whose
    send it has interrupted (RuntimeError, if that one has sent a part).

    Fork: a child has a copy of both ends and of the messages already received but not handed out.
    What arrives later goes to whichever process reads first, so let only one go on with an end and
    the other close its copy, which does not disturb the first. Fork while no other thread is
    inside a call.

    Selectors: fileno() is readable when bytes are there; after that, receive until pending is 0,
    because a selector does not report messages that came in one frame with another.

    A violation of the protocol, by accident or by malice, closes every descriptor received and
    not handed out, and ends the connection; every later call raises the same ProtocolError.

    The descriptor table: messages of which only a part has come may together hold at most half of
    the soft limit (RLIMIT_NOFILE), over all channels of a process, and leave 64 places free.
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
        if not is_unix(raw_fileno(sock)):
            raise_oserror(errno.EAFNOSUPPORT)
        if sock.type not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            raise ValueError(f"a channel needs a stream or seqpacket socket, not {sock.type!r}")
        self._peer = peer_credentials(sock)
        if allow_uids is not None and self._peer.uid not in allow_uids:
            sock.close()
            raise PermissionError(errno.EACCES, f"the peer's user {self._peer.uid} is not allowed")
        if not receive_fds:
            refuse_fds(sock)
        # A byte sent with MSG_OOB would make the socket readable with nothing to read (Linux 5.15).
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_OOBINLINE, 1)
        inbox = ffi.gc(ffi.new("struct fdp_inbox *"), lib.fdp_close_inbox)
        outbox = ffi.gc(ffi.new("struct fdp_outbox *"), lib.fdp_close_outbox)
        lib.fdp_start_inbox(inbox, sock.fileno(), max_payload, max_fds, receive_fds)
        lib.fdp_start_outbox(outbox, sock.fileno())
        self._inbox = inbox
        self._outbox = outbox
        self._receivers = Turns()
        self._senders = Turns()
        self._sock = sock
        _all.add(self)

    @classmethod
    def pair(cls, **options: Any) -> tuple["Channel", "Channel"]:
        """Two connected channels, for a child process or a thread. options: as for Channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        made: list[Channel] = []
        try:
            made.append(cls(ours, **options))
            made.append(cls(theirs, **options))
        except BaseException:
            for channel in made:
                channel.close()
            ours.close()
            theirs.close()
            raise
        return made[0], made[1]

    @classmethod
    def connect(
        cls, path: str | bytes | os.PathLike[str], *, timeout: float | None = None, **options: Any
    ) -> "Channel":
        """A channel to whoever listens at path; a leading NUL means Linux's abstract namespace.

        timeout: seconds, for connecting, which waits for a place in a full backlog, and as the
        channel's own. options: as for Channel. OSError as for socket.connect, with the path in it:
        FileNotFoundError, ConnectionRefusedError, PermissionError; TimeoutError where there was no
        place in time, BlockingIOError where there is none and timeout is 0. ValueError: a NUL in a
        path.
        """
        sock = connect_unix(path, timeout)
        try:
            return cls(sock, **options)
        except BaseException:
            sock.close()
            raise

    def send(self, payload: Buffer, fds: Iterable[int | HasFileno] = ()) -> None:
        """Sends one message: payload, bytes-like, may be empty; any number of descriptors.

        fds: ints or objects with fileno(), borrowed.

        All or nothing: after any exception but that of a signal handler the receiver does not
        get the message, and no descriptor of it stays there. BlockingIOError and TimeoutError: the
        socket's buffer is full; in non-blocking mode a message must fit into it. OSError: EBADF
        for a descriptor that is not open, ETOOMANYREFS where the user has RLIMIT_NOFILE in flight,
        EFAULT where payload is a mapping of a file that has shrunk, PermissionError where the peer
        refuses descriptors, BrokenPipeError where it has closed. ProtocolError where a receive
        found the peer to have broken the protocol. TypeError for a wrong element. A frame that is
        begun when time runs out counts as sent: its rest is kept, see unsent.
        """
        sending = start_one(self._outbox, payload, fds)
        if sending is not None or self._senders:
            self._finish(sending)

    def send_many(
        self,
        payloads: Sequence[Buffer],
        fds: Sequence[int | HasFileno] | Sequence[Iterable[int | HasFileno]] = (),
    ) -> int:
        """Sends many messages, packed into as few as the kernel allows; returns how many.

        payloads: one bytes-like object a message. fds: one descriptor a message, or one iterable
        of any number a message, or nothing at all; borrowed. All are checked before anything is
        sent: TypeError for a wrong element, ValueError for unequal lengths.

        Errors as for send; the error's attribute progress says in progress.messages how many
        messages the receiver gets, whole; none of the others, and progress.bytes is 0.
        """
        data = [*payloads]
        sending = start_many(self._outbox, data, [*fds])
        if sending is not None or self._senders:
            self._finish(sending)
        return len(data)

    def start_sending(self, payload: Buffer, fds: Iterable[int | HasFileno]) -> Sending | None:
        """For an event loop: begins what send does. None where it is done."""
        return start_one(self._outbox, payload, fds)

    def start_sending_many(self, payloads: list[Buffer], fds: Sequence[Any]) -> Sending | None:
        """For an event loop: begins what send_many does. None where it is done."""
        return start_many(self._outbox, payloads, fds)

    def _finish(self, sending: Sending | None) -> None:
        """Sends what is left, waiting as the timeout says, and lets the next one have its turn."""
        try:
            if sending is not None:
                self._drive(sending)
        except BaseException as error:
            assert sending is not None
            if not sending.give_up(error):
                raise
        finally:
            if self._senders:
                self._senders.pass_on()

    def _drive(self, sending: Sending) -> None:
        deadline = Deadline(self._sock, WRITABLE)
        while (result := sending.step(self._send_flags())) != _DONE:
            self._wait_to_send(result, deadline)

    def _send_flags(self) -> int:
        return 0 if self._sock.gettimeout() is None else socket.MSG_DONTWAIT

    def _wait_to_send(self, result: int, deadline: Deadline) -> None:
        """Returns where a send that is not done is worth another try."""
        if result == -errno.EBUSY:
            if is_own(self._outbox):
                raise RuntimeError("a signal handler sends on the channel whose send it stopped")
            deadline.look()
            self._senders.wait()
        elif result == lib.FDP_LOOK:
            deadline.look()
        else:
            self.raise_failure()
            deadline.handle(-result)

    def raise_failure(self) -> None:
        """After a call that failed: raises where the channel is closed or poisoned."""
        if self._inbox.violation:
            self._raise_violation()
        if self._inbox.sock < 0:
            raise_oserror(errno.EBADF, "the channel is closed")

    @property
    def unsent(self) -> int:
        """How many bytes of a frame that is begun wait for the next send, or for flush()."""
        return int(self._outbox.unsent)

    def flush(self) -> None:
        """Sends what unsent counts. BlockingIOError or TimeoutError where the buffer is full."""
        if self._inbox.violation:
            self._raise_violation()
        self._drive(Sending(self._outbox, None, 0))

    def recv(self) -> tuple[bytes, Descriptors]:
        """Receives one message: its payload and the owner of its descriptors, perhaps of none.

        PeerClosedError: the peer closed, after a whole message. ProtocolError: it closed inside
        one, or broke the protocol, or sent more than max_payload or max_fds; everything received
        is closed and the channel is poisoned. DescriptorTableFullError: no room for the next
        message's descriptors; it is still queued. BlockingIOError, TimeoutError: nothing there, or
        not all of it yet; what came stays for the next call. ConnectionResetError: the peer closed
        without having received everything that was sent to it; all that it sent came before.

        A signal handler that raises inside leaves the message for the next call.
        """
        scratch, view = pair = get_scratch()
        memory, pool = get_memory(few, FEW), few
        held: list[Any] = []
        try:
            code = _try_receive(self._inbox, 1, scratch, memory)
            if not 0 < code < _LARGE:
                held += (memory, few)
                code = self._receive(code, 1, scratch, held)
                memory, pool = held
            if code < _LARGE:
                payload = view[: code & _LENGTH]
            else:
                payload = bytes(ffi.buffer(scratch.large, scratch.large_size))
                pair = make_scratch()  # The core frees that one with the payload.
            if self._receivers:
                self._receivers.pass_on()
            owner = own(memory, pool)
            # No call, after which a signal handler could run: from here on it is the caller's.
            stack = spare
            stack += (pair,)
            return payload, owner
        except BaseException:
            self._undo(scratch, pair, *(held or (memory, few)))
            raise

    def recv_many(self, max_messages: int = 253) -> Batch:
        """Receives at least one message, and with it those that came in the same frame or are
        already here, at most max_messages; others may still be queued.

        Returns a Batch, which owns their descriptors. Errors as for recv, but only where not one
        message came: PeerClosedError rather than an empty Batch.
        """
        if max_messages < 1:
            raise ValueError(f"max_messages is positive, got {max_messages}")
        scratch, view = pair = get_scratch()
        memory, pool = get_memory(many, MANY), many
        held: list[Any] = []
        try:
            code = _try_receive(self._inbox, max_messages, scratch, memory)
            if not 0 < code < _LARGE:
                held += (memory, many)
                code = self._receive(code, max_messages, scratch, held)
                memory, pool = held
            payloads, counts = read_messages(code, scratch, view, memory)
            batch = Batch(payloads, own(memory, pool), counts)
            if code >= _LARGE:
                pair = make_scratch()  # The core frees that one with the payload.
            if self._receivers:
                self._receivers.pass_on()
            stack = spare
            stack += (pair,)
            return batch
        except BaseException:
            self._undo(scratch, pair, *(held or (memory, many)))
            raise

    def _undo(self, scratch: Any, pair: Any, memory: Any, pool: list[Any] | None) -> None:
        """After a receive that raised: what it brought, if anything, is the next message again."""
        lib.fdp_put_back(self._inbox, scratch, memory)
        recycle(memory, pool)
        # Not before: another thread would receive into it.
        spare.append(pair)

    def _receive(self, code: int, most: int, scratch: Any, held: list[Any]) -> int:
        """What is left to do where the first try brought nothing: waits, as the timeout says.

        code: what that try returned. held: the memory for descriptors and the list it came from,
        here replaced where it is too small. Returns what the last try did.
        """
        inbox = self._inbox
        deadline = Deadline(self._sock, READABLE)
        # What the first try could not do itself is no answer yet.
        first = code in _UNDECIDED or (code == -errno.EAGAIN and self._sock.gettimeout() is None)
        while code <= 0:
            if code == lib.FDP_FIT:
                held[:] = new_memory(inbox.needed), None
            elif code == -errno.EBUSY:
                deadline.look()
                self._receivers.wait()
            elif not first:
                self._explain(code, deadline)
            first = False
            waits = self._sock.gettimeout() is None
            code = lib.fdp_receive(inbox, most, waits, scratch, held[0])
        return code

    def _explain(self, code: int, deadline: Deadline) -> None:
        """Raises what a result of a receive means, or returns where it is worth another try."""
        inbox = self._inbox
        if code == 0:
            raise PeerClosedError("the peer closed the connection")
        if code == -errno.EMFILE:
            raise DescriptorTableFullError(inbox.needed, inbox.room)
        if code == lib.FDP_LOOK:
            deadline.look()
        else:
            self.raise_failure()
            deadline.handle(-code)

    def _raise_violation(self) -> NoReturn:
        inbox = self._inbox
        text = _VIOLATIONS[inbox.violation].format(
            needed=inbox.needed, max_payload=inbox.max_payload, max_fds=inbox.max_fds
        )
        raise ProtocolError(f"{text}; every descriptor received and not handed out is closed")

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
        """How many whole messages are here and not handed out; a selector does not report them."""
        return int(lib.fdp_try_count_pending(self._inbox))

    def fileno(self) -> int:
        """The socket's descriptor, borrowed; -1 once closed."""
        return int(self._inbox.sock)

    def gettimeout(self) -> float | None:
        """Seconds that a call waits in all; None for ever, 0 not at all."""
        return self._sock.gettimeout()

    def settimeout(self, timeout: float | None) -> None:
        """Sets what gettimeout returns."""
        self._sock.settimeout(timeout)

    def setblocking(self, flag: bool) -> None:
        """True waits for ever, False not at all."""
        self._sock.setblocking(flag)

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
        return bool(self._inbox.sock < 0)

    def close(self) -> None:
        """Closes the socket and every descriptor received and not handed out. Again is harmless.

        What unsent counts is lost: flush() before, and the peer sees a violation otherwise. Another
        thread that waits inside a call is woken and gets an OSError (EBADF).
        """
        while lib.fdp_close_inbox(self._inbox) < 0:
            self._receivers.wait()
        while lib.fdp_close_outbox(self._outbox) < 0:
            self._senders.wait()
        self._sock.close()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_sock") or self._inbox.sock < 0:
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self.fileno()}, peer pid={self._peer.pid}"
        return f"<Channel {state}>"


def refuse_fds(sock: socket.socket) -> None:
    """Has the kernel refuse descriptors for sock in the sender's face, where it can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)


def _after_fork() -> None:
    for channel in [*_all]:
        lib.fdp_free_after_fork(channel._inbox, channel._outbox)


os.register_at_fork(after_in_child=_after_fork)
