"""Listening and connecting at a path: stale files, permissions, full backlogs, races."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator

from fdpass_c.errors import describe_errno, raise_oserror
from fdpass_c.peer import is_unix
from fdpass_c.waiting import raw_fileno

Path = str | bytes | os.PathLike[str]

# Seconds between two tries to connect to a full backlog: selectors do not report that it has room.
_RETRY = 0.01

# Bytes of a path; an abstract name has no NUL at its end.
_LONGEST = 107 if sys.platform == "linux" else 103

# PyPy has no name for it.
_O_PATH: int = getattr(os, "O_PATH", 0o10000000)


def as_address(path: Path) -> str | bytes:
    """The path or abstract name, as socket.bind and connect take it.

    ValueError: a NUL in a path, where the system would end it. FileNotFoundError: an empty path,
    for which Linux would choose an abstract name. OSError: ENAMETOOLONG, which the socket module
    would raise without an errno.
    """
    address = os.fspath(path)
    name = os.fsencode(address)
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address)
    if b"\0" in name and not is_abstract(address):
        raise ValueError(f"a path cannot contain a NUL: {address!r}")
    longest = _LONGEST + is_abstract(address)
    if len(name) > longest:
        text = describe_errno(errno.ENAMETOOLONG, f"a socket's has at most {longest} bytes")
        raise OSError(errno.ENAMETOOLONG, text, address)
    return address


def read_name(path: bytes) -> str | bytes:
    """The address that the socket module shows for a sun_path of that length."""
    return path if path.startswith(b"\0") else os.fsdecode(path.split(b"\0", 1)[0])


def is_abstract(address: str | bytes) -> bool:
    """Whether it is a name in Linux's abstract namespace, and no file."""
    return address[:1] in ("\0", b"\0")


@contextlib.contextmanager
def naming(address: str | bytes) -> Iterator[None]:
    """Errors of the system in the block have the address in them, as their filename."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = address
        raise


class SocketFile:
    """The file of a listening socket."""

    def __init__(self, path: Path) -> None:
        """Makes nothing yet. Errors as for as_address."""
        self._address = as_address(path)
        # The program may change its directory. Not normalized: in a/../b, a may be a link.
        name = os.fsdecode(self._address)
        self._path = name if os.path.isabs(name) else os.path.join(os.getcwd(), name)
        self._identity: tuple[int, int] | None = None
        self._pid = os.getpid()

    def listen(self, sock: socket.socket, *, backlog: int, mode: int) -> None:
        """Binds sock, a new Unix socket, and listens.

        A stale socket file is replaced. mode: the permissions of the file, whatever the umask;
        connecting needs write permission. OSError: EADDRINUSE if another socket listens,
        FileExistsError if the path is not a socket; as for socket.bind; each with the path in it.
        No file is left then.
        """
        with naming(self._address), _locked(self._path):
            try:
                # Linux creates the file with this mode, less the umask; other systems refuse.
                with contextlib.suppress(OSError):
                    os.fchmod(sock.fileno(), mode)
                self._bind(sock)
                self._identity = identify(self._path)
                self._set_mode(mode)
                sock.listen(backlog)
            except BaseException:
                if self._identity is None and sock.getsockname():
                    with contextlib.suppress(OSError):
                        self._identity = identify(self._path)
                self.remove()
                raise

    def remove(self) -> None:
        """Removes the file, if it is still the same, before sock closes. May be repeated.

        After sock closes, another listener may replace the file. In a forked child it does nothing.
        """
        if self._identity is not None and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                if identify(self._path) == self._identity:
                    os.unlink(self._path)
        self._identity = None

    def _bind(self, sock: socket.socket) -> None:
        try:
            sock.bind(self._address)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        with contextlib.suppress(FileNotFoundError):  # Its owner has just removed it.
            identify(self._path)
            _check_stale(self._address)
            os.unlink(self._path)
        sock.bind(self._address)

    def _set_mode(self, mode: int) -> None:
        """Adds the permissions that the umask removed. Before listen, no process can connect."""
        if stat.S_IMODE(os.lstat(self._path).st_mode) == mode:
            return
        if sys.platform != "linux":
            os.chmod(self._path, mode, follow_symlinks=False)
            return
        # Other users who can write to the directory may have put another file or a link there.
        flags = _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        (handle,) = map(os.open, (self._path,), (flags,))  # As in _locked.
        try:
            if _identify_socket(os.fstat(handle), self._path) != self._identity:
                raise FileExistsError(errno.EEXIST, "has replaced the new socket", self._path)
            os.chmod(f"/proc/self/fd/{handle}", mode)
        finally:
            os.close(handle)


def bind_unix(path: Path, *, backlog: int, mode: int = 0o600) -> socket.socket:
    """A stream socket that listens at path; the caller closes it and unlinks path.

    The rest as for SocketFile.listen.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        SocketFile(path).listen(sock, backlog=backlog, mode=mode)
    except BaseException:
        sock.close()
        raise
    return sock


