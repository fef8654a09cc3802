"""Whatever it listens on, a pool neither starves nor spins."""

import errno
import itertools
import logging
import os
import platform
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from fdpass_c._native import ffi, lib
from fdpass_c.pool import Pool, open_listener
from fdpass_c.pool.accepting import Acceptors
from fdpass_c.pool.connected import find_kind
from fdpass_c.pool.dispatch import Dispatcher
from fdpass_c.pool.listeners import opened
from fdpass_c.pool.rounds import Rounds
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.testing import no_leak
from pool_programs import ACCEPT4
from support.handlers import echo
from support.marks import linux_only
from support.processes import FDPASS, fork, run_in_child
from support.server import Server
from support.sockets import read_all


def make_deaf(kind: str) -> socket.socket:
    """A socket that cannot accept connections."""
    if kind == "udp":
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
    elif kind == "unix datagram":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    elif kind == "bound only":
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
    elif kind == "connected":
        sock, other = socket.socketpair()
        other.close()
    elif kind == "shut":
        sock = socket.create_server(("127.0.0.1", 0))
        sock.shutdown(socket.SHUT_RDWR)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return sock


@pytest.mark.thread_unsafe
def test_what_is_no_socket_is_left_alone() -> None:
    """Where the kernel does not say what kind of socket it is, nothing stays open."""
    with open(os.devnull) as file, no_leak(), pytest.raises(OSError, match="non-socket"):
        find_kind(file)  # type: ignore[arg-type]


@pytest.mark.thread_unsafe
@linux_only
def test_what_cannot_accept_is_refused() -> None:
    """Beside a listener or alone, a socket that does not listen is refused by its name, and the
    others are given back as they came."""
    for kind in ("udp", "unix datagram", "bound only", "connected", "shut", "seqpacket"):
        with make_deaf(kind) as deaf, open_listener("127.0.0.1:0") as listener:
            for listeners in ([deaf], [listener, deaf], [deaf, listener]):
                with pytest.raises(ValueError, match=rf"descriptor {deaf.fileno()}\b.* not listen"):
                    Pool(echo, 1).serve(*listeners)
                assert listener.gettimeout() is None


@pytest.mark.thread_unsafe
def test_a_listener_given_twice() -> None:
    """The same socket twice is refused, and given back as it came."""
    with open_listener("127.0.0.1:0") as listener:
        with pytest.raises(ValueError, match="twice"):
            Pool(echo, 1).serve(listener, listener)
        assert listener.gettimeout() is None


