"""Listening sockets: TCP, Unix, and those that a service manager passed."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import Any

from fdpass_c.errors import raise_oserror
from fdpass_c.pool.log import logger
from fdpass_c.unix import bind_unix, identify, naming

Address = str | os.PathLike[str] | tuple[str, int]
"""Where to listen.

TCP: ("localhost", 80), "localhost:80" or "[::1]:80". A Unix socket: its path, as a str with a slash
in it or as a PathLike."""

_FIRST_INHERITED = 3
_MOST_DIGITS = 9


def open_listener(address: Address, backlog: int = 1024) -> socket.socket:
    """Opens a listening stream socket.

    An IPv6 socket takes no IPv4 connections, so one of each can listen at the same port. A Unix
    socket gets the mode 0600: only the same user can connect. A stale socket file is replaced.

    Args:
        address: Where to listen. The host is a name or an IPv4 or IPv6 address; an empty one means
            every IPv4 address. If a name has several addresses, only the system's first one is
            used: "localhost" may be only ::1. With port 0 the system chooses a free port.
        backlog: How many connections the kernel keeps until they are accepted. The kernel may have
            a lower limit (somaxconn).

    Returns:
        The socket. The caller owns it and closes it, and removes the file of a Unix socket.

    Raises:
        ValueError: address has none of the forms of Address.
        TypeError: address has another type.
        socket.gaierror: The host is unknown.
        FileExistsError: There is a file at the path, and it is not a socket.
        PermissionError: This user may not use the port, or write to the path's directory.
        OSError: EADDRINUSE: another socket listens there. Others as for socket.bind.
    """
    where = parse_address(address)
    if isinstance(where, str):
        return bind_unix(where, backlog=backlog)
    host, port = where
    with naming(host):
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)
    family, _, _, _, target = found[0]
    return socket.create_server(target, family=family, backlog=backlog)


class Mode:
    """Makes a borrowed socket non-blocking until restore().

    All processes that share the socket share this mode, which gettimeout() does not show.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeout = sock.gettimeout()
        self._blocking = os.get_blocking(sock.fileno())
        sock.setblocking(False)

    def restore(self) -> None:
        # Other code may have closed the socket, or only its descriptor.
        if (fd := self._sock.fileno()) >= 0:
            with contextlib.suppress(OSError):
                self._sock.settimeout(self._timeout)
                if not self._blocking:
                    os.set_blocking(fd, False)


@contextmanager
def opened(address: Address) -> Iterator[socket.socket]:
    """Opens a listener for a block. The end of the block closes the socket and removes its file."""
    with open_listener(address) as sock:
        if sock.family != socket.AF_UNIX:
            yield sock
            return
        path = os.path.abspath(sock.getsockname())
        file = identify(path)
        try:
            yield sock
        finally:
            _remove(path, file)


def _remove(path: str, file: tuple[int, int]) -> None:
    """Removes the file at path, unless another process has replaced it.

    To be called while the socket is open, because until then no other file can have its inode.
    """
    try:
        if identify(path) == file:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("cannot remove %s: %s", path, error.strerror)


def parse_address(address: Address) -> str | tuple[str, int]:
    """Returns a path, or a host and a port. Raises a ValueError for anything else."""
    if isinstance(address, tuple):
        if len(address) != 2:
            raise ValueError(f"not (HOST, PORT): {address!r}")
        # getaddrinfo would use the lowest 16 bits of the number, which are another port.
        if isinstance(address[1], int) and not 0 <= address[1] <= 65535:
            raise ValueError(f"a port is 0 to 65535: {address!r}")
        return address
    if not isinstance(address, str):
        if not isinstance(address, os.PathLike):
            kind = type(address).__name__
            raise TypeError(f"an address is HOST:PORT, a path or a socket, not {kind}")
        return os.fsdecode(address)
    if "/" in address:
        return address
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"not HOST:PORT, [IPV6]:PORT or a path with a slash: {address!r}")
    return host, int(port)


class InheritedSocket(socket.socket):
    """A socket that a service manager passed.

    Attributes:
        name: What the service manager calls it (FileDescriptorName=), or "unknown" if it gave no
            names.
    """

    __slots__ = ("name",)

    def __init__(self, fileno: int, name: str) -> None:
        super().__init__(fileno=fileno)
        self.name: str = name


def inherit_listeners() -> list[InheritedSocket]:
    """Takes the sockets that a service manager passed, as sd_listen_fds(3) does.

    They are the descriptors from 3 on. LISTEN_FDS counts them, LISTEN_FDNAMES names them, and
    LISTEN_PID must be the pid of this process. The variables are removed and the descriptors are
    made close-on-exec, so that no child process uses them. A second call returns nothing.

    Returns:
        The sockets, in the order of their numbers. The caller owns and closes them. A passed
            descriptor that is not a socket is not in the list, and stays open for the program. The
            list is empty if nothing was passed to this process.

    Raises:
        ValueError: LISTEN_FDS is not a number, or LISTEN_FDNAMES has a different number of names.
        OSError: EBADF: one of the descriptors is not open. The sockets before it are closed then.
    """
    pid = os.environ.pop("LISTEN_PID", None)
    count = os.environ.pop("LISTEN_FDS", None)
    given = os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count is None:
        return []
    if not count.isascii() or not count.isdigit() or len(count) > _MOST_DIGITS:
        raise ValueError(f"LISTEN_FDS is not a number of descriptors: {count!r}")
    names = given.split(":") if given else None
    if names is not None and len(names) != int(count):
        raise ValueError(f"LISTEN_FDNAMES does not name {count} descriptors: {given}")
    listeners: list[InheritedSocket] = []
    try:
        # repeat, and not a list of names: LISTEN_FDS may be a huge number.
        for fd, name in enumerate(names or repeat("unknown", int(count)), _FIRST_INHERITED):
            os.set_inheritable(fd, False)
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                listeners.append(InheritedSocket(fd, name))
    except BaseException as error:
        for listener in listeners:
            listener.close()
        if isinstance(error, OSError) and error.errno == errno.EBADF:
            raise_oserror(errno.EBADF, f"LISTEN_FDS is {count}, but {fd} is not open")
        raise
    return listeners


def check_listener(sock: socket.socket) -> None:
    """Raises a ValueError if sock does not listen, and an OSError (EBADF) if it is closed."""
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return  # macOS does not always know the option.
    if not listens:
        where = describe_listener(sock) or "no address"
        kind = sock.type.name
        raise ValueError(
            f"descriptor {sock.fileno()} ({where}, {kind}) does not listen for connections"
        )


def describe_listener(sock: socket.socket) -> str:
    """The address of sock, in the usual notation: an abstract name is @name."""
    name: Any = sock.getsockname()
    if isinstance(name, bytes):
        return "@" + name[1:].decode(errors="backslashreplace")
    if sock.family == socket.AF_INET6:
        host, port, _, scope = name
        return f"[{host}%{scope}]:{port}" if scope else f"[{host}]:{port}"
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
