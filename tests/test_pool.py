"""A pool serves, on whatever it listens, and refuses what it cannot do."""

import ast
import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Address
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fdpass_c.pool import Pool, PoolError, inherit_listeners, open_listener
from fdpass_c.pool.listeners import describe_listener
from fdpass_c.pool.status import STATES
from fdpass_c.pool.worker_process import State
from support.handlers import echo, echo_async
from support.marks import linux_only
from support.processes import FDPASS, Program, run_in_child
from support.server import Server, connections
from support.sockets import read_all

coroutines = pytest.mark.parametrize(
    "handler", ["echo_partial", "echo_partial_object", "echo_bound"]
)
not_awaited = pytest.mark.parametrize(
    "handler",
    [
        "hidden_lambda",
        "hidden_wrapped",
        "hidden_async_generator",
        "hidden_generator",
        "hidden_awaitable",
    ],
)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["echo", "echo_async", "echo_object"])
def test_answers(handler: str) -> None:
    """Every connection is answered, by workers that take turns, and knows its peer's address."""
    with Server(handler, "--workers", "3") as server:
        pids = {*server.settled(3).pids}
        seen = set()
        for _ in range(6):
            with server.connect() as sock:
                sock.sendall(b"hello")
                pid, _, rest = read_all(sock).partition(b" ")
                assert rest == f"{sock.getsockname()!r} hello".encode()
                seen.add(int(pid))
        assert seen == pids
        assert server.settled(3).handled == 6
        assert server.stop() == 0


def clients(addresses: Sequence[str], folder: Path) -> Iterator[socket.socket]:
    """One for each address of a pool, and for a Unix socket one of each kind of name."""
    for address in addresses:
        if "/" not in address:
            host, _, port = address.rpartition(":")
            yield socket.create_connection((host.strip("[]"), int(port)))
            continue
        names: list[str | bytes] = ["", str(folder / "name")]
        if sys.platform == "linux":
            names.append(b"\0" + os.urandom(8))
        for name in names:
            sock = socket.socket(socket.AF_UNIX)
            if name:
                sock.bind(name)
            sock.connect(address)
            yield sock


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["describe", "describe_async"])
def test_what_a_handler_gets(handler: str, tmp_path: Path) -> None:
    """Its socket is what the kernel says, TCP's protocol included; the address is the peer's."""
    expected = (None, True, False) if handler == "describe" else (0, False, False)
    addresses = ["127.0.0.1:0", str(tmp_path / "socket")]
    if socket.has_dualstack_ipv6():
        addresses.append("[::1]:0")
    with Server(handler, "--workers", "1", addresses=tuple(addresses)) as server:
        for client in clients(server.addresses, tmp_path):
            with client:
                given, known, modes, address, peer = ast.literal_eval(read_all(client).decode())
                assert given == known
                assert modes == expected
                assert address == peer == client.getsockname()


@pytest.mark.thread_unsafe
def test_several_listeners(tmp_path: Path) -> None:
    """IPv4, IPv6 and Unix sockets at once; the Unix socket's file goes with the pool."""
    path = tmp_path / "socket"
    addresses = ["127.0.0.1:0", str(path)]
    if socket.has_dualstack_ipv6():
        addresses.append("[::1]:0")
    with Server("echo", "--workers", "2", addresses=tuple(addresses)) as server:
        for address in server.addresses:
            if "/" in address:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(address)
            else:
                host, _, port = address.rpartition(":")
                sock = socket.create_connection((host.strip("[]"), int(port)))
            with sock:
                sock.sendall(b"hello")
                assert read_all(sock).endswith(b"hello")
        assert path.stat().st_mode & 0o777 == 0o600
        assert server.stop() == 0
    assert not path.exists()


