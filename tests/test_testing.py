"""fdpass_c.testing does what docs/testing.md says of it."""

import contextlib
import errno
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, FdpassError, Listener
from fdpass_c.testing import (
    ATTACKS,
    full_table,
    hostile_peers,
    interrupted,
    list_fds,
    no_leak,
    shorten,
)
from support.processes import run_in_child
from support.signals import Interruption, handling, interrupt
from support.sockets import Pair
from support.threads import beside

FAILURES = """
import os, socket

def test_fails():
    kept = socket.socket()
    fd = os.open(os.devnull, os.O_RDONLY)
    assert not kept

def test_next(no_fd_leak):
    pass

def test_fails_too(no_fd_leak):
    kept = socket.socket()
    assert not kept
"""

LEAKS = """
import os, socket

def test_leaks():
    global kept
    kept = socket.socket()

def test_fine(no_fd_leak):
    os.close(os.open(os.devnull, os.O_RDONLY))

def test_asks(no_fd_leak):
    os.open(os.devnull, os.O_RDONLY)
"""


def run_pytest(folder: Path, *options: str, installed: bool = False, tests: str = LEAKS) -> str:
    """installed: as pytest finds the plugin by itself, with all others, which are slow to load."""
    (folder / "test_leaks.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    environment = dict(os.environ)
    if not installed or "fdpass_c_pytest" not in sys.modules:  # Perhaps it is only found.
        command += ["-p", "fdpass_c_pytest"]
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    done = subprocess.run(
        [*command, str(folder), *options],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.thread_unsafe
def test_off_unless_asked_for(tmp_path: Path) -> None:
    """Installed, the plugin fails only the tests that ask for it by the fixture's name."""
    output = run_pytest(tmp_path, installed=True)
    assert "3 passed, 1 error" in output
    assert "left open" in output
    assert "null" in output


@pytest.mark.thread_unsafe
@pytest.mark.skipif(find_spec("_tracemalloc") is None, reason="PyPy has no tracemalloc")
def test_says_where(tmp_path: Path) -> None:
    """With the option every test that leaks fails, and the text says who opened what, and where."""
    # What -X tracemalloc=5 does, but only when all is imported, which it makes slow.
    tests = LEAKS + "import tracemalloc\ntracemalloc.start(5)\n"
    output = run_pytest(tmp_path, "--no-fd-leak", tests=tests)
    assert "3 passed, 2 errors" in output
    assert "is held by <socket.socket" in output
    assert 'test_leaks.py", line 6' in output
    # Nothing of this package, which is not at fault.
    assert "fdpass_c_pytest.py" not in output
    assert "During handling of the above exception" not in output


@pytest.mark.thread_unsafe
def test_loads_in_an_older_pytest() -> None:
    """What pytest 7 has added is not needed, so that no older one fails because of the plugin."""
    script = "import pytest; del pytest.Parser; import fdpass_c_pytest"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.thread_unsafe
def test_what_a_failed_test_held(tmp_path: Path) -> None:
    """What only the traceback of a failed test keeps open is no leak, and the next test did not
    close it; a descriptor that no object owns is a leak."""
    output = run_pytest(tmp_path, tests=FAILURES)
    assert "2 failed, 1 passed in" in output
    output = run_pytest(tmp_path, "--no-fd-leak", tests=FAILURES)
    assert "2 failed, 1 passed, 1 error" in output
    assert "left open" in output
    assert "socket:[" not in output


@pytest.mark.thread_unsafe
def test_full_table() -> None:
    """So many descriptors may be opened, and no more; afterwards all is as before."""

    def child(free: int) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        with no_leak(), full_table(free):
            fds = [os.dup(0) for _ in range(free)]
            with pytest.raises(OSError, match="Too many open files") as caught:
                os.dup(0)
            assert caught.value.errno == errno.EMFILE
            fdpass_c.close_fds(fds)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

    for free in (0, 1, 5):
        run_in_child(partial(child, free))


@pytest.mark.thread_unsafe
def test_full_table_of_a_program_that_closes_all() -> None:
    """A block that closes every descriptor, as daemons do, leaves the limit as it was before."""

    def child() -> None:
        before, limits = list_fds(), resource.getrlimit(resource.RLIMIT_NOFILE)
        with full_table():
            fdpass_c.close_fds([*list_fds().keys() - before.keys()])
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
        assert list_fds() == before

    run_in_child(child)


@pytest.mark.thread_unsafe
def test_looks_into_a_full_table() -> None:
    """A full table has no room for the directory that lists it, and yet a leak is named."""

    def child() -> None:
        zero, null = os.open("/dev/zero", os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
        before = list_fds()
        with full_table():
            assert before.items() <= list_fds().items()
            with pytest.raises(AssertionError, match=r"left open: .*zero"), no_leak():
                os.dup2(zero, null)
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with no_leak():
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))

    run_in_child(child)


def test_shorten(stream: Pair) -> None:
    """A long transfer leaves in several pieces, and arrives whole."""
    shorten(stream[0])
    stream[0].setblocking(False)
    assert fdpass_c.send_fds(stream[0], [bytes(60_000)], []) < 60_000


@pytest.mark.thread_unsafe
def test_interrupted(stream: Pair) -> None:
    """System calls end in EINTR again and again; a receive that waits goes on."""
    with interrupted(), beside(lambda: None), Channel(stream[0]) as channel:
        for _ in range(3):
            signal.pause()  # Without a signal it would wait for ever.
        channel.settimeout(0.05)
        with pytest.raises(TimeoutError):
            channel.recv()


def interrupt_another_thread() -> None:
    with pytest.raises(ValueError, match="only the main thread"), interrupted():
        pass


@pytest.mark.parametrize("every", [0, -1, float("nan"), float("inf")])
def test_interrupted_never(every: float) -> None:
    """An interval at which nothing would be interrupted is refused."""
    with pytest.raises(ValueError, match="not a number of seconds above 0"), interrupted(every):
        pass


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("every", [0.001, -1, 1e300])
def test_interrupted_beside_a_timer(every: float) -> None:
    """A timer and its handler, such as those of pytest-timeout, are there again afterwards."""
    with handling(signal.SIGALRM, interrupt):
        own = signal.setitimer(signal.ITIMER_REAL, 1000, 2000)
        refusals = (ValueError, OverflowError, signal.ItimerError)  # The last is PyPy's.
        with contextlib.suppress(*refusals), interrupted(every):
            pass
        with beside(interrupt_another_thread):
            pass
        left, interval = signal.setitimer(signal.ITIMER_REAL, *own)
        assert 0 < left <= 1000
        assert interval == 2000
        with pytest.raises(Interruption):
            signal.raise_signal(signal.SIGALRM)


Receive = Callable[[Channel], Any]


def serve(receive: Receive, channel: Channel) -> None:
    """Receives until the peer has gone, or has gone too far."""
    channel.settimeout(0.02)
    try:
        while True:
            received = receive(channel)
            (received[1] if isinstance(received, tuple) else received).close()
    except (FdpassError, OSError):
        pass


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("receive", [Channel.recv, Channel.recv_many])
def test_channels_are_unharmed(receive: Receive, tmp_path: Path) -> None:
    """No attack leaves a descriptor behind, holds a receive up, or keeps the next peer out."""
    path = tmp_path / "socket"

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        return sock

    with Listener(path) as listener:
        before = list_fds()
        # Accepted only now: what the attack left in the socket is all there.
        for _ in hostile_peers(connect, ATTACKS, timeout=0.05):
            with listener.accept() as channel:
                serve(receive, channel)
        with Channel.connect(path) as client, listener.accept() as server:
            client.send(b"fine")
            assert server.recv()[0] == b"fine"
        assert list_fds() == before


def plain_recv_fds(sock: socket.socket) -> bytes:
    data, fds, _, _ = fdpass_c.recv_fds(sock, 100, 5)
    fdpass_c.close_fds(fds)
    return data


def plain_recv_fd(sock: socket.socket) -> bytes:
    data, fds = fdpass_c.recv_fd(sock, 100)
    fds.close()
    return data


def plain_recv_many(sock: socket.socket) -> bytes:
    try:
        with fdpass_c.recv_many(sock, 64, 100, 5) as batch:
            return b"".join(batch.payloads)
    except fdpass_c.TruncatedBatchError as error:
        error.batch.close()
        raise


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("receive", [plain_recv_fds, plain_recv_fd, plain_recv_many])
def test_plain_receives_are_unharmed(receive: Callable[[socket.socket], bytes]) -> None:
    """Nor does one do so to the functions of the plain wire."""
    before = list_fds()
    pairs: list[socket.socket] = []

    def connect() -> socket.socket:
        left, right = socket.socketpair()
        pairs.append(right)
        return left

    for _ in hostile_peers(connect, ATTACKS, timeout=0.05):
        with pairs.pop() as right:
            right.settimeout(0.02)
            for _ in range(1000):
                try:
                    if not receive(right):
                        break
                except (TimeoutError, ConnectionResetError, fdpass_c.PeerClosedError):
                    break
                except FdpassError:
                    continue
    assert list_fds() == before


def receive_all(channel: Channel) -> None:
    while True:
        channel.recv()[1].close()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("silence", "closed"),
        ("rubbish", "other than a frame"),
        ("text", "other than a frame"),
        ("half a frame", "inside a message"),
        ("a large promise", "max_payload is"),
        ("descriptors of a message that never ends", "next message: 59747;"),
        ("253 descriptors with every byte", "no frame announced"),
        ("descriptors that no frame announced", "no frame announced"),
        ("descriptors that did not come", "without all of the descriptors"),
        ("mutated frames", "every descriptor received"),
        ("messages withdrawn", "closed"),
        ("empty messages", "closed"),
        ("out of band", "other than a frame"),
        ("foreign control data", "no frame announced"),
        ("sockets of a cycle", "closed"),
    ],
)
def test_what_an_attack_sends(name: str, outcome: str) -> None:
    """Each attack is what its name says, so that a server that withstands it has been attacked."""
    ours, theirs = socket.socketpair()
    with Channel(ours) as channel:
        for _ in hostile_peers(lambda: theirs, [name]):
            pass
        assert bool(ours.recv(1, socket.MSG_PEEK)) == (name != "silence")
        ours.shutdown(socket.SHUT_RD)  # Some attacks send their own end, and would never end.
        with pytest.raises(FdpassError, match=outcome):
            receive_all(channel)


def test_seeded() -> None:
    """The same seed attacks in the same way."""

    def collect(seed: int) -> bytes:
        left, right = socket.socketpair()
        with right:
            for _ in hostile_peers(partial(lambda sock: sock, left), ["rubbish"], seed=seed):
                pass
            return right.recv(10_000)

    assert collect(1) == collect(1) != collect(2)
