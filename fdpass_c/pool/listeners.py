"""Where a pool listens: TCP, Unix, and sockets that somebody else opened."""

import errno
import os
import socket
from typing import Any

from fdpass_c.unix import bind_unix

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


def inherit_listeners() -> list[socket.socket]:
    """The listening sockets that a service manager passed (LISTEN_FDS); the caller closes them.

    As sd_listen_fds(3): LISTEN_PID is this process and LISTEN_FDS counts the descriptors from 3
    on. The variables are removed and the descriptors made close-on-exec, so that no child takes
    them for its own. An empty list where nothing was passed.

    ValueError: LISTEN_FDS is no number. OSError: EBADF or ENOTSOCK for what is not a socket.
    """
    pid = os.environ.pop("LISTEN_PID", None)
    count = os.environ.pop("LISTEN_FDS", None)
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or count is None:
        return []
    listeners: list[socket.socket] = []
    try:
        for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
            os.set_inheritable(fd, False)
            listeners.append(socket.socket(fileno=fd))
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
