"""Listener: accepts channels at a named Unix socket."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Collection, Iterator
from functools import partial

from fdpass_c._native import lib
from fdpass_c.channel import Channel
from fdpass_c.errors import raise_oserror
from fdpass_c.options import (
    DEFAULT_MAX_FDS,
    DEFAULT_MAX_PAYLOAD,
    check_int,
    check_options,
    refuse_fds,
)
from fdpass_c.owning import Closing
from fdpass_c.turns import LOOK_AGAIN, while_listed
from fdpass_c.unix import Path, SocketFile, as_address, check_listening, is_abstract, naming
from fdpass_c.waiting import READABLE, Deadline, is_from

# The errors of an accept after close(), and of one that close() has woken.
_CLOSED = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}


class Listener(Closing):
    """Listens at a path, or takes a socket that listens, and accepts channels.

    It is a context manager, whose exit calls close(). Iterating over it accepts for ever.
    """

    def __init__(
        self,
        address: Path | socket.socket,
        *,
        backlog: int = 128,
        mode: int = 0o600,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> None:
        """Binds a new socket and listens, or takes ownership of one that listens.

        A stale socket file, to which no open socket is bound, is replaced. During this check, a
        lock file exists beside the socket file. Its name is the path with .lock at the end. If
        there is a file of that name that is not empty, it is locked, but not changed or removed.
        After an exception no new file is left.

        Args:
            address: The path of the socket file, or a name in Linux's abstract namespace: a NUL
                followed by the name. An abstract name has no permissions: use allow_uids. It can
                also be a listening Unix socket of the type SOCK_STREAM or SOCK_SEQPACKET, for
                instance from systemd or from another process. Then backlog and mode have no effect,
                and the socket's file is not removed.
            backlog: How many connections may wait to be accepted.
            mode: The permissions of the file, 0 to 0o777. Connecting needs write permission (man 7
                unix). By default 0o600: only this user can connect.
            max_payload: As for Channel, for each accepted channel.
            max_fds: As for Channel, for each accepted channel.
            allow_uids: As for Channel, for each accepted channel. Credentials explains users in a
                user namespace.
            receive_fds: As for Channel, for each accepted channel.

        Raises:
            OSError: EADDRINUSE: another socket is bound at the path, or is about to be.
                ENAMETOOLONG: the path has more than 107 bytes, or 103 on systems other than Linux.
                EAFNOSUPPORT: the socket is of another family. Others as for socket.bind.
            FileExistsError: There is a file at the path, and it is not a socket.
            ValueError: The path contains a NUL, the socket does not listen, mode is not in 0 to
                0o777, or a limit is negative or too large.
            TypeError: An option has the wrong type.
        """
        check_options(max_payload, max_fds, allow_uids, receive_fds)
        if not 0 <= check_int("mode", mode) <= 0o777:
            raise ValueError(f"mode is {mode:#o}, which is not in 0 to 0o777: 600 is not 0o600")
        self._make_channel = partial(
            Channel,
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        self._file: SocketFile | None = None
        self._pid = os.getpid()
        self._waiting: list[int] = []
        self._closed = False
        if isinstance(address, socket.socket):
            check_listening(address)
            self._sock = address
            self._start(receive_fds)
            return
        name = as_address(address)
        if not is_abstract(name):
            self._file = SocketFile(name)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._start(receive_fds)
            if self._file is None:
                with naming(name):
                    self._sock.bind(name)
                    self._sock.listen(backlog)
            else:
                self._file.listen(self._sock, backlog=backlog, mode=mode)
        except BaseException:
            self.close()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise_oserror(errno.EBADF, "the listener is closed")

    def _start(self, receive_fds: bool) -> None:
        self.settimeout(None)
        if not receive_fds:
            # Accepted sockets inherit this option, so even descriptors that a peer sends before
            # accept() are refused.
            refuse_fds(self._sock)

    def accept(self) -> Channel:
        """Waits for the next connection and returns its Channel, which the caller owns and closes.

        A peer whose user is not in allow_uids is disconnected. Then accept waits for the next one,
        within the listener's timeout.

        Raises:
            TimeoutError: The listener's timeout is over.
            BlockingIOError: The timeout is 0, and no peer has connected, or only one that was
                disconnected.
            OSError: EBADF: the listener is closed. Others as for socket.accept.
        """
        try:
            return while_listed(self._waiting, threading.get_ident(), self._accept)
        except OSError as error:
            if self._closed and error.errno in _CLOSED:
                raise_oserror(errno.EBADF, "the listener is closed")
            raise

    def _accept(self) -> Channel:
        # If close() has read the list of waiting threads before this one was in it, it wakes none.
        self._check_open()
        # In a forked child, close() wakes no thread, because a shutdown would end the parent's
        # listening. So threads check now and then whether the listener is closed.
        looks = self._pid != os.getpid() and threading.active_count() > 1
        deadline = Deadline(self, READABLE, at_most=LOOK_AGAIN if looks else None)
        while True:
            try:
                # Another process that shares the socket may have made it blocking.
                if looks or self._timeout is not None:
                    self._sock.setblocking(False)
                sock, _ = self._sock.accept()
            except BlockingIOError as error:
                if not is_from(error, self._sock.accept):
                    raise
                if lib.fdp_try_find_shut_down(self._sock.fileno()):
                    raise_oserror(errno.EINVAL)  # A blocking accept fails with the same error.
                deadline.handle(errno.EAGAIN)
                continue
            try:
                sock.settimeout(None)
                return self._make_channel(sock)
            except PermissionError as error:
                # Channel closes a socket that allow_uids refuses. Otherwise the error comes from a
                # security module or a signal handler.
                if sock.fileno() >= 0 or not is_from(error, Channel.__init__):
                    sock.close()
                    raise
                if self._timeout is not None:
                    deadline.handle(errno.EAGAIN)
            except BaseException:
                sock.close()
                raise

    def __iter__(self) -> Iterator[Channel]:
        """Accepts for ever."""
        while True:
            yield self.accept()

    def fileno(self) -> int:
        """Returns the descriptor, which the listener still owns, or -1 after close()."""
        return self._sock.fileno()

    def gettimeout(self) -> float | None:
        """Returns how many seconds accept() waits in all: None means for ever, 0 not at all."""
        return self._timeout

    def settimeout(self, timeout: float | None) -> None:
        """Sets how many seconds accept() waits in all. Accepted channels start without a timeout.

        Args:
            timeout: None waits for ever, 0 does not wait.

        Raises:
            ValueError: timeout is negative.
            OSError: EBADF: the listener is closed.
        """
        self._check_open()
        self._sock.settimeout(timeout)
        # accept() waits by itself, because only it knows how much of the timeout is left.
        self._sock.setblocking(timeout is None)
        self._timeout = timeout

    def setblocking(self, flag: bool) -> None:
        """Sets whether accept() waits: True for ever, False not at all.

        Raises:
            OSError: EBADF: the listener is closed.
        """
        self.settimeout(None if flag else 0)

    def detach(self) -> socket.socket:
        """Hands over the listening socket to the caller, and closes the listener.

        The socket has the listener's timeout. Its file stays, and peers that connect wait until a
        program accepts from the socket. No other thread may be waiting in accept(), because it
        could still take a connection. If the listener was made with receive_fds=False, and the
        kernel can refuse descriptors (SO_PASSRIGHTS), the socket and those that it accepts still
        refuse them.

        Raises:
            OSError: EBADF: the listener is closed.
        """
        self._check_open()
        own = self._sock
        sock = socket.socket.__new__(socket.socket)
        try:
            sock.__init__(own.family, own.type, own.proto, own.fileno())  # type: ignore[misc]
            sock.settimeout(self._timeout)
            own.detach()
        except BaseException:
            # The listener still owns the descriptor, unless detach() has succeeded.
            if own.fileno() >= 0:
                socket.socket.detach(sock)
            raise
        self._file = None
        self._closed = True
        return sock

    @property
    def closed(self) -> bool:
        """Whether close() or detach() was called."""
        return self._closed

    def close(self) -> None:
        """Stops listening, and removes the socket file that it made unless another has replaced it.

        Calling it again does nothing. A thread that waits in accept() gets an OSError (EBADF). To
        wake it, the socket is shut down, which also affects other processes that have it. In a
        forked child, close() only closes the child's copy, and the parent goes on listening.
        """
        self._closed = True
        if self._file is not None:
            self._file.remove()
        others = {*self._waiting} - {threading.get_ident()}
        if others and self._pid == os.getpid():
            # On Linux, closing alone does not wake a thread that waits in accept().
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self.fileno()}, at {self._sock.getsockname()!r}"
        return f"<Listener {state}>"
