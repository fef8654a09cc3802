"""The kernel vouches for who is at the other end."""

import errno
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

import fdpass_c
from support.descriptors import Keep
from support.marks import linux_only
from support.processes import fork
from support.sockets import Pair

QUESTIONS: list[Callable[[socket.socket], object]] = [
    fdpass_c.peer_credentials,
    fdpass_c.peer_pidfd,
]


def open_pidfd(sock: socket.socket) -> int:
    """peer_pidfd where there is one."""
    pidfd = fdpass_c.peer_pidfd(sock)
    if pidfd is None:
        pytest.skip("no SO_PEERPIDFD")
    return pidfd


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, int]]:
    """A connection to a forked process that waits for its end, and that process's pid."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("server")
        server.listen()
        pid = fork()
        if pid == 0:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                    client.connect("server")
                    client.recv(1)
            finally:
                os._exit(7)
        connection, _ = server.accept()
        with connection:
            yield connection, pid


def test_own_credentials(stream: Pair) -> None:
    """The peer of a socketpair is the process that made it."""
    peer = fdpass_c.peer_credentials(stream[0])
    assert peer == (os.getpid(), os.geteuid(), os.getegid())
    assert peer == fdpass_c.Credentials(pid=peer.pid, uid=peer.uid, gid=peer.gid)


@pytest.mark.thread_unsafe
def test_credentials_of_another_process(child: tuple[socket.socket, int]) -> None:
    """The peer is the process that connected, also for an int as the socket."""
    connection, pid = child
    wanted = (pid, os.geteuid(), os.getegid())
    assert fdpass_c.peer_credentials(connection) == wanted
    assert fdpass_c.peer_credentials(connection.fileno()) == wanted
    connection.close()
    os.waitpid(pid, 0)


@pytest.mark.thread_unsafe
def test_credentials_outlive_the_process(child: tuple[socket.socket, int]) -> None:
    """They are those of the time of the connection, whatever became of the peer."""
    connection, pid = child
    connection.shutdown(socket.SHUT_WR)
    os.waitpid(pid, 0)
    assert fdpass_c.peer_credentials(connection).pid == pid


@pytest.mark.thread_unsafe
@linux_only
@pytest.mark.skipif(not hasattr(os, "P_PIDFD"), reason="PyPy cannot wait for a pidfd")
def test_pidfd(child: tuple[socket.socket, int], keep: Keep) -> None:
    """The pidfd names the peer, is close-on-exec, and becomes readable when the peer exits."""
    connection, pid = child
    (pidfd,) = keep([open_pidfd(connection)])
    assert not os.get_inheritable(pidfd)
    assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    assert select.select([pidfd], [], [], 0) == ([], [], [])
    connection.shutdown(socket.SHUT_WR)
    assert select.select([pidfd], [], []) == ([pidfd], [], [])
    exited = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert exited is not None
    assert (exited.si_pid, exited.si_status) == (pid, 7)


@pytest.mark.thread_unsafe
@linux_only
def test_pidfd_of_a_process_that_was_reaped(child: tuple[socket.socket, int], keep: Keep) -> None:
    """A peer that is gone is an OSError, or on newer kernels a pidfd that is readable at once."""
    connection, pid = child
    keep([open_pidfd(connection)])
    connection.shutdown(socket.SHUT_WR)
    os.waitpid(pid, 0)
    try:
        (pidfd,) = keep([open_pidfd(connection)])
    except OSError as error:
        assert error.errno in (errno.ESRCH, errno.EINVAL)  # noqa: PT017
    else:
        assert select.select([pidfd], [], [], 0) == ([pidfd], [], [])


@pytest.mark.skipif(sys.platform == "linux", reason="Linux has pidfds")
def test_no_pidfd(stream: Pair) -> None:
    """A system without pidfds answers None."""
    assert fdpass_c.peer_pidfd(stream[0]) is None


def test_unconnected() -> None:
    """A socket without a peer is ENOTCONN."""
    for ask, kind in product(QUESTIONS, (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
        with socket.socket(socket.AF_UNIX, kind) as sock, pytest.raises(OSError) as caught:  # noqa: PT011
            ask(sock)
        assert caught.value.errno == errno.ENOTCONN


def test_network_socket() -> None:
    """A socket of another family is EAFNOSUPPORT."""
    for ask in QUESTIONS:
        with socket.socket() as sock, pytest.raises(OSError, match="Unix") as caught:
            ask(sock)
        assert caught.value.errno == errno.EAFNOSUPPORT
