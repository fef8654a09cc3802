"""Whatever one client or one handler does, the others are served."""

import os
import resource
import signal
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from fdpass_c.pool import accepting
from fdpass_c.pool.connected import read_address
from support.marks import linux_only
from support.server import Server, connections
from support.sockets import read_all, read_some

both_kinds = pytest.mark.parametrize("handler", ["echo", "echo_async"])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("handler", "capacity"), [("echo", "1"), ("echo_async", "2")])
def test_silent_clients(handler: str, capacity: str) -> None:
    """A client that says nothing takes one place, and nobody is put behind it."""
    with (
        Server(handler, "--workers", "2", "--capacity", capacity) as server,
        connections(server, 1) as (silent,),
    ):
        for _ in range(20):
            assert server.ask().endswith(b"hello")
        silent.sendall(b"after all")
        assert read_all(silent).endswith(b"after all")


def reset(sock: socket.socket) -> None:
    """Closes with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.thread_unsafe
@both_kinds
def test_resetting_clients(handler: str) -> None:
    """Clients that reset, before they are accepted or after their request, disturb nobody."""
    with Server(handler, "--workers", "2", "--capacity", "3") as server:
        for number in range(50):
            with connections(server, 3) as (first, second, third):
                reset(first)
                third.sendall(b"hello")
                if number % 2:
                    second.sendall(b"request")
                reset(second)
                assert read_all(third).endswith(b"hello")
        status = server.settled(2)
        assert status.lost == 0
        assert status.handled >= 50
        assert all(worker.restarts == 0 for worker in status.workers)


@pytest.mark.thread_unsafe
def test_a_client_that_does_not_read() -> None:
    """A handler may set SO_LINGER: the master waits for no client when it closes its copies."""
    with Server("linger", "--workers", "1") as server, connections(server, 1) as (deaf,):
        deaf.sendall(b"much")
        assert deaf.recv(1)
        for _ in range(2):
            assert server.ask(b"little") == b"a little"
        assert server.settled(1).handled == 3
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@linux_only
def test_a_client_that_does_not_read_where_the_worker_closes_last() -> None:
    """Nor does the worker, which has another connection by then."""
    with Server("linger_late", "--workers", "1") as server:
        server.settled(1)
        fds = server.list_fds()
        with connections(server, 1) as (deaf,):
            while not server.status().workers[0].in_hand:
                pass
            assert server.settled_fds(fds) == fds  # The master has no copy any more.
            deaf.sendall(b"much")
            assert deaf.recv(1)
            assert server.ask(b"little") == b"a little"
            assert server.settled(1).handled == 2
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["answer_for_ever", "answer_for_ever_async"])
def test_a_client_that_goes(handler: str) -> None:
    """A client that goes is no failure of the handler, whose exception says it."""
    with Server(handler, "--workers", "1") as server:
        for _ in range(3):
            with server.connect() as sock:
                assert sock.recv(1) == b"x"
        status = server.settled(1)
        assert (status.handled, status.failed) == (3, 0)
        assert "Traceback" not in server.log


def test_the_address_of_a_client_that_has_gone() -> None:
    """Where only the kernel knew it (AF_VSOCK), it no longer does; that is no reason to end."""
    with socket.socket() as gone:
        assert read_address(b"", -1, gone) is None


@pytest.mark.thread_unsafe
def test_a_client_without_tls() -> None:
    """Where a handler speaks TLS, a client that does not is no failure of the handler."""
    with Server("speak_tls", "--workers", "1") as server:
        for _ in range(3):
            assert server.ask() == b""
        status = server.settled(1)
        assert (status.handled, status.failed) == (3, 0)
        assert "Traceback" not in server.log


@pytest.mark.thread_unsafe
@linux_only
@both_kinds
def test_flood(handler: str) -> None:
    """A client that connects 500 times at once does not keep another one out, nor leave
    anything behind."""
    with Server(handler, "--workers", "2", "--capacity", "10") as server:
        fds = server.settled(2) and server.list_fds()
        with connections(server, 500) as socks, server.connect() as other:
            other.sendall(b"me too")
            for sock in socks:
                sock.sendall(b"again")
            assert read_all(other).endswith(b"me too")
            for sock in socks:
                assert read_all(sock).endswith(b"again")
        status = server.settled(2)
        assert (status.handled, status.lost) == (501, 0)
        assert server.settled_fds(fds) == fds


@pytest.mark.thread_unsafe
def test_flood_on_one_listener() -> None:
    """Of two listeners the one that is flooded does not keep the other from being served."""
    addresses = ("127.0.0.1:0", "127.0.0.1:0")
    with Server("echo", "--workers", "1", addresses=addresses) as server:
        quiet = int(server.addresses[1].rpartition(":")[2])
        with connections(server, 100) as socks:
            with socket.create_connection(("127.0.0.1", quiet)) as other:
                other.sendall(b"me too")
                for sock in socks:
                    sock.sendall(b"again")
                assert read_all(other).endswith(b"me too")
            for sock in socks:
                assert read_all(sock).endswith(b"again")


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["obey", "obey_async"])
def test_handler_that_raises(handler: str) -> None:
    """An exception of whatever class is logged with the client's address, the connection closed,
    the worker stays."""
    with Server(handler, "--workers", "1") as server:
        pid = server.settled(1).pids[0]
        for request, error in ((b"raise", "RuntimeError"), (b"raise more", "NotAnException")):
            with server.connect() as sock:
                address = sock.getsockname()
                sock.sendall(request)
                assert read_all(sock) == b""
            assert str(address[1]) in server.wait_for(r"ERROR the handler failed on (.*)")[1]
            server.wait_for(f"{error}: asked to")
        assert server.ask() == str(pid).encode()
        status = server.settled(1)
        assert (status.handled, status.failed, status.lost) == (3, 2, 0)
        assert (status.pids, status.workers[0].failed) == ([pid], 2)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["obey", "obey_async"])
def test_handler_that_raises_without_a_log(handler: str) -> None:
    """Where the program has closed standard error, neither the worker nor the master ends."""
    with Server(program=("pool_programs.py", "close_standard_error", handler)) as server:
        pid = server.ask()
        assert server.ask(b"raise") == b""
        assert server.ask() == pid
        os.kill(int(pid), signal.SIGKILL)
        assert server.ask() not in (pid, b"")
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["obey", "obey_async"])
def test_handler_whose_failure_cannot_be_logged(handler: str) -> None:
    """An error of the program's logging ends the worker, which is replaced."""
    with Server(program=("pool_programs.py", "fail_to_log", handler)) as server:
        pid = server.ask()
        with server.connect() as sock:
            sock.sendall(b"raise")
            server.wait_for("CRITICAL the worker failed")
            server.wait_for("LookupError: no such field")
            server.wait_for("exited with status 1: 1 connections lost")
        assert server.ask() not in (pid, b"")
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_what_an_ending_event_loop_has_not_begun(tmp_path: Path) -> None:
    """A worker that ends because of an error says that it is leaving, and begins nothing more:
    while its teardown runs, other workers get what was on its way."""
    gate = tmp_path / "gate"
    gate.touch()
    program = ("pool_programs.py", "end_beside_others", str(gate))
    with Server(program=program) as server, ExitStack() as stack:
        first, second = server.settled(2).pids
        begun = stack.enter_context(server.connect())
        begun.sendall(b"block")
        server.wait_for("blocks")
        other = second if server.status().workers[0].in_hand else first
        waiting = []
        while [worker.in_hand for worker in server.status().workers if worker.pid != other] != [3]:
            waiting.append(stack.enter_context(server.connect()))
        begun.sendall(b"fail")
        server.wait_for("leaving: True, True")
        for sock in waiting:
            sock.sendall(b"hello")
            assert int(read_all(sock)) == other
        gate.unlink()
        server.wait_for("exited with status 1: 1 connections lost, 2 go to")
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_handler_that_closes_early() -> None:
    """The peer sees the end when the handler closes, though the master had a copy."""
    with Server("close_and_wait", "--workers", "1") as server:
        with server.connect() as sock:
            pid = int(read_all(sock))
        assert [worker.in_hand for worker in server.status().workers] == [1]
        os.kill(pid, signal.SIGKILL)
        assert server.settled(1).lost == 1


