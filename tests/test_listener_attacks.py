"""Whoever else may use the directory, or connect, cannot hold up a listener or have it do harm."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fdpass_c.listener
from fdpass_c import Channel, Listener, PeerClosedError, unix
from fdpass_c.unix import SocketFile
from support.descriptors import list_fds
from support.marks import linux_only, places_known
from support.processes import become_nobody, run_in_child
from support.signals import interrupt_call

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def public() -> Iterator[Path]:
    """A path in a directory that everybody may write to."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        yield Path(directory, "socket")


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.thread_unsafe
def test_a_lock_on_the_directory(path: Path) -> None:
    """Who may only read the directory cannot keep others from listening in it."""
    held = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)

        def listen() -> None:
            signal.alarm(30)
            Listener(path).close()

        run_in_child(listen)
    finally:
        os.close(held)


@pytest.mark.thread_unsafe
@needs_root
def test_the_lock_is_its_users_own(public: Path) -> None:
    """While a listener starts, another user can open nothing by which to hold up the next one."""

    class Slow(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:
            run_in_child(try_to_open_all)
            super().listen(backlog)

    def try_to_open_all() -> None:
        become_nobody()
        found = {*public.parent.iterdir()}
        assert len(found) == 2
        for path in found - {public}:
            for flags in (os.O_RDONLY, os.O_WRONLY):
                with pytest.raises(PermissionError):
                    os.open(path, flags)

    file = SocketFile(public)
    with Slow(socket.AF_UNIX) as sock:
        file.listen(sock, backlog=1, mode=0o600)
        file.remove()
    assert not [*public.parent.iterdir()]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("what", ["file", "pipe", "link", "directory"])
def test_a_lock_that_somebody_else_made(what: str, path: Path) -> None:
    """Whatever stands where the lock belongs, listening works or fails, and does not hang."""
    lock = path.with_name("socket.lock")
    victim = path.with_name("victim")
    if what == "file":
        lock.touch()
    elif what == "pipe":
        os.mkfifo(lock)
    elif what == "link":
        lock.symlink_to(victim)
    else:
        lock.mkdir()

    def listen() -> None:
        signal.alarm(30)
        with contextlib.suppress(OSError):
            Listener(path).close()

    run_in_child(listen)
    assert not path.exists()
    assert not victim.exists()


def test_a_file_named_like_the_lock(path: Path) -> None:
    """A file with content that happens to have the lock's name stays as it is."""
    lock = path.with_name("socket.lock")
    lock.write_text("of other code")
    with Listener(path):
        pass
    path.touch()
    with pytest.raises(FileExistsError):
        Listener(path)
    assert lock.read_text() == "of other code"


def test_two_at_once(path: Path) -> None:
    """Where somebody is about to listen, another is told so at once."""
    with open(path.with_name("socket.lock"), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="about to listen") as caught:
            Listener(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == str(path)
    Listener(path).close()
    assert not [*path.parent.iterdir()]


@pytest.mark.thread_unsafe
@needs_root
def test_a_socket_that_may_not_be_asked(public: Path) -> None:
    """Where nobody can tell whether a process listens, the error says so."""

    def listen() -> None:
        become_nobody()
        with pytest.raises(PermissionError, match="cannot tell whether a process") as caught:
            Listener(public)
        assert caught.value.filename == str(public)

    with Listener(public):
        run_in_child(listen)


@pytest.mark.thread_unsafe
@needs_root
def test_a_directory_that_may_not_be_read(public: Path) -> None:
    """To listen takes no more rights than to bind."""
    public.parent.chmod(0o733)

    def listen() -> None:
        become_nobody()
        with Listener(public), Channel.connect(public):
            pass

    run_in_child(listen)
    assert not [*public.parent.iterdir()]


class _Replaced(socket.socket):
    """Its file is replaced as soon as it is bound, as whoever may write to the directory can."""

    def replace(self, path: Path) -> None:
        raise NotImplementedError

    def bind(self, address: str, /) -> None:  # type: ignore[override]
        super().bind(address)
        os.unlink(address)
        self.replace(Path(address))


class _ByLink(_Replaced):
    def replace(self, path: Path) -> None:
        path.symlink_to("victim")


class _ByFile(_Replaced):
    def replace(self, path: Path) -> None:
        path.with_name("victim").rename(path)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("kind", "mode"), [(_ByLink, 0o666), (_ByFile, 0o600)])
def test_what_takes_the_place_of_the_file(kind: type[_Replaced], mode: int, path: Path) -> None:
    """Nothing but the new socket gets the permissions, and nothing else is removed."""
    victim = path.with_name("victim")
    victim.write_text("precious")
    victim.chmod(0o400)
    file = SocketFile(str(path))
    with umask(0o077), kind(socket.AF_UNIX) as sock:
        with pytest.raises(FileExistsError):
            file.listen(sock, backlog=1, mode=mode)
        file.remove()
    assert path.read_text() == "precious"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400


@pytest.mark.thread_unsafe
@linux_only
def test_no_moment_of_wider_permissions(path: Path) -> None:
    """The file is made with at most the permissions that it is to have."""
    seen = []

    class Watched(socket.socket):
        def bind(self, address: str, /) -> None:  # type: ignore[override]
            super().bind(address)
            seen.append(stat.S_IMODE(os.lstat(address).st_mode))

    modes = [0o600, 0o660, 0o666]
    for mode in modes:
        file = SocketFile(str(path))
        with umask(0), Watched(socket.AF_UNIX) as sock:
            file.listen(sock, backlog=1, mode=mode)
            file.remove()
    assert seen == modes


@pytest.mark.parametrize("mistake", [{"backlog": "many"}, {"mode": "rw"}, {"backlog": 2**70}])
def test_a_failed_constructor(mistake: dict[str, object], path: Path) -> None:
    """A listener that cannot be made leaves no file."""
    with pytest.raises((TypeError, OverflowError)):
        Listener(path, **mistake)  # type: ignore[arg-type]
    assert not [*path.parent.iterdir()]


@pytest.mark.thread_unsafe
@places_known
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("module", [unix, fdpass_c.listener])
@pytest.mark.parametrize("stale", [False, True])
def test_an_interrupted_constructor(module: ModuleType, stale: bool, path: Path) -> None:
    """Wherever a signal handler raises, the file is gone, or a listener's that can be closed."""
    number = 0
    going = True
    while going:
        if stale:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        made: list[Listener] = []
        before = {*list_fds()}
        number += 1
        going = interrupt_call(module, number, lambda made=made: made.append(Listener(path)))  # type: ignore[misc]
        for listener in made:
            listener.close()
        # A lock that was open at that very moment is lost, as any int that a call returns.
        for fd in {*list_fds()} - before:
            os.close(fd)
        assert not path.with_name("socket.lock").exists(), f"left after call {number}"
        if path.exists():
            assert stale, f"left after call {number}"
            assert isinstance(_connect_error(path), ConnectionRefusedError)
        Listener(path).close()
        assert not [*path.parent.iterdir()]
    assert number > 5


def _connect_error(path: Path) -> OSError | None:
    try:
        Channel.connect(path).close()
    except OSError as error:
        return error
    return None


def test_another_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener at a relative path removes its file, and no other, after a change of directory."""
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir()
    monkeypatch.chdir(path.parent)
    for name in ("socket", b"socket", Path("socket"), "./socket", "elsewhere/../socket"):
        with Listener(name):
            assert path.exists()
            os.chdir(elsewhere)
        assert not path.exists()
        os.chdir(path.parent)


def test_a_long_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path may be where an absolute one would be too long for a socket."""
    deep = path.parent / ("x" * 100) / ("y" * 100)
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind("socket")
    with Listener("socket"), Channel.connect("socket"):
        os.chdir(path.parent)
    assert not [*deep.iterdir()]


def test_a_nul_in_a_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would end a path there: it is refused before anything is made or reached."""
    monkeypatch.chdir(path.parent)
    Path("a").mkdir()
    names: list[Any] = ["sock\0et", b"sock\0et", Path("sock\0et"), "socket\0", "a/b\0c"]
    for name in names:
        with pytest.raises(ValueError, match="NUL"):
            Listener(name)
    assert [*Path().iterdir()] == [Path("a")]
    with Listener("sock") as one, Listener("socket") as two, Listener("a/b") as three:
        for name in names:
            with pytest.raises(ValueError, match="NUL"):
                Channel.connect(name)
        for listener in (one, two, three):
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.mark.parametrize("name", ["", b""])
def test_an_empty_path(name: "str | bytes") -> None:
    """An empty path is nowhere; Linux would find a name of its own."""
    with pytest.raises(FileNotFoundError):
        Listener(name)
    with pytest.raises(FileNotFoundError):
        Channel.connect(name)


@linux_only
def test_a_nul_in_an_abstract_name() -> None:
    """An abstract name may hold NULs, and two that differ behind one are different."""
    name = f"\0fdpass-c-{os.getpid()}-{threading.get_ident()}\0"
    with Listener(name + "a") as one, Listener((name + "b").encode()) as two:
        for listener, letter in ((one, "a"), (two, "b")):
            with Channel.connect(name + letter) as client, listener.accept() as server:
                client.send(letter.encode())
                assert server.recv()[0] == letter.encode()


@contextlib.contextmanager
def reconnecting(path: Path) -> Iterator[threading.Event]:
    """A peer that connects again whenever it is turned away; set while it does, 10 s at most."""
    going = threading.Event()
    going.set()
    ready = threading.Event()

    def run() -> None:
        until = time.monotonic() + 10
        while going.is_set() and time.monotonic() < until:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                ready.set()
                sock.recv(1)
        going.clear()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield going
    finally:
        going.clear()
        thread.join()


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_peers_that_are_turned_away(timeout: float, path: Path) -> None:
    """However often they come, accept returns when its time is over."""
    with Listener(path, allow_uids=[]) as listener, reconnecting(path) as going:
        listener.settimeout(timeout)
        with pytest.raises(TimeoutError if timeout else BlockingIOError):
            listener.accept()
        assert going.is_set()
        listener.close()


def test_one_turned_away_and_no_more(path: Path) -> None:
    """A call that does not wait turns away one peer at most, and leaves the next in the backlog."""
    with Listener(path, allow_uids=[]) as listener:
        listener.settimeout(0)
        with Channel.connect(path) as first, Channel.connect(path) as second:
            with pytest.raises(BlockingIOError):
                listener.accept()
            with pytest.raises(PeerClosedError):
                first.recv()
            second.settimeout(0)
            with pytest.raises(BlockingIOError):
                second.recv()


@pytest.mark.thread_unsafe
@needs_root
@pytest.mark.parametrize("timeout", [None, 30])
def test_the_next_one_after_one_turned_away(timeout: float | None, public: Path) -> None:
    """Whoever comes within the time after a peer that is turned away is accepted."""

    def stranger() -> None:
        become_nobody()
        Channel.connect(public).close()

    with Listener(public, mode=0o666, allow_uids=[0]) as listener:
        run_in_child(stranger)
        listener.settimeout(timeout)
        with Channel.connect(public) as client, listener.accept() as server:
            client.send(b"x")
            assert server.recv()[0] == b"x"
            assert server.gettimeout() is None


def test_a_default_timeout(path: Path) -> None:
    """A timeout that all new sockets get is neither the listener's nor its channels'."""
    socket.setdefaulttimeout(0.0)
    try:
        with Listener(path) as listener, Channel.connect(path):
            assert listener.gettimeout() is None
            with listener.accept() as server:
                assert server.gettimeout() is None
    finally:
        socket.setdefaulttimeout(None)