def check_listening(sock: socket.socket) -> None:
    """ValueError if sock does not listen; OSError: EAFNOSUPPORT if it is no Unix socket."""
    if not is_unix(raw_fileno(sock)):
        raise_oserror(errno.EAFNOSUPPORT)
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"the socket does not listen: {sock}")


def connect_unix(path: Path, timeout: float | None) -> socket.socket:
    """A stream socket connected to the socket that listens at path; the caller closes it.

    timeout: seconds for connecting, which waits for a place in the backlog, and then the socket's
    timeout. OSError as for socket.connect, with the path in it; TimeoutError if there was no place
    in time, BlockingIOError if there is none and timeout is 0. ValueError as for as_address.
    """
    address = as_address(path)
    if timeout is not None and not timeout >= 0:  # PyPy's settimeout takes NaN.
        raise ValueError(f"timeout is {timeout}, not a number of seconds from 0 on")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        _connect(sock, address, timeout)
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, address: str | bytes, timeout: float | None) -> None:
    until = None if timeout is None else time.monotonic() + timeout
    # Linux either fails immediately if the backlog is full, or waits without a time limit.
    sock.setblocking(timeout is None)
    while True:
        # Not connect: a signal handler may raise what would look like one of its errors.
        code = sock.connect_ex(address)
        if code == 0 and _is_connected(sock):
            return
        if code == errno.EAGAIN and timeout != 0:
            left = _RETRY if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "timed out", address)
            time.sleep(min(_RETRY, left))
        elif code not in (0, errno.EINTR):  # PyPy does not repeat a connect_ex.
            text, explanation = os.strerror(code), _explain(code, address)
            raise OSError(code, f"{text}: {explanation}" if explanation else text, address)


def _is_connected(sock: socket.socket) -> bool:
    """False after a signal: CPython assumes that a connect continues by itself."""
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


def _explain(code: int, address: str | bytes) -> str | None:
    """What the failure of a connect says about the address, if that needs to be said."""
    if code == errno.EPROTOTYPE:
        return "a socket of another type is bound there"
    if code != errno.ECONNREFUSED:
        return None
    with contextlib.suppress(OSError):
        if not is_abstract(address) and not stat.S_ISSOCK(os.stat(address).st_mode):
            return "it is not a socket"
    return "no process listens there"


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Two listeners that start together must not mistake each other's new socket for a stale one.

    The lock is a file that only this user can open: others could hold it for ever.
    OSError: EADDRINUSE if another holds it; as for open.
    """
    name = path + ".lock"
    while True:
        try:
            # With map, so that no signal handler can raise between the call and the assignment.
            (lock,) = map(os.open, (name,), (_LOCK_FLAGS,), (0o600,))
        except BlockingIOError:  # Another process has a lease on it.
            raise_oserror(errno.EADDRINUSE, _SOMEBODY_STARTS)
        try:
            if _try_lock(lock, name):
                try:
                    yield
                finally:
                    _remove_lock(lock, name)
                return
        except BaseException:
            # A signal handler may have raised it when the lock was taken, and not removed yet.
            with contextlib.suppress(OSError):
                if _try_lock(lock, name):
                    _remove_lock(lock, name)
            raise
        finally:
            os.close(lock)


# O_NONBLOCK: open waits neither for a FIFO in place of the file nor for a lease.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_SOMEBODY_STARTS = "another process is about to listen there"


def _try_lock(lock: int, name: str) -> bool:
    """False if the file no longer has this name, because its owner removed it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.lstat(name))
    except BlockingIOError:
        raise_oserror(errno.EADDRINUSE, _SOMEBODY_STARTS)
    except FileNotFoundError:
        return False


def _remove_lock(lock: int, name: str) -> None:
    # One that is not empty is other code's (poetry.lock), and in a sticky directory it may be
    # another user's.
    with contextlib.suppress(OSError):
        if os.fstat(lock).st_size == 0:
            os.unlink(name)


def identify(path: str) -> tuple[int, int]:
    """The device and inode of a socket file: whether it is still the one that was bound.

    FileExistsError if path is not a socket.
    """
    return _identify_socket(os.lstat(path), path)


def _identify_socket(found: os.stat_result, path: str) -> tuple[int, int]:
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", path)
    return found.st_dev, found.st_ino


def _check_stale(address: str | bytes) -> None:
    """OSError: EADDRINUSE if another socket is bound there, others if that cannot be told."""
    # Who listens there would accept a stream socket, and does not notice a datagram socket. The
    # latter cannot always tell: one that is bound and connected refuses it (EPERM).
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            code = probe.connect_ex(address)
        if code in (0, errno.EPROTOTYPE, errno.EAGAIN):  # EAGAIN: a full backlog.
            raise_oserror(errno.EADDRINUSE, "another socket is bound there")
    if code != errno.ECONNREFUSED:
        raise_oserror(code, "cannot tell whether a process listens there")
