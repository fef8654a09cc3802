"""A Listener takes over its path safely, lets in whom it should, and removes only what is its."""

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, Listener, ProtocolError
from support.descriptors import identity
from support.marks import linux_only
from support.messages import take
from support.processes import Program, become_nobody, run_in_child
from support.sockets import set_option
from support.threads import beside
from support.waiting import once_blocked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


def test_accepts(path: Path, file: int) -> None:
    """What connects by path, str, bytes or Path, exchanges messages with what was accepted."""
    address: Any
    for address in (str(path), os.fsencode(path), path):
        with (
            Listener(address) as listener,
            Channel.connect(address) as client,
            listener.accept() as server,
        ):
            client.send(b"up", [file])
            server.send(b"down", [file])
            assert take(server.recv()) == (b"up", [identity(file)])
            assert take(client.recv()) == (b"down", [identity(file)])
            assert server.peer.pid == os.getpid()
            assert server.gettimeout() is None
        assert not path.exists()


def test_iterates(path: Path) -> None:
    """Iterating a listener accepts one channel after the other."""
    with Listener(path) as listener:
        clients = [Channel.connect(path) for _ in range(3)]
        for client, server in zip(clients, listener, strict=False):
            with client, server:
                client.send(b"x")
                assert server.recv()[0] == b"x"
            if client is clients[-1]:
                break


def test_wrong_timeout(path: Path) -> None:
    """What is no number of seconds is refused, and the timeout stays as it was."""
    wrong: list[Any] = [-1, float("nan"), "1"]
    with Listener(path) as listener:
        listener.settimeout(0)
        for timeout in wrong:
            with pytest.raises((ValueError, TypeError)):
                listener.settimeout(timeout)
        assert listener.gettimeout() == 0
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_closed(path: Path) -> None:
    """Every call on a closed listener is EBADF and says why."""
    with Listener(path) as listener:
        pass
    calls: list[Callable[[], object]] = [
        listener.accept,
        listener.detach,
        lambda: listener.settimeout(1),
        lambda: listener.setblocking(True),
    ]
    for call in calls:
        with pytest.raises(OSError, match="the listener is closed") as caught:
            call()
        assert caught.value.errno == errno.EBADF
    assert listener.gettimeout() is None


@pytest.mark.parametrize("timeout", [None, 50])
def test_close_wakes(timeout: float | None, path: Path) -> None:
    """Closing a listener wakes every thread that waits in accept, with or without a timeout."""
    listener = Listener(path)
    listener.settimeout(timeout)

    def accept() -> None:
        with pytest.raises(OSError, match="the listener is closed") as caught:
            listener.accept()
        assert caught.value.errno == errno.EBADF

    def close_once_blocked() -> None:
        with (
            pytest.raises(OSError, match="the listener is closed"),
            once_blocked(listener.fileno(), listener.close),
        ):
            listener.accept()

    with beside(accept):
        close_once_blocked()
    accept()


@pytest.mark.untraced
def test_close_beside_one_who_comes(path: Path) -> None:
    """An accept that begins while another thread closes the listener ends too, however far that
    is."""
    listener = Listener(path)
    looked, begun = threading.Event(), threading.Event()

    def accept() -> None:
        looked.wait()
        try:
            with pytest.raises(OSError, match="the listener is closed"):
                listener.accept()
        finally:
            begun.set()

    def stop_before_closing(frame: FrameType, _event: str, _argument: object) -> Any:
        if frame.f_code is not Listener.close.__code__:
            return None
        if "others" in frame.f_locals and not looked.is_set():
            looked.set()
            begun.wait()
        return stop_before_closing

    def close() -> None:
        sys.settrace(stop_before_closing)
        listener.close()

    with beside(close):
        accept()


@linux_only
def test_another_process_shuts_it_down(path: Path) -> None:
    """Nobody can connect any more, and accept says so at once, whatever the timeout is."""
    for timeout in (0, 1, None):
        with Listener(path) as listener, socket.socket(fileno=os.dup(listener.fileno())) as same:
            listener.settimeout(timeout)
            same.shutdown(socket.SHUT_RDWR)
            with pytest.raises(OSError, match="Invalid argument"):
                listener.accept()


