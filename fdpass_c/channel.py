"""Channel: whole messages with any number of descriptors over a connected Unix socket."""

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Collection
from typing import Any

from fdpass_c.errors import NotCopied, raise_oserror
from fdpass_c.peer import Credentials, is_unix, peer_credentials, peer_pidfd
from fdpass_c.receiving import Receiving
from fdpass_c.sending import Sending
from fdpass_c.unix import connect_unix
from fdpass_c.waiting import raw_fileno

# Linux 6.16; Python has no name for it yet.
_SO_PASSRIGHTS = 83
# Of most of Linux's processors; Python has no name for it everywhere.
_SO_OOBINLINE = getattr(socket, "SO_OOBINLINE", 10)


class Channel(Sending, Receiving, NotCopied):
    """Passes whole messages, each a payload and descriptors, over a connected Unix socket.

    Messages arrive whole, in order and exactly once; payloads and descriptors of any size and
    number, up to what the receiver accepts; many small ones travel as one. The other end must
    be a Channel too, or speak docs/wire-format.md.

    Sending borrows descriptors: the caller still closes them, at once if it likes. Receiving
    gives their owner, a Descriptors or a Batch; all are close-on-exec. A context manager, and an
    iterator over (payload, fds) until the peer closes. It cannot be copied or pickled (TypeError).

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
    not handed out, and ends the connection; every later call raises the same ProtocolError.
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
        self._sock = sock
        self._fd = sock.fileno()
        self._start_sending()
        self._start_receiving(max_payload, max_fds, receive_fds)
        self._reader.wait = sock.gettimeout() is None

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

    def fileno(self) -> int:
        """The socket's descriptor, borrowed; -1 once closed."""
        return self._fd

    def gettimeout(self) -> float | None:
        """Seconds that a call waits in all; None for ever, 0 not at all."""
        return self._sock.gettimeout()

    def settimeout(self, timeout: float | None) -> None:
        """Sets what gettimeout returns."""
        self._sock.settimeout(timeout)
        self._reader.wait = timeout is None

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
            self._drop_all()
            self._fd = -1
            self._sock.close()

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            try:
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            finally:
                # Also where the warning is made an error.
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}, peer pid={self._peer.pid}"
        return f"<Channel {state}>"


def refuse_fds(sock: socket.socket) -> None:
    """Has the kernel refuse descriptors for sock in the sender's face, where it can."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