@pytest.mark.thread_unsafe
def test_an_address_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused as such, and no other process is blamed; port 0 is another one each time."""
    monkeypatch.chdir(tmp_path)
    for one, other in (
        ("./a", tmp_path / "a"),
        ("./a", "./b/../a"),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", "[::1]:80"),
    ):
        with pytest.raises(ValueError, match="given twice"):
            Pool(echo, 1).serve(one, other)
        with pytest.raises(ValueError, match="given twice"):
            Pool(echo, 1).serve("127.0.0.1:0", one, metrics=other)
    assert not [*tmp_path.iterdir()]
    pool = Pool(echo, 1)
    pool.stop()
    pool.serve("127.0.0.1:0", ("127.0.0.1", 0), metrics="127.0.0.1:0")


@pytest.mark.thread_unsafe
@linux_only
def test_abstract_names(caplog: pytest.LogCaptureFixture) -> None:
    """A log shows them as other tools do, and no NUL, whatever their bytes are."""
    for name, shown in ((b"fdpass test", "@fdpass test"), (b"fdpass \xff", "@fdpass \\xff")):
        with open_listener("127.0.0.1:0") as listener, socket.socket(socket.AF_UNIX) as metrics:
            metrics.bind(b"\0" + name)
            metrics.listen()
            pool = Pool(echo, 1)
            pool.stop()
            with caplog.at_level(logging.INFO):
                pool.serve(listener, metrics=metrics)
        assert f"metrics at {shown}" in caplog.messages


@pytest.mark.thread_unsafe
def test_a_listener_that_others_make_blocking() -> None:
    """Another process that shares a listener, for instance a pool that ends, may make it blocking,
    at any time: the master does not wait in accept."""

    def serve() -> None:
        pool = Pool(answer, 2)

        def ask(addresses: tuple[tuple[str, int], ...]) -> None:
            for address in addresses * 5:
                for sock in (listener, metrics):
                    os.set_blocking(sock.fileno(), True)
                with socket.create_connection(address) as client:
                    assert read_all(client) == b"hello"
                with socket.create_connection(metrics.getsockname()) as client:
                    client.sendall(b"GET /status HTTP/1.1\r\n\r\n")
                    assert b"200 OK" in read_all(client)
            pool.stop()

        pool.serve(
            listener,
            metrics=metrics,
            ready=lambda addresses: threading.Thread(target=ask, args=[addresses]).start(),
        )

    with open_listener("127.0.0.1:0") as listener, open_listener("127.0.0.1:0") as metrics:
        run_in_child(serve)


def answer(sock: socket.socket, _address: object) -> None:
    sock.sendall(b"hello")


@pytest.mark.thread_unsafe
def test_the_mode_that_others_need() -> None:
    """A listener that another process had made non-blocking is not blocking after the pool."""
    with open_listener("127.0.0.1:0") as listener, open_listener("127.0.0.1:0") as metrics:
        for sock in (listener, metrics):
            os.set_blocking(sock.fileno(), False)
        pool = Pool(echo, 1)
        pool.stop()
        pool.serve(listener, metrics=metrics)
        for sock in (listener, metrics):
            assert not os.get_blocking(sock.fileno())
            assert sock.gettimeout() is None


@pytest.mark.thread_unsafe
def test_a_listener_whose_descriptor_is_closed() -> None:
    """Other code may close a listener's descriptor: the pool ends as ever, and finishes what it
    has."""

    def handle(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"begun")
        sock.sendall(sock.recv(100))

    def serve() -> None:
        pool = Pool(handle, 1)

        def ask(addresses: tuple[tuple[str, int], ...]) -> None:
            with socket.create_connection(addresses[0]) as client:
                assert client.recv(100) == b"begun"
                for sock in (listener, metrics):
                    os.close(sock.fileno())
                pool.stop()
                client.sendall(b"end")
                assert client.recv(100) == b"end"

        with ThreadPoolExecutor() as threads:
            asking: list[Future[None]] = []
            pool.serve(
                listener,
                metrics=metrics,
                ready=lambda addresses: asking.append(threads.submit(ask, addresses)),
            )
            asking[0].result()
        assert pool.status().lost == 0

    with open_listener("127.0.0.1:0") as listener, open_listener("127.0.0.1:0") as metrics:
        run_in_child(serve)


def run_activated(*sockets: socket.socket) -> "subprocess.CompletedProcess[str]":
    """fdpass pool under a service manager that passes these sockets, until it ends."""
    code = (
        "import fcntl, os, sys\n"
        "fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(',')]\n"
        "for target, fd in enumerate(fds, 3):\n"
        "    os.dup2(fd, target)\n"
        "os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()))\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])\n"
    )
    fds = [sock.fileno() for sock in sockets]
    command = [*FDPASS[1:], "pool", "--workers", "1", "support.handlers:echo"]
    return subprocess.run(
        [sys.executable, "-c", code, ",".join(map(str, fds)), *command],
        pass_fds=fds,
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


@pytest.mark.thread_unsafe
@linux_only
def test_a_service_manager_passes_a_datagram_socket() -> None:
    """The command says in a line which socket is not fit, and ends with status 1."""
    with make_deaf("udp") as deaf, open_listener("127.0.0.1:0") as listener:
        for sockets in ([deaf], [listener, deaf]):
            done = run_activated(*sockets)
            assert done.returncode == 1
            assert f"127.0.0.1:{deaf.getsockname()[1]}" in done.stderr
            assert len(done.stderr.splitlines()) == 1


@pytest.mark.thread_unsafe
@linux_only
@pytest.mark.skipif(platform.machine() not in ACCEPT4, reason="the number of accept4")
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENETDOWN, errno.ECONNABORTED, errno.EINTR])
def test_a_lasting_error_of_accept(code: int) -> None:
    """A listener whose every accept fails rests, and keeps neither the signals nor the other
    listener from their turn."""
    program = ("pool_programs.py", "accept_fails", str(code))
    with Server(program=program, addresses=("127.0.0.1:0", "127.0.0.1:0")) as server:
        deaf, fine = [int(address.rpartition(":")[2]) for address in server.addresses]
        with socket.create_connection(("127.0.0.1", deaf)):
            server.wait_for("cannot accept at 127.0.0.1")
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", fine)) as sock:
                    sock.sendall(b"hello")
                    assert read_all(sock)
            server.settled(1)
            assert server.log.count("cannot accept at") == 1
            assert "any longer" not in server.log
            assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_one_error_of_accept() -> None:
    """It may be of one connection, and is no reason to rest; two in a row may last."""
    with closing(Acceptors(nonblocking=False)) as acceptors:
        acceptors.open(["127.0.0.1:0"])
        (acceptor,) = acceptors.prepare(0.0)
        for failures, rests in enumerate((False, True, True), 1):
            # As the core does.
            acceptor.record.error, acceptor.record.failures = -errno.ECONNABORTED, failures
            assert acceptors.handle_errors() == 0
            assert acceptor.is_resting == (acceptors.due_at < float("inf")) == rests


@pytest.mark.thread_unsafe
def test_the_end_of_a_rest() -> None:
    """A listener that rests is tried again although nothing else happens."""
    with (
        selectors.DefaultSelector() as selector,
        closing(Wakeup()) as wakeup,
        closing(Acceptors(nonblocking=False)) as acceptors,
    ):
        acceptors.open(["127.0.0.1:0"])
        (acceptor,) = acceptors.prepare(0.0)
        acceptor.record.error, acceptor.record.failures = -errno.ECONNABORTED, 2
        acceptors.handle_errors()
        dispatcher = Dispatcher(Rounds(selector, wakeup, None, False), acceptors, [], selector)
        while acceptor.is_resting:
            dispatcher.distribute(float("inf"))


def connect(address: str) -> socket.socket:
    """To where a pool listens, as its log tells it."""
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


@pytest.mark.thread_unsafe
@linux_only
@pytest.mark.parametrize("how", ["read", "both", "close"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_listener_that_ends(family: str, how: str, tmp_path: Path) -> None:
    """When a borrowed listener ends, what was begun goes on and the others serve; without any,
    the pool finishes what it has, and ends with an error that says so."""
    program = ("pool_programs.py", "end_listeners", how)
    addresses = ("127.0.0.1:0", "127.0.0.1:0")
    if family == "unix":
        addresses = (str(tmp_path / "first"), str(tmp_path / "second"))
    with Server(program=program, addresses=addresses) as server:
        first, second = server.addresses
        with ExitStack() as stack:
            begun = stack.enter_context(connect(first))
            assert begun.recv(1000)
            server.send_signal(signal.SIGUSR2)
            server.wait_for(f"ERROR cannot accept at {first}")
            other = stack.enter_context(connect(second))
            begun.sendall(b"still here")
            assert read_all(begun) == b"still here"
            assert other.recv(1000)
            server.send_signal(signal.SIGUSR2)
            server.wait_for("stopping")
            server.send_signal(signal.SIGTERM)  # The first: no worker is killed.
            for _ in range(2):
                server.status()
            other.sendall(b"still here")
            assert read_all(other) == b"still here"
        assert server.process.wait() == 1
        server.wait_for("PoolError: no listener")


@pytest.mark.thread_unsafe
def test_a_path_that_became_anothers(tmp_path: Path) -> None:
    """A pool that stops removes its own socket file, and not one that another server has bound at
    its path meanwhile, nor a file that is no socket; wherever the program has gone."""
    path = tmp_path / "socket"
    with Server("echo", "--workers", "1", addresses=(str(path),)) as server:
        path.unlink()
        with open_listener(path):
            server.settled(1)
            assert server.stop() == 0
            assert path.is_socket()
    path.unlink()
    with Server("echo", "--workers", "1", addresses=(str(path),)) as server:
        path.unlink()
        path.write_text("precious")
        assert server.stop() == 0
    assert path.read_text() == "precious"


@pytest.mark.thread_unsafe
def test_a_path_that_others_have_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said of it at the end."""
    path = tmp_path / "socket"
    with opened(path):
        path.unlink()
    assert not caplog.records