def test_others_make_it_blocking(path: Path) -> None:
    """A process that shares the socket may make it blocking: accept does not wait nevertheless."""
    with Listener(path) as listener:
        listener.settimeout(0)
        os.set_blocking(listener.fileno(), True)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_takes_a_socket(kind: socket.SocketKind, path: Path, file: int) -> None:
    """A listener owns the listening socket that it is made of, and leaves its file alone."""
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    sock.listen()
    with socket.socket(socket.AF_UNIX, kind) as end, Listener(sock, max_payload=3) as listener:
        end.connect(str(path))
        with Channel(end) as client, listener.accept() as server:
            client.send(b"up", [file])
            assert take(server.recv()) == (b"up", [identity(file)])
            client.send(b"long")
            with pytest.raises(ProtocolError, match="max_payload is 3"):
                server.recv()
    assert sock.fileno() == -1
    assert path.exists()


def test_detach(path: Path) -> None:
    """A detached socket listens on: who had connected is accepted by the next listener."""
    first = Listener(path)
    with Channel.connect(path) as client:
        with Listener(first.detach()) as second, second.accept() as server:
            assert first.closed
            assert not second.closed
            client.send(b"x")
            assert server.recv()[0] == b"x"
            first.close()
            Channel.connect(path).close()
        assert second.closed
    for listener in (first, second):
        with pytest.raises(OSError, match="the listener is closed") as caught:
            listener.detach()
        assert caught.value.errno == errno.EBADF


def test_detached_with_its_timeout(path: Path) -> None:
    """A detached socket waits as long as its listener did."""
    for timeout in (None, 0.0, 60.0):
        with Listener(path) as listener:
            listener.settimeout(timeout)
            with listener.detach() as sock:
                assert sock.gettimeout() == timeout


def test_wrong_listening_sockets(path: Path) -> None:
    """A Listener takes listening Unix sockets; what it refuses stays open."""
    with socket.create_server(("127.0.0.1", 0)) as inet:
        with pytest.raises(OSError, match="Unix domain") as caught:
            Listener(inet)
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert inet.fileno() >= 0
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        with pytest.raises(ValueError, match="does not listen"):
            Listener(bound)
        assert bound.fileno() >= 0


class ClosedBeforeTheWait(Listener):
    """As another thread may close it: after a try that found nobody, and before the wait."""

    def gettimeout(self) -> float | None:
        self.close()
        return super().gettimeout()


def test_close_before_the_wait(path: Path) -> None:
    """Closing a listener just before accept begins to wait ends the accept as well."""
    listener = ClosedBeforeTheWait(path)
    listener.settimeout(50)
    with pytest.raises(OSError, match="the listener is closed") as caught:
        listener.accept()
    assert caught.value.errno == errno.EBADF


@pytest.mark.thread_unsafe
def test_close_in_a_child(path: Path) -> None:
    """A child that closes its copy while the parent waits in accept does not end that."""
    with Listener(path) as listener:

        def close_and_connect() -> None:
            run_in_child(listener.close)
            Channel.connect(path).close()

        with once_blocked(listener.fileno(), close_and_connect):
            listener.accept().close()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 50])
def test_close_wakes_in_a_child(timeout: float | None, path: Path) -> None:
    """A child that closes its copy ends an accept of its own, and the parent goes on listening."""
    with Listener(path) as listener:
        listener.settimeout(timeout)

        def child() -> None:
            with (
                pytest.raises(OSError, match="the listener is closed"),
                once_blocked(listener.fileno(), listener.close),
            ):
                listener.accept()

        run_in_child(child)
        with Channel.connect(path):
            listener.accept().close()


def test_repr(path: Path) -> None:
    """It shows where it listens, and whether it is closed."""
    with Listener(path) as listener:
        assert repr(listener) == f"<Listener fd={listener.fileno()}, at {str(path)!r}>"
    assert repr(listener) == "<Listener closed>"


@linux_only
def test_abstract_name() -> None:
    """A name behind a NUL is in the abstract namespace, and no file."""
    name = f"\0fdpass-c-{os.getpid()}-{threading.get_ident()}"
    with Listener(name) as listener:
        with Channel.connect(name) as client, listener.accept() as server:
            client.send(b"x")
            assert server.recv()[0] == b"x"
        with pytest.raises(OSError, match="in use") as caught:
            Listener(name.encode())
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(ConnectionRefusedError):
        Channel.connect(name)


@pytest.mark.thread_unsafe
def test_mode(path: Path) -> None:
    """The socket file has the permissions asked for, whatever the umask; by default 0600."""
    before = os.umask(0o077)
    try:
        for mode in (0, 0o600, 0o660, 0o777):
            with Listener(path, mode=mode):
                assert stat.S_IMODE(path.stat().st_mode) == mode
        os.umask(0)
        with Listener(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def leave_stale(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))