def test_stale_unix_socket(tmp_path: Path) -> None:
    """A socket file that nobody listens at is replaced; one in use, and a file, are not."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with open_listener(path):
        with pytest.raises(OSError, match="in use"):
            open_listener(path)
        assert path.exists()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        open_listener(path)
    assert path.read_text() == "precious"


def test_bad_address() -> None:
    """What is neither HOST:PORT nor a path is refused by name."""
    for address in (
        "",
        "80",
        "host:",
        "host:port",
        "::1:80",
        "host:65536",
        "host:-1",
        "host:\u0663",
    ):
        with pytest.raises(ValueError, match="not HOST:PORT"):
            open_listener(address)
    port: Any = 8000
    shapes: list[Any] = [("h",), ("::1", 80, 0, 0), ()]
    for shape in shapes:
        with pytest.raises(ValueError, match=r"not \(HOST, PORT\)"):
            open_listener(shape)
    path: Any = b"/tmp/socket"
    with pytest.raises(TypeError, match=r"an address is HOST:PORT, .* not bytes"):
        open_listener(path)
    with pytest.raises(TypeError, match=r"an address is HOST:PORT, .* not int"):
        open_listener(port)


def test_address_forms() -> None:
    """A tuple and a str mean the same, brackets are for IPv6, no host for every IPv4 address."""
    for address, host in (
        (("127.0.0.1", 0), "127.0.0.1"),
        ("127.0.0.1:0", "127.0.0.1"),
        (":0", "0.0.0.0"),
    ):
        with open_listener(address) as listener:
            assert listener.getsockname()[0] == host


@linux_only
def test_a_link_local_address() -> None:
    """An address that is one only together with its interface: host%interface."""
    table = Path("/proc/net/if_inet6")
    known = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    local = [(words[0], words[5]) for words in known if words[3] == "20"]
    if not local:
        pytest.skip("no interface has a link-local address")
    digits, interface = local[0]
    host = f"{IPv6Address(bytes.fromhex(digits))}%{interface}"
    for address in ((host, 0), f"[{host}]:0"):
        with open_listener(address) as listener:
            _, port, _, scope = listener.getsockname()
            assert scope == socket.if_nametoindex(interface)
            assert describe_listener(listener) == f"[{host.split('%')[0]}%{scope}]:{port}"
            with socket.create_connection((host, port)):
                pass


def test_bad_numbers() -> None:
    """No workers, no capacity, no requests, a negative time and one that is no number are
    refused."""
    wrong: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        ((0,), {}),
        ((1, 0), {}),
        ((1,), {"max_requests": 0}),
        ((1,), {"drain": -1}),
        ((1,), {"drain": float("nan")}),
        ((1,), {"start_timeout": float("nan")}),
    ]
    for arguments, options in wrong:
        with pytest.raises(ValueError, match=r"at least 1|not negative"):
            Pool(echo, *arguments, **options)


def test_numbers_that_are_no_ints() -> None:
    """Half a worker is a TypeError of the constructor that says which argument is wrong."""
    for name in ("workers", "capacity", "max_requests"):
        for wrong in (1.5, float("nan"), float("inf"), "2"):
            options: dict[str, Any] = {"workers": 1, name: wrong}
            with pytest.raises(TypeError, match=f"{name} is an int, not {type(wrong).__name__}"):
                Pool(echo, **options)
    with pytest.raises(TypeError, match="workers is an int, not NoneType"):
        Pool(echo, None)  # type: ignore[arg-type]


def test_times_that_are_no_numbers() -> None:
    """So is a time that is no number."""
    for name in ("drain", "start_timeout", "timeout"):
        options: dict[str, Any] = {name: "2"}
        with pytest.raises(TypeError, match=f"{name} is a number of seconds, not str"):
            Pool(echo, 1, **options)


def test_a_ready_that_was_called() -> None:
    """A ready that is not callable is refused before anything has started."""
    with pytest.raises(TypeError, match="ready is not callable: 5"):
        Pool(echo, 1).serve("127.0.0.1:0", ready=5)  # type: ignore[arg-type]


def test_a_handler_that_was_called() -> None:
    """What is not callable is a TypeError of the constructor, not of each connection."""
    with pytest.raises(TypeError, match="the handler is not callable: None"):
        Pool(None, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["setup", "teardown", "loop_factory"])
def test_an_option_that_was_called(name: str) -> None:
    """The same of what the workers call."""
    options: dict[str, Any] = {name: 5}
    with pytest.raises(TypeError, match=f"the {name} is not callable: 5"):
        Pool(echo_async, 1, **options)


def test_a_port_that_is_none() -> None:
    """A port beyond 65535 is a ValueError, not the port of its lowest 16 bits."""
    with pytest.raises(ValueError, match="a port is 0 to 65535"):
        open_listener(("127.0.0.1", 65536))


@pytest.mark.thread_unsafe
def test_no_listener() -> None:
    """A pool that listens nowhere is refused, and the text says why none was inherited."""
    with pytest.raises(ValueError, match=r"at least one listener.* LISTEN_PID"):
        Pool(echo, 1).serve()


@pytest.mark.thread_unsafe
def test_main_thread_only() -> None:
    """serve() handles signals, which only the main thread can; nothing is left behind."""
    errors = []

    def serve() -> None:
        try:
            Pool(echo, 1).serve("127.0.0.1:0")
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert errors == ["serve() handles signals: call it in the main thread"]


@pytest.mark.thread_unsafe
def test_inside_of_trio() -> None:
    """A worker would be forked inside of trio's loop, and could run no loop of its own there."""
    trio = pytest.importorskip("trio")

    async def main() -> None:
        Pool(echo_async, 1).serve("127.0.0.1:0")

    with pytest.raises(RuntimeError, match="call it outside of trio"):
        trio.run(main)


