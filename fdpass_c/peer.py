"""Who is at the other end of a connected Unix socket."""

import errno
import socket
from typing import NamedTuple

from fdpass_c._native import ffi, lib
from fdpass_c.errors import raise_oserror
from fdpass_c.waiting import HasFileno, fileno


class Credentials(NamedTuple):
    """The peer as it was when it called connect, listen or socketpair (man 7 unix, SO_PEERCRED).

    The kernel vouches for all three, as far as this process can see them. pid is 0 where the peer's
    process is in a pid namespace that this one cannot see, and where the system does not tell it;
    it may since belong to another process, which is what peer_pidfd is for. In a user namespace
    every user that has no number there appears as 65534 (/proc/sys/kernel/overflowuid), and every
    such group: that number names nobody, so do not let it in by allow_uids.
    """

    pid: int
    uid: int
    gid: int


# socket.family builds an enum, ten times as slow as the slot below it.
_get_family = socket.SocketType.family.__get__
_AF_UNIX = int(socket.AF_UNIX)


def is_unix(fd: int, sock: int | HasFileno | None = None) -> bool:
    """Whether fd is a Unix domain socket; sock, if it is a socket.socket, tells it faster.

    OSError (ENOTSOCK, EBADF) where fd is no socket.
    """
    try:
        return bool(_get_family(sock) == _AF_UNIX)
    except TypeError:
        result = lib.fdp_check_family(fd)
    if result < 0 and result != -errno.EAFNOSUPPORT:
        raise_oserror(-result)
    return result == 0


def peer_credentials(sock: int | HasFileno) -> Credentials:
    """The credentials of a connected Unix socket's peer.

    OSError: ENOTCONN where there is no peer, ENOTSOCK or EBADF where there is no socket,
    EAFNOSUPPORT for a socket of another family.
    """
    fd = fileno(sock)
    peer = ffi.new("struct fdp_credentials *")
    result = lib.fdp_check_family(fd) or lib.fdp_read_peer(fd, peer)
    if result < 0:
        raise_oserror(-result)
    return Credentials(peer.pid, peer.uid, peer.gid)


def peer_pidfd(sock: int | HasFileno) -> int | None:
    """A pidfd of a connected Unix socket's peer, or None where the system has no SO_PEERPIDFD.

    The kernel has it since Linux 6.5. The caller owns the descriptor; it is close-on-exec, and
    readable once the peer has exited (man 2 pidfd_open), so it names the process without the
    races of a pid.

    OSError: as for peer_credentials; ESRCH, and EINVAL before Linux 6.16, where the peer is
    already gone and reaped.
    """
    fd = fileno(sock)
    result = lib.fdp_check_family(fd) or lib.fdp_open_peer(fd)
    if result in (-errno.ENOPROTOOPT, -errno.ENOTSUP):
        return None
    if result < 0:
        # Linux has another word for "no peer" here than everywhere else.
        raise_oserror(errno.ENOTCONN if result == -errno.ENODATA else -result)
    return result