@pytest.mark.thread_unsafe
def test_handler_that_exits() -> None:
    """A handler that calls sys.exit ends its worker, which is replaced."""
    with Server("obey", "--workers", "1") as server:
        old = server.settled(1).pids
        with server.connect() as sock:
            sock.sendall(b"exit")
            assert read_some(sock) == b""
        server.wait_for(r"exited with status 3: 1 connections lost")
        assert int(server.ask()) not in old
        status = server.settled(1)
        assert (status.handled, status.lost) == (1, 1)
        assert status.workers[0].restarts == 1


@pytest.mark.thread_unsafe
def test_stuck_child_of_a_worker() -> None:
    """A worker that dies while a child of its handler lives on is replaced all the same."""
    with Server("fork_a_child", "--workers", "1") as server, server.connect() as sock:
        sock.sendall(b"fork")
        worker, child = map(int, sock.recv(1000).split())
        os.kill(worker, signal.SIGKILL)
        try:
            server.wait_for("killed by SIGKILL")
            assert server.settled(1).pids != [worker]
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["fork_and_return", "fork_and_return_async"])
def test_child_that_returns(handler: str, tmp_path: Path) -> None:
    """A process that a handler has forked ends where it returns from the handler: it is no second
    worker, counts nothing, runs no teardown, and does not take its worker to be leaving."""
    notes = tmp_path / "notes"
    with Server(program=("pool_programs.py", "teardown", str(notes), handler)) as server:
        pids = server.settled(1).pids
        for _ in range(2):
            assert server.ask(b"return") == b"from the child, status 0"
            assert server.ask(b"raise") == b"status 1"
            server.wait_for("CRITICAL a process that a worker has forked failed")
            server.wait_for("RuntimeError: asked to")
            assert server.ask(b"exit") == b"status 3"
        status = server.settled(1)
        assert status.pids == pids
        assert (status.handled, status.failed, status.lost) == (6, 0, 0)
        assert server.stop() == 0
    assert notes.read_text().splitlines() == ["setup", "teardown beside 0", "atexit"]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["echo", "echo_async"])
