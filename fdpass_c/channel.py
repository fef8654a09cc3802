"""Channel: whole messages with any number of descriptors over a connected Unix socket."""

import contextlib
import errno
import os
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.buffers import Buffer
from fdpass_c.descriptors import (
    FEW,
    MANY,
    Descriptors,
    as_list,
    few,
    is_tracing,
    many,
    new_memory,
    own,
    recycle,
    take_few,
    take_many,
)
from fdpass_c.ends import End
from fdpass_c.errors import (
    DescriptorTableFullError,
    PeerClosedError,
    raise_oserror,
)
from fdpass_c.options import (
    DEFAULT_MAX_FDS,
    DEFAULT_MAX_PAYLOAD,
    check_options,
    refuse_fds,
)
from fdpass_c.outcomes import NOTHING_SENT, Batch, Progress, gather, read_messages
from fdpass_c.owning import Closing
from fdpass_c.peer import Credentials, check_unix, peer_credentials, peer_pidfd
from fdpass_c.scratch import MOST, make_scratch, spare, take_spare
from fdpass_c.sending import Sending, start_many, start_one
from fdpass_c.turns import LOOK_AGAIN, Turns, while_listed
from fdpass_c.unix import Path, connect_unix
from fdpass_c.waiting import READABLE, WRITABLE, Deadline, HasFileno, is_from, raw_fileno

# Looked up once: reading an attribute of lib takes as long as passing an argument.
_try_receive = lib.fdp_try_receive
_put_back = lib.fdp_put_back

_LARGE = lib.FDP_LARGE
_LENGTH = lib.FDP_MIXED_LENGTHS - 1
_DONE = lib.FDP_DONE
_WAIT = lib.FDP_WAIT
_WAIT_FIRST = lib.FDP_WAIT_FIRST

_NOTHING = os.strerror(errno.EAGAIN)

_is_finalizing = sys.is_finalizing

_UNDECIDED = {lib.FDP_LOOK, -errno.EPROTO}

# Seconds between two tries to send while too many descriptors are in flight: no event reports that
# the receiver has taken some.
IN_FLIGHT_DELAY = 0.002

_all: "weakref.WeakSet[Channel]" = weakref.WeakSet()


