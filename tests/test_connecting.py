"""Connecting waits for a place in the backlog as long as it was told, whatever signals come."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fdpass_c import Channel, Listener
from support.channels import full_backlog
from support.marks import linux_only
from support.processes import fork
from support.threads import beside

pytestmark = linux_only

DGRAM = socket.SOCK_DGRAM


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_a_full_backlog(path: Path) -> None:
    """With a timeout it tries until the time is over; without waiting it says so at once."""
    with full_backlog(path):
        with pytest.raises(TimeoutError, match="timed out") as caught:
            Channel.connect(path, timeout=0.1)
        assert caught.value.errno == errno.ETIMEDOUT
        assert caught.value.filename == str(path)
        with pytest.raises(BlockingIOError):
            Channel.connect(path, timeout=0)


@pytest.mark.parametrize("timeout", [30, None])
def test_a_place_that_becomes_free(timeout: "float | None", path: Path) -> None:
    """As soon as there is a place it is taken."""
    connected = []
    with full_backlog(path) as (listener, waiting):
        with beside(lambda: connected.append(Channel.connect(path, timeout=timeout))):
            for _ in range(waiting + 1):
                listener.accept().close()
        with connected[0] as client:
            assert client.gettimeout() == timeout


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [30, None])
def test_signals_while_it_waits(timeout: "float | None", path: Path) -> None:
    """A handler that returns leaves it waiting; what it returns is connected."""
    reader, writer = os.pipe()
    with full_backlog(path) as (listener, waiting), open(reader, "rb") as interrupted:
        pid = fork()
        if pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGALRM, lambda *_: os.write(writer, b"x"))
                signal.setitimer(signal.ITIMER_REAL, 0.05, 0.01)
                channel = Channel.connect(path, timeout=timeout)
                signal.setitimer(signal.ITIMER_REAL, 0)
                channel.send(b"connected")
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        assert interrupted.read(3) == b"xxx"
        for _ in range(waiting):
            listener.accept().close()
        listener.settimeout(30)
        with listener.accept() as server:
            assert server.recv()[0] == b"connected"
        assert os.waitpid(pid, 0)[1] == 0


on_cpython = pytest.mark.skipif(sys.implementation.name != "cpython", reason="a limit of CPython")


@pytest.mark.parametrize(
    "timeout", [-1, float("nan"), pytest.param(1e30, marks=on_cpython), "soon"]
)
def test_wrong_timeouts(timeout: object, path: Path) -> None:
    """What is no time is refused before anybody is reached."""
    with Listener(path) as listener:
        with pytest.raises((ValueError, OverflowError, TypeError)):
            Channel.connect(path, timeout=timeout)  # type: ignore[arg-type]
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_errors_name_the_path(path: Path) -> None:
    """What cannot be reached is named, as it was given, with what is wrong with it."""
    path.with_name("file").touch()
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX, DGRAM) as datagrams:
        stale.bind(str(path.with_name("stale")))
        datagrams.bind(str(path.with_name("datagrams")))
        for name, code, text in (
            ("missing", errno.ENOENT, "No such file or directory"),
            ("", errno.ECONNREFUSED, "Connection refused: it is not a socket"),
            ("file", errno.ECONNREFUSED, "Connection refused: it is not a socket"),
            ("file/socket", errno.ENOTDIR, "Not a directory"),
            ("stale", errno.ECONNREFUSED, "Connection refused: no process listens there"),
            ("datagrams", errno.EPROTOTYPE, ".*: a socket of another type is bound there"),
            ("x" * 200, errno.ENAMETOOLONG, "File name too long: .* at most 10[37] bytes"),
        ):
            where = path.parent / name
            for given in (where, os.fsencode(where)):
                with pytest.raises(OSError, match=f"{text}: b?'") as caught:
                    Channel.connect(given)
                assert (caught.value.errno, caught.value.filename) == (code, os.fspath(given))


def test_errors_name_the_abstract_name() -> None:
    """So does what is wrong with a name that is no path."""
    name = f"\0{os.getpid()}-{threading.get_ident()}"
    with pytest.raises(ConnectionRefusedError, match="no process listens there") as caught:
        Channel.connect(name)
    assert caught.value.filename == name
    with pytest.raises(OSError, match="at most 108 bytes") as too_long:
        Listener("\0" + "x" * 108)
    assert too_long.value.errno == errno.ENAMETOOLONG
    longest = name.ljust(108, "x")
    with Listener(longest), pytest.raises(OSError, match="in use") as in_use:
        Listener(longest)
    assert in_use.value.filename == longest


PATHS = """
import sys
from fdpass_c import Channel, Listener

for path in (sys.argv[1], sys.argv[1].encode(), "\\0" + sys.argv[1], b"\\0" + sys.argv[1].encode()):
    with Listener(path) as listener, Channel.connect(path), listener.accept():
        pass
"""


@pytest.mark.thread_unsafe
def test_where_comparing_bytes_with_text_is_an_error(path: Path) -> None:
    """Paths and abstract names, as text and as bytes, under python -bb."""
    subprocess.run([sys.executable, "-bb", "-c", PATHS, str(path)], check=True)