def fail() -> None:
    raise RuntimeError


@pytest.mark.thread_unsafe
def test_workers_that_never_start() -> None:
    """Workers that die at start are tried again a few times; then an error says what happened."""

    def serve() -> None:
        with pytest.raises(PoolError, match=r"5 workers in a row died .*exited with status 1"):
            Pool(echo, 2, setup=fail).serve("127.0.0.1:0")

    run_in_child(serve)


@pytest.mark.thread_unsafe
def test_status_before_serving() -> None:
    """A pool that does not serve yet has nothing to show."""
    status = Pool(echo, 2).status()
    assert (status.workers, *status[1:]) == ((), 0, 0, 0, 0)
    assert "0 handled" in status.render()


@pytest.mark.thread_unsafe
@pytest.mark.untraced
def test_status_at_any_moment() -> None:
    """Wherever another thread or a signal handler interrupts the master as a worker ends, status()
    counts each connection once."""
    seen: list[int] = []

    def watch(frame: FrameType, event: str, _argument: object) -> object:
        if frame.f_code.co_name != "reap":
            return watch if event == "call" else None
        if event == "line":
            status = pool.status()
            in_hand = sum(worker.in_hand for worker in status.workers)
            seen.append(status.handled + status.lost + in_hand)
        return watch

    def ask(addresses: tuple[tuple[str, int], ...]) -> None:
        for _ in range(4):
            with socket.create_connection(addresses[0]) as sock:
                assert read_all(sock) == b"hello"
        pool.stop()

    def serve() -> None:
        warnings.simplefilter("ignore", DeprecationWarning)  # Of a fork beside a thread.
        sys.settrace(watch)  # type: ignore[arg-type]
        pool.serve(
            "127.0.0.1:0",
            ready=lambda addresses: threading.Thread(target=ask, args=[addresses]).start(),
        )
        sys.settrace(None)
        assert seen
        assert seen == sorted(seen)
        assert seen[-1] == 4

    def answer(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"hello")

    pool = Pool(answer, 1, max_requests=1)
    run_in_child(serve)


@pytest.mark.thread_unsafe
@pytest.mark.untraced
def test_status_of_a_slow_thread() -> None:
    """What workers finish while a thread reads their counts is not in their hands."""
    seen: list[int] = []

    def ask(addresses: tuple[tuple[str, int], ...]) -> None:
        def watch(frame: FrameType, event: str, _argument: object) -> object:
            if frame.f_code.co_name != "describe":
                return watch if event == "call" else None
            with socket.create_connection(addresses[0]) as sock:
                assert read_all(sock) == b"hello"
            return watch

        sys.settrace(watch)  # type: ignore[arg-type]
        seen.extend(worker.in_hand for worker in pool.status().workers)
        sys.settrace(None)
        pool.stop()

    def serve() -> None:
        pool.serve(
            "127.0.0.1:0",
            ready=lambda addresses: threading.Thread(target=ask, args=[addresses]).start(),
        )
        assert pool.status().handled > 3
        assert seen == [0]

    def answer(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"hello")

    pool = Pool(answer, 1)
    run_in_child(serve)


@pytest.mark.thread_unsafe
@pytest.mark.untraced
def test_the_state_of_a_worker_that_is_told_to_leave() -> None:
    """A thread that reads slowly sees one of the documented states."""
    seen: list[str] = []

    def ask() -> None:
        def watch(frame: FrameType, event: str, _argument: object) -> object:
            if frame.f_code.co_name != "describe":
                return watch if event == "call" else None
            if "state" in frame.f_locals:
                pool.stop()
                while frame.f_locals["self"].state is State.READY:
                    pass
            return watch

        sys.settrace(watch)  # type: ignore[arg-type]
        seen.extend(worker.state for worker in pool.status().workers)
        sys.settrace(None)

    def serve() -> None:
        thread = threading.Thread(target=ask)
        pool.serve("127.0.0.1:0", ready=lambda _addresses: thread.start())
        thread.join()  # The pool may end first.
        assert len(seen) == 1
        assert seen[0] in STATES

    pool = Pool(echo, 1)
    run_in_child(serve)


