"""Listens and connects at a path: handles stale files, permissions, full backlogs and races."""

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
from fdpass_c.peer import check_unix
from fdpass_c.waiting import raw_fileno

Path = str | bytes | os.PathLike[str]

# Seconds between two tries to connect to a full backlog: selectors do not report that it has room.
_RETRY = 0.01

# The most bytes of a path. An abstract name can have one more, because it needs no NUL at its end.
_LONGEST = 107 if sys.platform == "linux" else 103

# PyPy's module os does not have this constant.
_O_PATH: int = getattr(os, "O_PATH", 0o10000000)


def as_address(path: Path) -> str | bytes:
    """Returns the path or abstract name in the form that socket.bind and connect take.

    ValueError: the path contains a NUL, at which the system would end it. FileNotFoundError: the
    path is empty; Linux would choose an abstract name for it. OSError: ENAMETOOLONG; the socket
    module would raise it without an errno.
    """
    address = os.fspath(path)
    name = os.fsencode(address)
    if not name:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), address)
    if b"\0" in name and not is_abstract(address):
        raise ValueError(f"a path cannot contain a NUL: {address!r}")
    longest = _LONGEST + is_abstract(address)
    if len(name) > longest:
        text = describe_errno(errno.ENAMETOOLONG, f"a socket's path has at most {longest} bytes")
        raise OSError(errno.ENAMETOOLONG, text, address)
    return address


def read_name(path: bytes) -> str | bytes:
    """Returns the address that the socket module shows for these bytes of a sun_path."""
    return path if path.startswith(b"\0") else os.fsdecode(path.split(b"\0", 1)[0])


def is_abstract(address: str | bytes) -> bool:
    """Whether address is a name in Linux's abstract namespace, and not a path."""
    return os.fsencode(address).startswith(b"\0")


@contextlib.contextmanager
def naming(name: str | bytes) -> Iterator[None]:
    """Adds the name, as filename, to the system's errors in the block."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = name
        raise


class SocketFile:
    """The file of a listening socket."""

    def __init__(self, path: Path) -> None:
        """Creates no file yet. Raises what as_address raises, and FileNotFoundError: the path is
        relative, and the current directory was removed."""
        self._address = as_address(path)
        # An absolute path, because the program may change its directory. It is not normalized,
        # because in a/../b, a may be a link.
        name = os.fsdecode(self._address)
        with naming(self._address):
            self._path = name if os.path.isabs(name) else os.path.join(os.getcwd(), name)
        self._identity: tuple[int, int] | None = None
        self._pid = os.getpid()

    def listen(self, sock: socket.socket, *, backlog: int, mode: int) -> None:
        """Binds sock, a new Unix socket, and listens.

        A stale socket file is replaced. mode: the permissions of the file, whatever the umask is;
        connecting needs write permission. Every error names the path, and leaves no file. OSError:
        EADDRINUSE: another socket listens there; others as for socket.bind. FileExistsError: there
        is a file at the path that is not a socket.
        """
        with naming(self._address), _locked(self._path):
            try:
                # Linux then creates the file with this mode, minus the umask. Other systems do not
                # allow it.
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
        """Removes the file, if it is still the same file. May be repeated.

        To be called before sock is closed: after that, another listener may replace the file. In a
        forked child this does nothing.
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
        with contextlib.suppress(FileNotFoundError):  # The file's owner has just removed it.
            identify(self._path)
            _check_stale(self._address)
            os.unlink(self._path)
        sock.bind(self._address)

    def _set_mode(self, mode: int) -> None:
        """Sets the permissions of the file, which the umask may have changed. No process can
        connect meanwhile, because the socket does not listen yet."""
        if stat.S_IMODE(os.lstat(self._path).st_mode) == mode:
            return
        if sys.platform != "linux":
            os.chmod(self._path, mode, follow_symlinks=False)
            return
        # Other users who can write to the directory may have put another file or a link there.
        flags = _O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        # With map, so that no signal handler can raise between the call and the assignment.
        (handle,) = map(os.open, (self._path,), (flags,))
        try:
            if _identify_socket(os.fstat(handle), self._path) != self._identity:
                text = "another file has replaced the new socket"
                raise FileExistsError(errno.EEXIST, text, self._path)
            os.chmod(f"/proc/self/fd/{handle}", mode)
        finally:
            os.close(handle)


