"""Tells which process is at the other end of a connected Unix socket."""

import errno
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from fdpass_c._native import ffi, lib
from fdpass_c.errors import ENODATA, raise_oserror
from fdpass_c.waiting import HasFileno, fileno


class Credentials(NamedTuple):
    """The peer as it was when it called connect, listen or socketpair (man 7 unix, SO_PEERCRED).

    For both ends of a socket pair, the peer is the process that made the pair, even if other
    processes have the ends now.

    The kernel sets all three numbers, so a process cannot forge them. In a user namespace, every
    user and group without a number there appears as 65534 (/proc/sys/kernel/overflowuid). That
    number identifies no user: do not put it into allow_uids.

    Attributes:
        pid: The process id. It is 0 if the peer's pid namespace is not visible here, or if the
            system does not report it. By now, another process may have that number; peer_pidfd
            avoids this.
        uid: The effective user id.
        gid: The effective group id.
    """

    pid: int
    uid: int
    gid: int


# socket.family builds an enum, which takes ten times as long as reading the slot.
get_family: Callable[[Any], int] = socket.SocketType.family.__get__
AF_UNIX = int(socket.AF_UNIX)


def check_unix(fd: int, sock: int | HasFileno | None = None) -> None:
    """Checks that fd is a Unix domain socket. sock: the object to which fd belongs. If it is a
    socket.socket that was made as a Unix socket, no system call is needed.

    OSError: EAFNOSUPPORT: it is another socket. ENOTSOCK, EBADF: it is none.
    """
    try:
        if get_family(sock) == AF_UNIX:
            return
    except TypeError:
        pass
    # A socket object that was made from a descriptor may name another family than the descriptor
    # has.
    if (result := lib.fdp_check_family(fd)) < 0:
        raise_oserror(-result)


def peer_credentials(sock: int | HasFileno) -> Credentials:
    """Returns the credentials of a connected Unix socket's peer.

    Args:
        sock: A connected Unix domain socket.

    Raises:
        OSError: ENOTCONN: there is no peer. EAFNOSUPPORT: sock is a socket of another family.
            ENOTSOCK: it is no socket. EBADF: it is not open.
    """
    fd = fileno(sock)
    peer = ffi.new("struct fdp_credentials *")
    result = lib.fdp_check_family(fd) or lib.fdp_read_peer(fd, peer)
    if result < 0:
        raise_oserror(-result)
    return Credentials(peer.pid, peer.uid, peer.gid)


def peer_pidfd(sock: int | HasFileno) -> int | None:
    """Returns a pidfd of a connected Unix socket's peer (SO_PEERPIDFD, Linux 6.5).

    A pidfd names a process without the races of a pid. It becomes readable when the process has
    exited (man 2 pidfd_open), and is close-on-exec.

    Args:
        sock: A connected Unix domain socket.

    Returns:
        A descriptor, which the caller owns and closes, or None if the system has no SO_PEERPIDFD.

    Raises:
        OSError: As for peer_credentials. Before Linux 6.16 also EINVAL or ESRCH: the peer has
            exited and its parent has waited for it. Later kernels return a pidfd even then, which
            is readable at once.
    """
    fd = fileno(sock)
    result = lib.fdp_check_family(fd) or lib.fdp_open_peer(fd)
    if result in (-errno.ENOPROTOOPT, -errno.ENOTSUP):
        return None
    if result < 0:
        # For this option, Linux returns ENODATA if there is no peer, and not ENOTCONN.
        raise_oserror(errno.ENOTCONN if result == -ENODATA else -result)
    return result