@pytest.mark.thread_unsafe
def test_a_path_from_elsewhere(tmp_path: Path) -> None:
    """A relative path is where it was when the pool began, though the program changes its
    directory."""

    def serve() -> None:
        os.chdir(tmp_path)
        pool = Pool(answer_elsewhere, 1)
        pool.serve("./socket")
        assert not (tmp_path / "socket").exists()

    def answer_elsewhere(sock: socket.socket, _address: object) -> None:
        sock.sendall(b"hello")
        os.kill(os.getppid(), signal.SIGUSR2)

    def go_elsewhere_and_stop(_signum: int, _frame: object) -> None:
        os.chdir("/")
        os.kill(os.getpid(), signal.SIGTERM)

    def ask() -> None:
        while not (tmp_path / "socket").exists():
            pass
        with socket.socket(socket.AF_UNIX) as sock:
            while sock.connect_ex(str(tmp_path / "socket")):
                pass
            assert read_all(sock) == b"hello"

    before = signal.signal(signal.SIGUSR2, go_elsewhere_and_stop)
    thread = threading.Thread(target=ask)
    try:
        pid = fork()
        if pid == 0:
            status = 1
            try:
                serve()
                status = 0
            finally:
                os._exit(status)
        thread.start()
        thread.join()
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        signal.signal(signal.SIGUSR2, before)