def bind_unix(path: Path, *, backlog: int, mode: int = 0o600) -> socket.socket:
    """Returns a stream socket that listens at path. The caller closes it and unlinks path.

    For all else, see SocketFile.listen.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        SocketFile(path).listen(sock, backlog=backlog, mode=mode)
    except BaseException:
        sock.close()
        raise
    return sock


def check_listening(sock: socket.socket) -> None:
    """ValueError: sock does not listen. OSError: EAFNOSUPPORT: it is no Unix socket."""
    check_unix(raw_fileno(sock))
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError(f"the socket does not listen, call its listen(): {sock}")


def connect_unix(path: Path, timeout: float | None) -> socket.socket:
    """Returns a stream socket connected to the socket that listens at path. The caller closes it.

    timeout: how many seconds connecting may wait for room in the backlog. It is also the timeout of
    the returned socket. Errors are those of as_address and socket.connect, and name the path.
    TimeoutError: there was no room in time. BlockingIOError: there is no room, and timeout is 0.
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
    # If the backlog is full, Linux fails at once for a non-blocking socket, and otherwise waits
    # without a time limit.
    sock.setblocking(timeout is None)
    while True:
        # Not connect, because a signal handler may raise an exception that looks like one of its
        # errors. eventlet's returns None for 0.
        code = sock.connect_ex(address) or 0
        if code == 0 and _is_connected(sock):
            return
        if code == errno.EAGAIN and timeout != 0:
            left = _RETRY if until is None else until - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "timed out", address)
            time.sleep(min(_RETRY, left))
        elif code not in (0, errno.EINTR):  # After a signal, PyPy returns EINTR.
            text, explanation = os.strerror(code), _explain(code, address)
            raise OSError(code, f"{text}: {explanation}" if explanation else text, address)


def _is_connected(sock: socket.socket) -> bool:
    """Whether sock is connected. After a signal it is not, although connect_ex has returned 0:
    CPython assumes that the kernel goes on connecting."""
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


def _explain(code: int, address: str | bytes) -> str | None:
    """Returns what an error of connect says about the address, if its usual text does not tell."""
    if code == errno.EPROTOTYPE:
        return "a socket of another type is bound there"
    if code != errno.ECONNREFUSED:
        return None
    with contextlib.suppress(OSError):
        if not is_abstract(address) and not stat.S_ISSOCK(os.stat(address).st_mode):
            return "it is not a socket"
    if sys.platform == "linux":
        return "no process listens there"
    return "no process listens there, or its backlog is full"


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Holds a lock in the block. Without it, two listeners that start together could mistake each
    other's new socket for a stale one.

    The lock is a file that only this user can open, because others could hold it for ever. OSError:
    EADDRINUSE: another process holds the lock; others as for open.
    """
    name = path + ".lock"
    while True:
        try:
            # With map, so that no signal handler can raise between the call and the assignment.
            (lock,) = map(os.open, (name,), (_LOCK_FLAGS,), (0o600,))
        except BlockingIOError:  # Another process has a lease on the file.
            raise_oserror(errno.EADDRINUSE, _STARTING)
        try:
            if _try_lock(lock, name):
                try:
                    yield
                finally:
                    _remove_lock(lock, name)
                return
        except BaseException:
            # If a signal handler has raised this, the lock may be held, and its file still exist.
            with contextlib.suppress(OSError):
                if _try_lock(lock, name):
                    _remove_lock(lock, name)
            raise
        finally:
            os.close(lock)


# With O_NONBLOCK, open does not wait if there is a FIFO of this name, or a lease on the file.
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_STARTING = "another process is about to listen there"


def _try_lock(lock: int, name: str) -> bool:
    """Takes the lock. Returns False if the file no longer has this name, because another process
    has removed it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.lstat(name))
    except BlockingIOError:
        raise_oserror(errno.EADDRINUSE, _STARTING)
    except FileNotFoundError:
        return False


def _remove_lock(lock: int, name: str) -> None:
    # A file that is not empty belongs to other code, such as poetry.lock. In a sticky directory the
    # file may belong to another user, and then unlink fails.
    with contextlib.suppress(OSError):
        if os.fstat(lock).st_size == 0:
            os.unlink(name)


def identify(path: str) -> tuple[int, int]:
    """Returns the device and the inode of a socket file, by which it can be recognized later.

    FileExistsError: path is not a socket.
    """
    return _identify_socket(os.lstat(path), path)


def _identify_socket(found: os.stat_result, path: str) -> tuple[int, int]:
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a socket", path)
    return found.st_dev, found.st_ino


def _check_stale(address: str | bytes) -> None:
    """OSError: EADDRINUSE: another socket is bound there. Others: that cannot be found out."""
    # A datagram socket comes first, because a listener does not notice it, while it would accept a
    # stream socket. But a datagram socket does not always tell: one that is bound there and
    # connected refuses it with EPERM, and then the stream socket tells.
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            code = probe.connect_ex(address)
        if code in (0, errno.EPROTOTYPE, errno.EAGAIN):  # EAGAIN: a full backlog.
            raise_oserror(errno.EADDRINUSE, "another socket is bound there")
    if code != errno.ECONNREFUSED:
        raise_oserror(code, "cannot tell whether a process listens there")