@pytest.mark.thread_unsafe
def test_status_while_connections_are_served() -> None:
    """A thread that asks again and again never sees a worker with less than nothing in hand, nor
    counts that go back, though the master changes them without the interpreter's lock."""
    seen: list[tuple[int, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            status = pool.status()
            seen.append((status.handled, min(worker.in_hand for worker in status.workers)))

    def ask(addresses: tuple[tuple[str, int], ...]) -> None:
        watching = threading.Thread(target=watch)
        watching.start()
        try:
            for _ in range(1000):
                with socket.create_connection(addresses[0]) as sock:
                    assert read_all(sock) == b"hello"
        finally:
            over.set()
            watching.join()
            pool.stop()

    def serve() -> None:
        sys.setswitchinterval(1e-3)  # The master waits less for the thread that asks.
        pool.serve(
            "127.0.0.1:0",
            ready=lambda addresses: threading.Thread(target=ask, args=[addresses]).start(),
        )
        assert pool.status().handled == 1000
        assert min(in_hand for _, in_hand in seen) >= 0
        assert seen == sorted(seen, key=lambda one: one[0])

    def answer(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"hello")

    pool = Pool(answer, 2)
    run_in_child(serve)


@pytest.mark.thread_unsafe
@coroutines
def test_coroutine_functions_in_disguise(handler: str) -> None:
    """Partials, bound methods and objects that are called are awaited, several at once."""
    with Server(handler, "--workers", "1", "--capacity", "2") as server:
        with connections(server, 2) as (first, second):
            second.sendall(b"me first")
            assert read_all(second).endswith(b"me first")
            first.sendall(b"hello")
            assert read_all(first).endswith(b"hello")
        status = server.settled(1)
        assert (status.handled, status.failed) == (2, 0)


@pytest.mark.thread_unsafe
@not_awaited
def test_a_handler_that_is_not_awaited(handler: str) -> None:
    """A plain function that returns what it should have run is told so at every connection, which
    is closed and counted as failed."""
    with Server(handler, "--workers", "1") as server:
        for count in (1, 2):
            assert server.ask() == b""
            server.wait_for("ERROR the handler failed on the connection")
            server.wait_for("TypeError: .* returned .*, which the pool does not run")
            status = server.settled(1)
            assert (status.handled, status.failed, status.lost) == (count, count, 0)
        assert "never awaited" not in server.log


@pytest.mark.thread_unsafe
def test_a_loop_of_the_programs() -> None:
    """A worker's event loop is what loop_factory makes, which a plain function has no use for."""
    with Server(program=("pool_programs.py", "in_a_loop_of_its_own")) as server:
        assert server.ask() == b"Loop"
        assert server.stop() == 0
    with pytest.raises(ValueError, match="loop_factory"):
        Pool(echo, 1, loop_factory=asyncio.new_event_loop)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("seconds", ["0", "0.001"])
def test_a_default_timeout(seconds: str) -> None:
    """A timeout that the program gives to its new sockets ends no idle worker, and is none of the
    handler's socket."""
    with Server(program=("pool_programs.py", "default_timeout", seconds)) as server:
        pids = server.settled(2).pids
        for _ in range(20):
            pid, timeout = server.ask().split()
            assert int(pid) in pids
            assert timeout == b"None"
        assert server.settled(2).pids == pids
        assert server.stop() == 0
        assert "CRITICAL" not in server.log


@pytest.mark.thread_unsafe
def test_a_listener_is_given_back() -> None:
    """A borrowed listener stays open, in the mode in which it came."""

    def answer_and_stop(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"hello")
        os.kill(os.getppid(), signal.SIGTERM)

    def serve() -> None:
        pool = Pool(answer_and_stop, 1)
        pool.serve(listener)
        assert listener.gettimeout() == 5
        assert pool.status()[1:] == (0, 1, 0, 0)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        with socket.create_connection(listener.getsockname()) as sock:
            run_in_child(serve)
            assert read_all(sock) == b"hello"


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("times", [1, 3])
def test_a_stop_that_comes_early(times: int) -> None:
    """A pool that was stopped before it serves returns at once, again and again; once it has
    returned, the stop is forgotten."""

    def serve() -> None:
        pool = Pool(answer, 1)
        for _ in range(3):
            for _ in range(times):
                pool.stop()
            pool.serve("127.0.0.1:0")
        pool.stop()
        with pytest.raises(OSError, match="in use"):
            pool.serve(listener.getsockname())
        pool.serve("127.0.0.1:0")  # It has not returned from that.
        pool.reload()
        stopping = threading.Thread(target=stop_when_served, args=[pool])
        with socket.create_connection(listener.getsockname()) as sock:
            # Python 3.15 warns of every fork beside a thread.
            pool.serve(listener, ready=lambda _addresses: stopping.start())
            assert read_all(sock) == b"hello"

    def answer(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"hello")

    def stop_when_served(pool: Pool) -> None:
        while not pool.status().handled:
            pass
        pool.stop()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        run_in_child(serve)


@pytest.mark.thread_unsafe
def test_a_signal_while_the_program_starts() -> None:
    """A handler of the program's own, for a TERM that comes before the pool can have one, stops
    the pool by pool.stop()."""

    def serve() -> None:
        pool = Pool(echo, 1)
        signal.signal(signal.SIGTERM, lambda _signum, _frame: pool.stop())
        os.kill(os.getpid(), signal.SIGTERM)
        pool.serve("127.0.0.1:0")

    run_in_child(serve)


@pytest.mark.thread_unsafe
def test_no_descriptor_in_workers(tmp_path: Path) -> None:
    """A worker holds its channel and the end from which all take offers, and nothing of the
    master's: no listener, no other worker's."""
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    with Server("echo", "--workers", "3", addresses=("127.0.0.1:0", str(tmp_path / "s"))) as server:
        for pid in server.settled(3).pids:
            fds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert len([fd for fd in fds if fd.startswith("socket:")]) == 2
            assert not [fd for fd in fds if "eventpoll" in fd]


@pytest.mark.thread_unsafe
def test_socket_activation() -> None:
    """Without an address the pool serves the sockets that a service manager passed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # As a service manager: the sockets from 3 on, and the pid of the program itself.
        code = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])\n"
        )
        command = [*FDPASS[1:], "pool", "--workers", "1", "support.handlers:echo"]
        with Program(
            [sys.executable, "-c", code, str(listener.fileno()), *command],
            pass_fds=[listener.fileno()],
            cwd=Path(__file__).parent,
            stderr=subprocess.DEVNULL,
        ) as process:
            with socket.create_connection(listener.getsockname()) as sock:
                sock.sendall(b"hello")
                assert read_all(sock).endswith(b"hello")
            process.terminate()
            assert process.wait() == 0


def test_no_socket_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables meant for another process are removed and otherwise ignored."""
    assert inherit_listeners() == []
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert inherit_listeners() == []
    assert "LISTEN_FDS" not in os.environ


def test_broken_socket_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that is no number, or one that no process can have, is an error, which says whose it
    is."""
    for count in ("one", "-1", "", "9" * 10, "9" * 30, "9" * 5000):
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        with pytest.raises(ValueError, match=f"LISTEN_FDS is not .*'{count}'"):
            inherit_listeners()


@pytest.mark.thread_unsafe
def test_an_activation_without_its_sockets() -> None:
    """Where a program in between has closed what the service manager passed, the error says so."""
    # It closes 3 after all is imported: by then it may be a file that the interpreter keeps open.
    code = (
        "import os, sys\n"
        "import fdpass_c.pool\n"
        "from fdpass_c.__main__ import main\n"
        "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
        "os.closerange(3, 4)\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "pool", "support.handlers:echo"],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    why = os.strerror(errno.EBADF)
    assert done.stderr == f"fdpass: pool: {why}: LISTEN_FDS is 1, but 3 is not open\n"


@pytest.mark.thread_unsafe
@linux_only
@pytest.mark.parametrize(
    ("handler", "capacity", "offered"),
    [("begin_and_wait", 1, 2), ("begin_and_wait_async", 1, 0), ("begin_and_wait_async", 4, 0)],
)
def test_a_full_pool(handler: str, capacity: int, offered: int) -> None:
    """A full pool accepts no more than it can hold, and one for each worker that can take it; the
    rest wait in the kernel and are served."""
    with Server(handler, "--workers", "2", "--capacity", str(capacity)) as server:
        fds = server.settled(2) and server.list_fds()
        with connections(server, 2 * capacity + 5) as socks:
            for sock in socks[: 2 * capacity]:
                assert sock.recv(1000)
            status = server.status()
            assert [(w.state, w.in_hand) for w in status.workers] == [("BUSY", capacity)] * 2
            assert status.waiting == offered
            full = sorted([*fds, *["socket:[]"] * offered])
            assert server.settled_fds(full) == full
            for sock in socks:
                sock.sendall(b"go on")
                assert read_all(sock).endswith(b"go on")
        assert server.settled(2).handled == 2 * capacity + 5