class Channel(Closing):
    """Passes whole messages, each a payload and descriptors, over a connected Unix socket.

    Messages arrive whole, in order and exactly once, with payloads of any size and any number of
    descriptors, up to what the receiver accepts. Many small ones travel with one system call. The
    other end must be a Channel too, or speak its wire format (docs/wire-format.md).

    Sending does not take ownership of descriptors: the caller may close its own immediately.
    Receiving returns their owner, a Descriptors or a Batch. All are close-on-exec.

    A context manager: its exit calls close(). Iterating yields (payload, fds) until the peer
    closes. A channel cannot be copied or pickled (TypeError).

    Threads: one may send while another receives. If several send, or several receive, they take
    turns, and messages are never mixed. A signal handler must not send on a channel whose send it
    has interrupted: it gets a RuntimeError if a part of the message was sent.

    Fork: the child has a copy of the channel, and of messages that were received and not handed
    out. What arrives later goes to whichever process reads first. So let only one process use an
    end, and close the copy in the other, which does not disturb the first. Fork while no other
    thread is in a call of the channel.

    Selectors: fileno() is readable when bytes have arrived. Then receive until pending is 0,
    because a selector does not report messages that arrived in one frame with another.

    A violation of the protocol, whether by accident or on purpose, closes every descriptor that was
    received and not handed out, and ends the connection. Every later call raises the same
    ProtocolError.

    The descriptor table: messages that have arrived only in part reserve at most half of the soft
    limit (RLIMIT_NOFILE), over all channels of the process together, and leave 64 places free.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> None:
        """Takes ownership of sock.

        Args:
            sock: A connected Unix domain socket of the type SOCK_STREAM or SOCK_SEQPACKET.
            max_payload: The largest payload of a received message, in bytes; 16 MiB by default.
            max_fds: The largest number of descriptors of a received message; 65,536 by default.
            allow_uids: The users whose processes may be at the other end; None for all.
            receive_fds: False makes any received descriptor a violation of the protocol. If the
                kernel has SO_PASSRIGHTS (Linux 6.16), the peer's send fails with a PermissionError
                instead.

        Raises:
            TypeError: sock is not a socket, or an option has the wrong type.
            ValueError: The socket is of another type, or a limit is negative or too large.
            OSError: EAFNOSUPPORT: the socket is of another family. ENOTCONN: it has no peer.
            PermissionError: The peer's user is not in allow_uids. sock is closed.
        """
        # Not isinstance: gevent's is no socket.socket. A Channel and a Listener have a timeout too,
        # and trio's sockets have none.
        if not (hasattr(sock, "getsockopt") and hasattr(sock, "gettimeout")):
            raise TypeError(f"a channel needs a socket.socket, not {type(sock).__name__}")
        check_unix(raw_fileno(sock))
        # Not sock.type, which is what the object was made with, and may be wrong.
        kind = socket.SocketKind(sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE))
        if kind not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            raise ValueError(f"a channel needs a stream or seqpacket socket, not {kind!r}")
        check_options(max_payload, max_fds, allow_uids, receive_fds)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # The kernel would report credentials for it: those of this process.
            raise_oserror(errno.ENOTCONN, "the socket listens: pass what its accept() returns")
        self._peer = peer_credentials(sock)
        if allow_uids is not None and self._peer.uid not in allow_uids:
            sock.close()
            raise PermissionError(errno.EACCES, f"the peer's user {self._peer.uid} is not allowed")
        if not receive_fds:
            refuse_fds(sock)
        self._end = End(sock.fileno(), max_payload, max_fds, receive_fds)
        self._inbox = self._end.inbox
        self._outbox = self._end.outbox
        self._receivers = Turns()
        self._senders = Turns()
        self._waiting: list[int] = []
        self._waits_in_flight = False
        self._sock = sock
        _all.add(self)

    @classmethod
    def pair(
        cls,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> tuple["Channel", "Channel"]:
        """Makes two connected channels, for a child process or a thread.

        For two that differ in their options, make each of one end of socket.socketpair().

        Args:
            max_payload: As for Channel, for both.
            max_fds: As for Channel, for both.
            allow_uids: As for Channel, for both.
            receive_fds: As for Channel, for both.

        Returns:
            Two channels, which the caller owns and closes.
        """
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        make = partial(
            cls,
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        made: list[Channel] = []
        try:
            for end in ends:
                made.append(make(end))
        except BaseException:
            for channel in made:
                channel.close()
            for end in ends:
                end.close()
            raise
        return made[0], made[1]

    @classmethod
    def connect(
        cls,
        path: Path,
        *,
        timeout: float | None = None,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> "Channel":
        """Connects to a Listener.

        A full backlog is waited for, within the timeout.

        Args:
            path: The path of the socket file, or a name in Linux's abstract namespace: a NUL
                followed by the name.
            timeout: Seconds for connecting, and then the channel's timeout. None waits for ever, 0
                does not wait.
            max_payload: As for Channel.
            max_fds: As for Channel.
            allow_uids: As for Channel.
            receive_fds: As for Channel.

        Returns:
            The channel, which the caller owns and closes.

        Raises:
            ValueError: The path contains a NUL, or timeout is negative. Others as for Channel.
            FileNotFoundError: There is no such file. The attribute filename has the path, here and
                below.
            ConnectionRefusedError: No process listens there, or the path is not a socket.
            PermissionError: The file's mode does not allow it, or the peer's user is not in
                allow_uids.
            BlockingIOError: The timeout is 0 and the backlog is full.
            TimeoutError: The timeout is over.
            OSError: ENAMETOOLONG: the path has more than 107 bytes, outside of Linux 103. Others as
                for Channel and for socket.connect.
        """
        make = partial(
            cls,
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        return open_connected(make, connect_unix(path, timeout), path)

    def send(self, payload: Buffer, fds: Iterable[int | HasFileno] = ()) -> None:
        """Sends one message.

        All or nothing: after an exception, unless a signal handler raised it, the receiver does not
        get the message, and none of its descriptors stays there. If time runs out when the last
        frame of the message was begun, the message counts as sent, and the rest of the frame is
        kept: see unsent.

        Args:
            payload: Bytes-like, and may be empty.
            fds: Any number of ints or objects with fileno(). The caller still owns them, and may
                close them immediately after the call.

        Raises:
            BlockingIOError: The channel is in non-blocking mode, and the message does not fit into
                the socket's buffer.
            TimeoutError: The channel's timeout is over.
            OSError: EBADF: a descriptor is not open, or the channel is closed. ETOOMANYREFS: the
                user already has RLIMIT_NOFILE descriptors in flight. EFAULT: payload is a mapping
                of a truncated file.
            PermissionError: The peer refuses descriptors.
            BrokenPipeError: The peer has closed.
            ProtocolError: A receive found that the peer broke the protocol.
            TypeError: payload or an element of fds has the wrong type.
            RuntimeError: Called in a signal handler that interrupted another send of this channel.
        """
        sending = start_one(self._outbox, payload, fds)
        if sending is not None or self._senders:
            self._finish(sending)

    def send_many(
        self,
        payloads: Sequence[Buffer],
        fds: Sequence[int | HasFileno | Iterable[int | HasFileno]] = (),
        *,
        start: Progress = NOTHING_SENT,
    ) -> int:
        """Sends many messages, packed into as few frames as possible.

        Everything is checked before anything is sent.

        Every exception that ends the sending has an attribute progress (Progress.of(error) is
        typed): the receiver gets the first progress.messages messages, whole, and none of the
        others; progress.bytes is 0. To go on without loss or repetition, call again with the same
        payloads and fds and start=error.progress.

        Args:
            payloads: One bytes-like object per message.
            fds: One descriptor per message, or one iterable of any number of descriptors per
                message, or nothing. They are ints or objects with fileno(). The caller still owns
                them, and may close them immediately after the call.
            start: Where to begin in payloads and fds.

        Returns:
            The number of messages, which is len(payloads).

        Raises:
            ValueError: payloads and fds have different lengths, or start is outside the batch.
            TypeError: An element has the wrong type.
            OSError: As for send, with BlockingIOError, TimeoutError and the others.
            ProtocolError: A receive found that the peer broke the protocol.
        """
        data = [*payloads]
        sending = start_many(self._outbox, data, as_list(fds), start)
        if sending is not None or self._senders:
            self._finish(sending)
        return len(data)

    def _finish(self, sending: Sending | None) -> None:
        """Sends the rest, waits as the timeout says, and then lets the next thread send."""
        deadline = None
        try:
            if sending is not None:
                deadline = self._start_waiting()
                self._drive(sending, deadline)
        except BaseException as error:
            is_whole = sending is not None and sending.give_up(error)
            is_late = isinstance(error, (BlockingIOError, TimeoutError))
            if not (is_whole and is_late and deadline and deadline.has_raised(error)):
                raise
        finally:
            if self._senders:
                self._senders.pass_on()

    def _start_waiting(self) -> Deadline:
        # Another thread may shut down the sending, and on Linux that does not wake poll.
        looks = threading.active_count() > 1
        return Deadline(self._sock, WRITABLE, at_most=LOOK_AGAIN if looks else None)

    def _drive(self, sending: Sending, deadline: Deadline) -> None:
        while True:
            waits = self._sock.gettimeout() is None
            result = sending.step(0 if waits else socket.MSG_DONTWAIT)
            if result == _DONE:
                return
            self._wait_to_send(sending, result, deadline)

    def _wait_to_send(self, sending: Sending, result: int, deadline: Deadline) -> None:
        """Returns when it is worthwhile to try again to send."""
        if result == -errno.EBUSY:
            if sending.interrupts_own():
                raise RuntimeError(
                    "a signal handler must not send on a channel whose send it interrupts"
                )
            deadline.look()
            self._senders.wait()
        elif result == lib.FDP_LOOK:
            # A non-blocking send goes on while there is room, until its messages are sent.
            if self._sock.gettimeout() != 0:
                deadline.look()
        elif result == -errno.ETOOMANYREFS and self._waits_in_flight:
            self._end.raise_failure()
            deadline.pause(IN_FLIGHT_DELAY)
        else:
            self._wait(result, deadline)

    def _wait(self, code: int, deadline: Deadline) -> None:
        """Waits after a failure with code, until another try is worthwhile or close() wakes it."""
        while_listed(self._waiting, threading.get_ident(), self._handle, code, deadline)

    def _handle(self, code: int, deadline: Deadline) -> None:
        self._end.raise_failure()
        deadline.handle(-code)

    @property
    def wait_in_flight(self) -> bool:
        """Whether a send waits, as the timeout says, while the user has as many descriptors in
        flight as the system allows. If not, it fails with ETOOMANYREFS. May be set.
        """
        return self._waits_in_flight

    @wait_in_flight.setter
    def wait_in_flight(self, waits: bool) -> None:
        self._waits_in_flight = waits

    @property
    def unsent(self) -> int:
        """How many bytes of a frame sent in part wait for the next send, or for flush()."""
        return int(self._outbox.unsent)

    def flush(self) -> None:
        """Sends the bytes that unsent counts.

        Raises:
            BlockingIOError: The channel is in non-blocking mode and the socket's buffer is full.
            TimeoutError: The channel's timeout is over.
            OSError: As for send.
        """
        sending = self._end.start_flushing()
        if sending is not None:
            try:
                self._drive(sending, self._start_waiting())
            finally:
                if self._senders:
                    self._senders.pass_on()

    def recv(self) -> tuple[bytes, Descriptors]:
        """Receives one message.

        If a signal handler raises an exception while this call runs, the next call receives the
        message.

        Returns:
            A tuple (payload, fds) of bytes and the Descriptors that own what came with them,
                possibly none. The caller closes it.

        Raises:
            PeerClosedError: The peer closed, after a whole message.
            ProtocolError: The peer closed inside a message, broke the protocol, or sent more than
                max_payload or max_fds. Everything that was received and not handed out is closed.
            DescriptorTableFullError: There is no room for the descriptors of the next message,
                which stays queued.
            BlockingIOError: The channel is in non-blocking mode, and no whole message is here. A
                part stays for the next call.
            TimeoutError: The channel's timeout is over. A part of a message stays for the next
                call.
            ConnectionResetError: The peer closed without receiving everything that was sent to it.
                All that it sent was received before.
            OSError: EBADF: the channel is closed. Others as for socket.recvmsg.
        """
        # recv_many repeats these lines: as a function they would make each receive 5 % slower.
        try:
            pair = take_spare()
        except IndexError:
            pair = make_scratch()
        scratch, view = pair
        try:
            memory = new_memory(FEW) if is_tracing() else take_few()
        except IndexError:
            memory = new_memory(FEW)
        pool: list[Any] | None = few
        held = None
        try:
            code = _try_receive(self._inbox, 1, scratch, memory)
            if not 0 < code < _LARGE:
                held = [memory, few]
                code = self._receive(code, 1, scratch, held)
                memory, pool = held
            if code < _LARGE:
                payload = view[: code & _LENGTH]
            else:
                payload = bytes(ffi.buffer(scratch.large, scratch.large_size))
                pair = make_scratch()  # The old one is dropped, with the large payload in it.
            if self._receivers:
                self._receivers.pass_on()
            message = payload, own(memory, pool)
            # The lines up to the return make no call, so no signal handler runs between them. After
            # the last of them another receive may take the pair, so the return must not fail.
            stack = spare
            stack += (pair,)
            return message
        except BaseException:
            if held is not None:
                memory, pool = held
            # The next receive returns what was received here. No function of ours does it, because
            # after a RecursionError it could not be called.
            _put_back(self._inbox, scratch, memory)
            recycle(memory, pool)
            # Only now, because another thread may take it and receive into it.
            spare.append(pair)
            raise

    def recv_many(self, max_messages: int = 253) -> Batch:
        """Receives at least one message, and others of the same frame or that are already here.

        Others may still be queued in the socket.

        Args:
            max_messages: The largest number of messages to receive.

        Returns:
            A Batch, which owns the descriptors of all its messages. The caller closes it.

        Raises:
            ValueError: max_messages is less than 1.
            PeerClosedError: The peer closed; a Batch is never empty.
            ProtocolError: As for recv. This and the others below only if not one message came.
            DescriptorTableFullError: As for recv.
            OSError: As for recv.
        """
        if max_messages < 1:
            raise ValueError(f"max_messages must be at least 1, got {max_messages}")
        # As in recv, which says why.
        try:
            pair = take_spare()
        except IndexError:
            pair = make_scratch()
        scratch, view = pair
        try:
            memory = new_memory(MANY) if is_tracing() else take_many()
        except IndexError:
            memory = new_memory(MANY)
        pool: list[Any] | None = many
        held = None
        try:
            code = _try_receive(self._inbox, max_messages, scratch, memory)
            if not 0 < code < _LARGE:
                held = [memory, many]
                code = self._receive(code, max_messages, scratch, held)
                memory, pool = held
            payloads, counts = read_messages(code, scratch, view, memory)
            batch = gather(payloads, own(memory, pool), counts)
            if code >= _LARGE:
                pair = make_scratch()  # The old one is dropped, with the large payload in it.
            if self._receivers:
                self._receivers.pass_on()
            stack = spare
            stack += (pair,)
            return batch
        except BaseException:
            if held is not None:
                memory, pool = held
            _put_back(self._inbox, scratch, memory)  # As in recv.
            recycle(memory, pool)
            spare.append(pair)
            raise

    def _receive(self, code: int, most: int, scratch: Any, held: list[Any]) -> int:
        """Receives after a first try that received nothing, and waits as the timeout says.

        Args:
            code: What the first try returned.
            most: The largest number of messages.
            scratch: Where payloads go.
            held: The memory for descriptors, and the list that it came from. If it is too small,
                both are replaced here.

        Returns:
            What the last try returned.
        """
        if code == -errno.EAGAIN and self._sock.gettimeout() == 0:
            # The code below would raise the same. Event loops get it often, and this is faster.
            raise BlockingIOError(errno.EAGAIN, _NOTHING)
        del spare[MOST:]
        inbox = self._inbox
        deadline = Deadline(self._sock, READABLE)
        # Whether the try must be repeated, because it could not close, or may wait now.
        first = code in _UNDECIDED or (code == -errno.EAGAIN and self._sock.gettimeout() is None)
        while code <= 0:
            if code == lib.FDP_FIT:
                small = [*held]
                # Another thread may have received since, and found a message that is too long.
                held[:] = new_memory(min(inbox.needed, inbox.max_fds)), None
                # If it were dropped, its finaliser could swallow what a signal handler raises.
                recycle(*small)
            elif code == -errno.EBUSY:
                deadline.look()
                self._receivers.wait()
            elif not first:
                self._wait_to_receive(code, deadline)
            wait = 0
            if self._sock.gettimeout() is None:
                wait = _WAIT_FIRST if first and code == -errno.EAGAIN else _WAIT
            first = False
            code = lib.fdp_receive(inbox, most, wait, scratch, held[0])
        return code

    def _wait_to_receive(self, code: int, deadline: Deadline) -> None:
        """Returns when it is worthwhile to try again, after a receive with that result."""
        inbox = self._inbox
        if code == 0:
            raise PeerClosedError("the peer closed the connection")
        if code == -errno.EMFILE:
            raise DescriptorTableFullError(inbox.needed, inbox.room)
        if code != lib.FDP_LOOK:
            self._wait(code, deadline)
        elif not self.pending:  # The last frame may have completed a message.
            deadline.look()

    def __iter__(self) -> Iterator[tuple[bytes, Descriptors]]:
        """Receives messages until the peer closes. The loop owns and closes each Descriptors."""
        while True:
            try:
                message = self.recv()
            except PeerClosedError:
                return
            yield message

    @property
    def pending(self) -> int:
        """How many whole messages are here and not returned. A selector does not report them."""
        return int(lib.fdp_try_count_pending(self._inbox))

    def fileno(self) -> int:
        """Returns the socket's descriptor, borrowed; -1 after close()."""
        return int(self._inbox.sock)

    def gettimeout(self) -> float | None:
        """Returns how many seconds a call waits in all: None for ever, 0 not at all."""
        return self._sock.gettimeout()

    def settimeout(self, timeout: float | None) -> None:
        """Sets how many seconds a call waits in all.

        Args:
            timeout: None waits for ever, 0 does not wait.

        Raises:
            ValueError: timeout is negative.
            OSError: EBADF: the channel is closed.
        """
        self._end.check_open()
        self._sock.settimeout(timeout)

    def setblocking(self, flag: bool) -> None:
        """Sets whether calls wait: True for ever, False not at all.

        Raises:
            OSError: EBADF: the channel is closed.
        """
        self._end.check_open()
        self._sock.setblocking(flag)

    @property
    def peer(self) -> Credentials:
        """The pid, uid and gid of the peer as it was when the connection was made.

        For both ends of a socket pair: of the process that made the pair.
        """
        return self._peer

    def peer_pidfd(self) -> int | None:
        """Returns a pidfd of the process that peer names, or None: see fdpass_c.peer_pidfd.

        The caller owns it.

        Raises:
            OSError: EBADF: the channel is closed. Others as for fdpass_c.peer_pidfd.
        """
        self._end.check_open()
        return peer_pidfd(self._sock)

    @property
    def closed(self) -> bool:
        """Whether close() or detach() was called."""
        return bool(self._inbox.sock < 0)

    def shutdown(self, how: int) -> None:
        """Ends one direction or both, as socket.shutdown does.

        Threads that wait in a call for that direction get the same errors as later calls. What
        unsent counts is lost: flush() first.

        Args:
            how: socket.SHUT_WR tells the peer that nothing more comes, and leaves receiving as it
                is.

        Raises:
            OSError: EBADF: the channel is closed. ENOTCONN: the peer has closed, on some systems.
        """
        self._end.check_open()
        self._sock.shutdown(how)

    def detach(self) -> socket.socket:
        """Hands over the socket to the caller, and closes the channel.

        No other thread may wait in a call of the channel: only the end of the connection wakes it,
        and so the socket would be shut down. After receive_fds=False the socket still refuses
        descriptors, where the kernel can (SO_PASSRIGHTS).

        Raises:
            ValueError: That would lose messages, or parts of them, that were received and not
                handed out, what unsent counts, or the rest of a send that is under way. Nothing has
                changed.
            OSError: EBADF: the channel is closed. EMFILE: the descriptor table is full, and nothing
                has changed.
        """
        self._end.check_empty()
        with socket.socket(self._sock.family) as closed:
            closed.settimeout(self._sock.gettimeout())
        # This comes first, so that no call of this channel uses the number of the descriptor later,
        # wherever a signal handler raises an exception. It may be the number of another file by
        # then.
        self._leave_socket()
        sock, self._sock = self._sock, closed
        return sock

    def close(self) -> None:
        """Closes the socket and every descriptor that was received and not handed out.

        Calling it again does nothing. What unsent counts is lost, and the peer sees a violation of
        the protocol: flush() first. A thread that waits in another call gets an OSError (EBADF).
        """
        self._leave_socket()
        self._sock.close()

    def _leave_socket(self) -> None:
        """Closes what was received. Afterwards no call uses the socket, and none is inside."""
        while lib.fdp_close_inbox(self._inbox) < 0:
            self._receivers.wait()
        while lib.fdp_close_outbox(self._outbox) < 0:
            self._senders.wait()
        # Wakes the other threads that wait, until none is left. If this thread is in the list, it
        # is in a signal handler that has interrupted a wait, which notices the close when it goes
        # on. While the interpreter shuts down, daemon threads do not run any more, so they never
        # leave the list.
        while {*self._waiting} - {threading.get_ident()} and not _is_finalizing():
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._receivers.wait()

    def __del__(self) -> None:
        """Closes with a ResourceWarning, unless it was closed."""
        if hasattr(self, "_sock") and not self.closed:
            try:
                # In a reference cycle the socket may be finalised first, and has warned then.
                if self._sock.fileno() >= 0:
                    warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self.fileno()}, peer pid={self._peer.pid}"
        return f"<Channel {state}>"


def open_connected(
    make: Callable[[socket.socket], Channel], sock: socket.socket, path: Path
) -> Channel:
    """The channel that make makes of sock, which is connected to path. After an exception sock is
    closed; the PermissionError for a peer that is not allowed has the path, as a connect's."""
    try:
        return make(sock)
    except BaseException as error:
        is_own = sock.fileno() < 0 and is_from(error, Channel.__init__)
        if isinstance(error, PermissionError) and is_own:
            error.filename = os.fspath(path)
        sock.close()
        raise


def end_of(channel: Channel) -> End:
    """What an event loop and the pool use of a channel. Borrowed."""
    return channel._end


def _after_fork() -> None:
    thread = threading.get_ident()
    for channel in [*_all]:
        lib.fdp_free_after_fork(channel._inbox, channel._outbox)
        channel._waiting[:] = [each for each in channel._waiting if each == thread]


os.register_at_fork(after_in_child=_after_fork)