def count_answers(socks: Sequence[socket.socket]) -> list[int]:
    """In whose order the connections were handled: the time of each answer."""
    return [int(read_all(sock).split()[0]) for sock in socks]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("listeners", "capacity"), [(2, 1), (3, 2), (3, 4)])
def test_fair_shares(listeners: int, capacity: int) -> None:
    """While all are flooded each listener gets its share, whatever the room for connections."""
    many = 60
    addresses = ("127.0.0.1:0",) * listeners
    options = ("--workers", "1", "--capacity", str(capacity))
    with Server("wait_then_number", *options, addresses=addresses) as server, ExitStack() as stack:
        ports = [int(address.rpartition(":")[2]) for address in server.addresses]
        gate = stack.enter_context(socket.create_connection(("127.0.0.1", ports[0])))
        assert gate.recv(1) == b"."
        socks = [
            [
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                for _ in range(many)
            ]
            for port in ports
        ]
        gate.sendall(b"go")
        numbers = [count_answers(socks_of_one) for socks_of_one in socks]
        for count in range(1, many):
            # When any of them has had so many, the others have had about as many.
            latest = [sorted(of_one)[count - 1] for of_one in numbers]
            assert max(latest) - min(latest) <= 4 * listeners * capacity


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_changing_rooms(count: int) -> None:
    """Who gets one more than the others does not depend on how the room changes."""
    for rooms in ((1,), (3, 2), (3, 1), (5, 4, 3), (7, 1, 1)):
        with ExitStack() as stack:
            socks = [stack.enter_context(opened("127.0.0.1:0")) for _ in range(count)]
            for sock in socks:
                for _ in range(60):
                    stack.enter_context(socket.create_connection(sock.getsockname()))
            acceptors = Acceptors(False)
            stack.callback(acceptors.close)
            acceptors.open(socks)
            items = ffi.new("struct fdp_listener *[]", [one.record for one in acceptors.prepare(0)])
            listeners = ffi.new("struct fdp_listeners *", (items, count))
            queue = ffi.gc(ffi.new("struct fdp_queue *"), lib.fdp_free_queue)
            for room in itertools.islice(itertools.cycle(rooms), 12):
                assert lib.fdp_accept_many(listeners, room, queue) == room
                accepted = [queue.items[queue.head + at] for at in range(queue.count)]
                origins = [connection.payload[0] for connection in accepted]
                shares = [origins.count(origin) for origin in range(count)]
                assert max(shares) - min(shares) <= 1, (rooms, shares)