def test_setup_whose_child_returns(handler: str) -> None:
    """Nor is a process a second worker that setup has forked."""
    program = ("pool_programs.py", "fork_in_setup", handler)
    with Server(program=program) as server:
        (pid,) = server.settled(1).pids
        for _ in range(10):
            assert server.ask().startswith(f"{pid} ".encode())
        assert server.settled(1).handled == 10
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_children_that_are_terminated() -> None:
    """TERM ends a process that a handler forks, although workers ignore it, unless the process
    handles it."""
    with Server("terminate_children", "--workers", "1") as server:
        for _ in range(5):
            assert server.ask() == b"[-15, 5]"
        (pid,) = server.settled(1).pids
        os.kill(pid, signal.SIGTERM)
        assert server.ask() == b"[-15, 5]"
        assert server.settled(1).lost == 0
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@linux_only
def test_master_out_of_descriptors() -> None:
    """A master whose descriptor table is full waits, says so, and goes on when there is room."""
    with Server("begin_and_wait", "--workers", "1", "--capacity", "50") as server:
        used = len(server.settled(1) and server.list_fds())
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 10, hard))
        with connections(server, 40) as socks:
            server.wait_for("cannot accept: Too many open files")
            for sock in socks:
                sock.sendall(b"go on")
                assert read_all(sock).endswith(b"go on")
        status = server.settled(1)
        assert (status.handled, status.lost) == (40, 0)


@pytest.mark.thread_unsafe
@linux_only
def test_a_lack_that_lasts() -> None:
    """It is logged again from time to time, and the master pauses before each new try."""
    with Server(program=("pool_programs.py", "log_often")) as server:
        used = len(server.settled(1) and server.list_fds())
        _, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used, hard))
        began = time.monotonic()
        with connections(server, 1) as (sock,):
            for _ in range(5):
                server.wait_for("cannot accept: Too many open files")
            assert time.monotonic() - began > 4 * accepting.RETRY_DELAY
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (hard, hard))
            sock.sendall(b"go on")
            assert read_all(sock).endswith(b"go on")
        assert server.stop() == 0