def test_stale_file(path: Path) -> None:
    """A socket file that nobody listens at any more is replaced."""
    leave_stale(path)
    with Listener(path) as listener, Channel.connect(path), listener.accept():
        pass


def test_live_one(path: Path) -> None:
    """A path where somebody listens is refused, and stays theirs. They get no connection by it."""
    with Listener(path) as first:
        with pytest.raises(OSError, match="another socket is bound") as caught:
            Listener(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == str(path)
        assert caught.value.__context__ is None  # One traceback is enough.
        first.settimeout(0)
        with pytest.raises(BlockingIOError):
            first.accept()
        first.settimeout(None)
        with Channel.connect(path) as client, first.accept() as server:
            client.send(b"x")
            assert server.recv()[0] == b"x"


@linux_only
def test_full_backlog(path: Path) -> None:
    """A listener too busy to accept is not taken for a stale file."""
    with Listener(path, backlog=0) as first, contextlib.ExitStack() as clients:
        with contextlib.suppress(BlockingIOError):
            while True:
                clients.enter_context(Channel.connect(path, timeout=0))
        with pytest.raises(OSError, match="another socket is bound") as caught:
            Listener(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == str(path)
        first.accept().close()


@linux_only
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
@pytest.mark.parametrize("goes_on", [False, True])
def test_another_bound_socket(kind: socket.SocketKind, goes_on: bool, path: Path) -> None:
    """A socket of another type, or one that does not listen yet, is somebody's too."""
    with socket.socket(socket.AF_UNIX, kind) as sock, socket.socket(socket.AF_UNIX, kind) as other:
        sock.bind(str(path))
        if goes_on and kind == socket.SOCK_DGRAM:
            other.bind(str(path.with_name("other")))
            sock.connect(other.getsockname())  # It takes no datagrams of others from now on.
        elif goes_on:
            sock.listen()
        with pytest.raises(OSError, match="another socket is bound") as caught:
            Listener(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert caught.value.filename == str(path)
    assert path.is_socket()
    with Listener(path):
        pass


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_something_else(what: str, path: Path) -> None:
    """What is no socket is left alone."""
    if what == "file":
        path.write_text("precious")
    elif what == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    before = path.lstat()
    with pytest.raises(FileExistsError):
        Listener(path)
    assert path.lstat() == before


def test_removes_only_its_own_file(path: Path) -> None:
    """A file that took the place of ours stays."""
    with Listener(path):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_closing_twice(path: Path) -> None:
    """Closing again is harmless, also where another has the path by now."""
    first = Listener(path)
    first.close()
    with Listener(path):
        first.close()
        assert first.fileno() == -1
        with Channel.connect(path):
            pass


@pytest.mark.thread_unsafe
def test_child_that_closes_its_copy(path: Path) -> None:
    """A forked child's close leaves the parent listening, and its file."""
    with Listener(path) as listener:
        run_in_child(listener.close)
        with Channel.connect(path), listener.accept():
            pass
    assert not path.exists()


def start(arguments: tuple[Path, threading.Barrier]) -> "Listener | int | None":
    path, ready = arguments
    ready.wait()
    try:
        return Listener(path)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("stale", [False, True])
def test_many_starting_at_once(stale: bool, path: Path) -> None:
    """Of many that start at once exactly one gets the path, and it can be reached."""
    for _ in range(30):
        if stale:
            leave_stale(path)
        with ThreadPoolExecutor(4) as executor:
            ready = threading.Barrier(4)
            results = [*executor.map(start, [(path, ready)] * 4)]
        won = [result for result in results if isinstance(result, Listener)]
        assert len(won) == 1
        assert results.count(errno.EADDRINUSE) == 3
        with won[0], Channel.connect(path):
            pass


@pytest.mark.thread_unsafe
def test_waits_until_it_listens(path: Path) -> None:
    """A second one cannot take the file of the first, bound and not yet listened at, for stale."""
    script = """if True:
        import socket, sys
        from fdpass_c import Listener
        class Slow(socket.socket):
            def listen(self, backlog):
                sys.stdout.write("bound\\n"); sys.stdout.flush()
                sys.stdin.readline()
                super().listen(backlog)
        socket.socket = Slow
        with Listener(sys.argv[1]):
            print("listening", flush=True)
            sys.stdin.readline()
    """
    with Program(
        [sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "bound\n"
        found: list[int | None] = []
        with beside(lambda: found.append(try_to_listen(path))):
            first.stdin.write("go\n")
            first.stdin.flush()
            assert first.stdout.readline() == "listening\n"
        with Channel.connect(path):
            pass
        assert found == [errno.EADDRINUSE]
        first.stdin.write("stop\n")


def try_to_listen(path: Path) -> int | None:
    """The errno of the error, or None."""
    try:
        Listener(path).close()
    except OSError as error:
        return error.errno
    return None


def test_file_removed_meanwhile(path: Path) -> None:
    """An owner that closes just while another starts is no error there."""
    for _ in range(50):
        first = Listener(path)
        with beside(first.close):
            assert try_to_listen(path) in (None, errno.EADDRINUSE)


def test_setblocking(path: Path) -> None:
    with Listener(path) as listener:
        listener.setblocking(False)
        assert listener.gettimeout() == 0
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.setblocking(True)
        assert listener.gettimeout() is None
        with Channel.connect(path), listener.accept():
            pass


def test_timeouts(path: Path) -> None:
    """accept waits as settimeout says; channels start blocking all the same."""
    with Listener(path) as listener:
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.settimeout(0.001)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.settimeout(30)
        with Channel.connect(path, timeout=7) as client, listener.accept() as server:
            assert server.gettimeout() is None
            assert client.gettimeout() == 7


def test_connect_errors(path: Path) -> None:
    """Connecting fails as a socket does, and leaves nothing open."""
    with pytest.raises(FileNotFoundError):
        Channel.connect(path)
    leave_stale(path)
    with pytest.raises(ConnectionRefusedError):
        Channel.connect(path)


def test_listening_errors(tmp_path: Path) -> None:
    """Errors of bind are handed on, and leave nothing open."""
    with pytest.raises(FileNotFoundError):
        Listener(tmp_path / "missing" / "socket")
    with pytest.raises(OSError, match="too long: a socket's path has at most") as caught:
        Listener(tmp_path / ("x" * 200))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert caught.value.filename == str(tmp_path / ("x" * 200))


@pytest.mark.thread_unsafe
def test_listening_in_a_removed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as caught:
        Listener("here")
    assert caught.value.filename == "here"


def test_options_hold_for_the_accepted(path: Path, file: int) -> None:
    """Options of the listener are those of its channels."""
    mistakes = [(b"four", [], "max_payload is 3"), (b"", [file], "max_fds is 0")]
    with Listener(path, max_payload=3, max_fds=0) as listener:
        for payload, fds, text in mistakes:
            with Channel.connect(path) as client, listener.accept() as server:
                client.send(payload, fds)
                with pytest.raises(fdpass_c.ProtocolError, match=text):
                    server.recv()


def test_wrong_options(path: Path) -> None:
    """A wrong option is an exception of the constructor that names it, not one of accept() with
    the first peer that comes."""
    mistakes: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"allow_uids": 0}, TypeError, "allow_uids is a collection of ints"),
        ({"allow_uids": "root"}, TypeError, "allow_uids is a collection of ints"),
        ({"allow_uids": ["root"]}, TypeError, "allow_uids is a collection of ints, 'root' is none"),
        ({"max_payload": "1"}, TypeError, "max_payload is an int"),
        ({"max_payload": -1}, ValueError, "max_payload is -1"),
        ({"max_fds": -1}, ValueError, "max_fds is -1"),
        ({"max_fds": 2**32}, ValueError, "max_fds is 4294967296"),
        ({"receive_fds": None}, TypeError, "receive_fds is a bool"),
        ({"receive_fds": "no"}, TypeError, "receive_fds is a bool"),
        ({"receive_fds": 1.5}, TypeError, "receive_fds is a bool"),
        ({"mode": 600}, ValueError, "600 is not 0o600"),
        ({"mode": 0o1000}, ValueError, "mode is 0o1000"),
        ({"mode": -1}, ValueError, "mode is -0o1"),
        ({"mode": 1.5}, TypeError, "mode is an int, not float"),
        ({"mode": float("nan")}, TypeError, "mode is an int, not float"),
        ({"mode": "600"}, TypeError, "mode is an int, not str"),
    ]
    for mistake, error, text in mistakes:
        with pytest.raises(error, match=text):
            Listener(path, **mistake)
        assert not [*path.parent.iterdir()]
        if "mode" not in mistake:
            with pytest.raises(error, match=text):
                Channel.pair(**mistake)


@pytest.mark.parametrize("users", [{os.getuid()}, range(2**32)], ids=["one", "all"])
def test_allowed_users(users: Collection[int], path: Path) -> None:
    """allow_uids lets in whom it names, however many."""
    with (
        Listener(path, allow_uids=users) as listener,
        Channel.connect(path) as client,
        listener.accept() as server,
    ):
        assert server.peer.uid == os.getuid()
        server.send(b"welcome")
        assert client.recv()[0] == b"welcome"


@pytest.mark.thread_unsafe
@linux_only
@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user, and privileges to become one")
def test_turned_away() -> None:
    """A user that allow_uids does not name is turned away, and the next one accepted."""
    name = f"\0fdpass-c-users-{os.getpid()}"

    def stranger() -> None:
        become_nobody()
        refusals = (fdpass_c.PeerClosedError, ConnectionResetError)
        with Channel.connect(name) as client, pytest.raises(refusals):
            client.recv()

    def connect() -> None:
        run_in_child(stranger)
        with Channel.connect(name) as client:
            client.send(b"from root")

    with (
        Listener(name, allow_uids=[0]) as listener,
        beside(connect),
        listener.accept() as server,
    ):
        assert server.recv()[0] == b"from root"


def test_nobody_is_allowed(path: Path) -> None:
    """Channel itself closes a socket whose peer is not allowed, pair() both, connect() its own."""
    left, right = socket.socketpair()
    with right, pytest.raises(PermissionError, match="not allowed"):
        Channel(left, allow_uids=[])
    with pytest.raises(PermissionError):
        Channel.pair(allow_uids=[])
    with Listener(path), pytest.raises(PermissionError, match="not allowed") as caught:
        Channel.connect(path, allow_uids=[])
    assert caught.value.filename == str(path)
    with pytest.raises(TypeError):
        Channel.pair(no_such_option=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [{"max_payload": 3}, {"max_fds": 0}, {"receive_fds": False}])
def test_options_are_passed_on(options: dict[str, Any], path: Path, file: int) -> None:
    """pair() makes both channels with its options, and connect() the one that it returns."""
    ends = [Channel.pair(**options), Channel.pair(**options)[::-1]]
    with Listener(path) as listener:
        connected = Channel.connect(path, **options)
        ends.append((listener.accept(), connected))

    def exchange(sender: Channel, receiver: Channel) -> None:
        sender.send(b"long", [file])
        receiver.recv()[1].close()

    for sender, receiver in ends:
        # Where the kernel refuses descriptors for a receiver, the send already fails.
        with sender, receiver, pytest.raises((fdpass_c.ProtocolError, PermissionError)):
            exchange(sender, receiver)


def test_accepted_refuse_descriptors_from_the_first_on(path: Path, file: int) -> None:
    """With receive_fds=False not even what is sent before accept gets in."""
    with Listener(path, receive_fds=False) as listener:
        set_option(listener._sock, 83, 0)
        with Channel.connect(path) as client:
            with pytest.raises(PermissionError):
                client.send(b"", [file])
            client.send(b"fine")
            with listener.accept() as server:
                assert take(server.recv()) == (b"fine", [])
                with pytest.raises(PermissionError):
                    client.send(b"", [file])


@linux_only
def test_peer_pidfd() -> None:
    """peer_pidfd gives a descriptor of the peer's process, which the caller owns."""
    ours, theirs = Channel.pair()
    with ours, theirs:
        pidfd = ours.peer_pidfd()
        if pidfd is None:
            pytest.skip("no SO_PEERPIDFD")
        info = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
        os.close(pidfd)
        assert f"Pid:\t{os.getpid()}\n" in info


def test_wrong_sockets(file: int, path: Path) -> None:
    """Channel takes connected stream and seqpacket Unix sockets; what it refuses stays open."""
    with socket.socket(socket.AF_INET) as inet, pytest.raises(OSError, match="Unix domain"):
        Channel(inet)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    says_stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(left.fileno()))
    with left, right, says_stream:
        for datagrams in (left, says_stream):
            with pytest.raises(ValueError, match=r"stream or seqpacket socket, not.*SOCK_DGRAM"):
                Channel(datagrams)
    with socket.socket(socket.AF_UNIX) as alone:
        with pytest.raises(OSError, match=r"[Nn]ot connected") as caught:
            Channel(alone)
        assert caught.value.errno == errno.ENOTCONN
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        with pytest.raises(OSError, match="the socket listens") as caught:
            Channel(listening)
        assert caught.value.errno == errno.ENOTCONN
        assert listening.fileno() >= 0
    assert os.fstat(file)
