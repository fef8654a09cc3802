"""Where a pool listens: TCP, Unix, and sockets that somebody else opened."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fdpass_c.pool.log import logger
from fdpass_c.unix import bind_unix, identify

Address = str | os.PathLike[str] | tuple[str, int]
"""("localhost", 80), "localhost:80", "[::1]:80"; or the path of a Unix socket: a str with a slash
in it, or a PathLike."""

_FIRST_INHERITED = 3


def open_listener(address: Address, backlog: int = 1024) -> socket.socket:
    """A listening stream socket at address; the caller closes it, and unlinks a Unix path.

    The host is a name or an address of IPv4 or IPv6; an empty one means every IPv4 address. An
    IPv6 socket takes no IPv4 connections, so that both can listen at one port. backlog: how many
    connections the kernel keeps waiting; it may have a lower limit of its own (somaxconn).

    ValueError: address has none of the forms above. OSError as for socket.bind, and gaierror for
    an unknown name.
    """
    where = parse_address(address)
    if isinstance(where, str):
        return bind_unix(where, backlog=backlog)
    host, port = where
    found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)
    family, _, _, _, target = found[0]
    return socket.create_server(target[:2], family=family, backlog=backlog)


@contextmanager
def opened(address: Address) -> Iterator[socket.socket]:
    """open_listener's socket in the block; then it is closed, and its file removed."""
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
    """Somebody else may have removed it, and put another there. As long as its socket is open, no
    other file can have the same inode."""
    try:
        if identify(path) == file:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logger.warning("cannot remove %s: %s", path, error.strerror)


def parse_address(address: Address) -> str | tuple[str, int]:
    """A path, or host and port; ValueError for what is neither."""
    if isinstance(address, tuple):
        return address
    if not isinstance(address, str) or "/" in address:
        return os.fspath(address)
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

    name: what the manager calls it (FileDescriptorName=), "unknown" where it gave no names.
    """

    __slots__ = ("name",)

    def __init__(self, fileno: int, name: str) -> None:
        super().__init__(fileno=fileno)
        self.name = name


def inherit_listeners() -> list[InheritedSocket]:
    """The sockets that a service manager passed (LISTEN_FDS), with their names (LISTEN_FDNAMES);
    the caller closes them.

    As sd_listen_fds(3): LISTEN_PID is this process and LISTEN_FDS counts the descriptors from 3
    on. The variables are removed and the descriptors made close-on-exec, so that no child takes
    them for its own. What is no socket stays open, and is not in the list. An empty list where
    nothing was passed.

    ValueError: LISTEN_FDS is no number, or LISTEN_FDNAMES another number of names. OSError: EBADF
    for what is not open.
    """
    pid = os.environ.pop("LISTEN_PID", None)
    count = os.environ.pop("LISTEN_FDS", None)
    given = os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count is None:
        return []
    names = given.split(":") if given else ["unknown"] * int(count)
    if len(names) != int(count):
        raise ValueError(f"LISTEN_FDNAMES has not the names of {count} descriptors: {given}")
    listeners: list[InheritedSocket] = []
    try:
        for fd, name in enumerate(names, _FIRST_INHERITED):
            os.set_inheritable(fd, False)
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                listeners.append(InheritedSocket(fd, name))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def check_listener(sock: socket.socket) -> None:
    """ValueError where sock does not listen. OSError: EBADF where it is closed."""
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return  # macOS may not tell.
    if not listens:
        where = describe_listener(sock) or "no address"
        kind = sock.type.name
        raise ValueError(
            f"descriptor {sock.fileno()} ({where}, {kind}) does not listen for connections"
        )


def describe_listener(sock: socket.socket) -> str:
    """Its address as people write it."""
    name: Any = sock.getsockname()
    if sock.family == socket.AF_INET6:
        return f"[{name[0]}]:{name[1]}"
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else os.fsdecode(name)
