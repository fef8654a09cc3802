"""A worker that hangs is replaced, and one that has much to do is not."""

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

import fdpass_c.pool
from support.marks import linux_only
from support.server import Server, connections
from support.sockets import read_all, read_some
from support.tracing import kept_from_ending

pytestmark = pytest.mark.thread_unsafe

TIMEOUT = ("--timeout", "0.4")

LONGER = ("--timeout", "1")
"""For workers that are not to be replaced, on however busy a machine."""


@pytest.mark.parametrize(("handler", "capacity"), [("hang", "4"), ("hang_async", "4")])
def test_a_handler_that_hangs(handler: str, capacity: str) -> None:
    """Its worker says where it hangs and is replaced; only what it had begun is lost."""
    with Server(handler, "--workers", "1", "--capacity", capacity, *TIMEOUT) as server:
        (old,) = server.settled(1).pids
        with connections(server, 1) as (begun,), ExitStack() as stack:
            begun.sendall(b"hang")
            server.wait_for("hangs")
            others = [stack.enter_context(server.connect()) for _ in range(3)]
            for sock in others:
                sock.sendall(b"hello")
            assert read_some(begun) == b""
            new = {int(read_all(sock)) for sock in others}
        server.wait_for(f"worker {old} makes no progress")
        server.wait_for(rf"support/handlers.py\", line \d+ in {handler}")
        server.wait_for(f"worker {old} was killed by SIGABRT: 1 connections lost, 3 go to")
        status = server.settled(1)
        assert new == {*status.pids} != {old}
        assert (status.handled, status.lost) == (3, 1)
        assert server.stop() == 0


def test_tracebacks_where_the_program_wants_them(tmp_path: Path) -> None:
    """A program that has enabled faulthandler with a file of its own finds the tracebacks there."""
    notes = tmp_path / "notes"
    with Server(program=("pool_programs.py", "tracebacks_to", str(notes))) as server:
        (old,) = server.settled(1).pids
        with connections(server, 1) as (sock,):
            sock.sendall(b"hang")
            assert read_some(sock) == b""
        server.wait_for(f"worker {old} was killed by SIGABRT")
        assert "in hang\n" in notes.read_text()
        server.settled(1)
        assert server.stop() == 0


@pytest.mark.parametrize("handler", ["hang", "hang_async"])
def test_a_stopped_worker(handler: str) -> None:
    """What a stopped worker was given and had not begun goes to its successor."""
    with Server(handler, "--workers", "1", "--capacity", "3", *TIMEOUT) as server:
        (old,) = server.settled(1).pids
        os.kill(old, signal.SIGSTOP)
        with connections(server, 3) as socks:
            for sock in socks:
                sock.sendall(b"hello")
            new = {int(read_all(sock)) for sock in socks}
        server.wait_for(f"worker {old} was killed by SIGKILL: 0 connections lost, 3 go to")
        assert server.log.count("makes no progress") == 1
        status = server.settled(1)
        assert new == {*status.pids} != {old}
        assert (status.handled, status.lost) == (3, 0)
        assert server.stop() == 0


@linux_only
@pytest.mark.parametrize(
    ("handler", "options"),
    [("hang", (*TIMEOUT, "--drain", "10000")), ("hang_async", ("--drain", "0.1"))],
)
def test_a_worker_that_cannot_end(handler: str, options: "tuple[str, ...]") -> None:
    """A worker that is killed and held by a debugger, or by a disk that does not answer, keeps
    neither the pool from its work nor what it had not begun from others. It is killed because it
    hangs, or because it does not finish in a reload. The master waits for it when it ends."""
    with Server(handler, "--workers", "1", "--capacity", "4", *options) as server:
        (old,) = server.settled(1).pids
        with connections(server, 1) as (begun,), ExitStack() as stack:
            begun.sendall(b"hang")
            server.wait_for("hangs")
            others = [stack.enter_context(server.connect()) for _ in range(3)]
            for sock in others:
                sock.sendall(b"hello")
            held = stack.enter_context(ExitStack())
            held.enter_context(kept_from_ending(old))
            if TIMEOUT[0] in options:
                server.wait_for(f"worker {old} makes no progress")
            else:
                while server.status().workers[0].in_hand < 4:
                    pass
                server.send_signal(signal.SIGHUP)
                server.wait_for(f"worker {old} did not finish in time")
            assert int(server.ask()) != old
            new = {int(read_all(sock)) for sock in others}
            server.wait_for(f"worker {old} has not ended yet: 1 connections lost, 3 go to")
            status = server.settled(1)
            assert new == {*status.pids} != {old}
            assert (status.handled, status.lost) == (4, 1)
            held.close()
            while old in server.list_children():
                pass
            stack.enter_context(kept_from_ending(*status.pids))
            server.send_signal(signal.SIGTERM)
            assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("handler", "capacity"), [("begin_and_wait", "1"), ("keep_alive_async", "4")]
)
def test_a_pool_that_is_suspended(handler: str, capacity: str) -> None:
    """Where the master is stopped too, as by a terminal or a container that pauses, its workers
    have not hung when all go on."""
    options = ("--workers", "1", "--capacity", capacity, "--timeout", "1.5")
    with Server(handler, *options) as server, server.connect() as sock:
        pids = [server.pid, int(sock.recv(100))]
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(100)  # Meanwhile the master looks, once at least.
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        sock.settimeout(1.8)
        with pytest.raises(TimeoutError):
            sock.recv(100)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for _ in range(2):  # After the first, the master looks.
            server.status()
        sock.sendall(b"still here")
        assert sock.recv(100) == b"still here"
        sock.close()
        status = server.settled(1)
        assert (status.handled, status.lost) == (1, 0)
        assert "no progress" not in server.log
        assert server.stop() == 0


def _suspend(server: Server, sock: socket.socket, seconds: float) -> None:
    """The pool stands still for so long, on which a client that gets nothing waits. The master goes
    on first."""
    pids = [server.pid, *server.status().pids]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    sock.settimeout(seconds)
    with pytest.raises(TimeoutError):
        sock.recv(100)
    sock.settimeout(30)
    os.kill(server.pid, signal.SIGCONT)
    server.status()
    for pid in pids[1:]:
        os.kill(pid, signal.SIGCONT)


def test_a_start_that_is_suspended(tmp_path: Path) -> None:
    """The time in which the whole pool is suspended does not count as a worker's time to start."""
    gate = tmp_path / "gate"
    gate.touch()
    program = ("pool_programs.py", "wait_to_start", str(gate), "start_timeout", "3")
    with Server(program=program) as server, server.connect() as sock:
        _suspend(server, sock, 3.2)
        gate.unlink()
        sock.sendall(b"hello")
        assert read_all(sock)
        assert server.stop() == 0
        assert "WARNING" not in server.log


def test_an_end_that_is_suspended() -> None:
    """Nor does it count as the time that a worker has to finish."""
    with Server("begin_and_wait", "--workers", "1", "--drain", "3") as server:
        with server.connect() as sock:
            assert sock.recv(100)
            server.send_signal(signal.SIGTERM)
            _suspend(server, sock, 3.2)
            sock.sendall(b"the end")
            assert read_all(sock) == b"the end"
        assert server.process.wait() == 0
        assert "WARNING" not in server.log


def test_a_worker_that_hangs_as_it_leaves() -> None:
    """A reload does not wait all of drain for it."""
    with Server("hang", "--workers", "1", "--drain", "10000", *TIMEOUT) as server:
        (old,) = server.settled(1).pids
        with connections(server, 1) as (sock,):
            sock.sendall(b"hang")
            while not server.status().workers[0].in_hand:
                pass
            server.send_signal(signal.SIGHUP)
            assert read_some(sock) == b""
        server.wait_for(f"worker {old} was killed by SIGABRT: 1 connections lost, 0 go to")
        assert server.stop() == 0


def test_idle_connections() -> None:
    """An event loop that turns does not hang, however long its connections say nothing; nor does
    one that has nothing to do."""
    with Server(program=("pool_programs.py", "rare_heartbeats")) as server:
        server.settled(3)
        with connections(server, 2) as (idle, busy):
            idle.sendall(b"wait")
            busy.sendall(b"hang")
            # Both began to say nothing before that one was found.
            assert read_some(busy) == b""
            idle.sendall(b"go on")
            answered = int(read_all(idle))
        status = server.settled(3)
        assert answered in status.pids
        assert sum(worker.restarts for worker in status.workers) == 1
        assert server.stop() == 0


def test_long_work() -> None:
    """A plain function that says that it makes progress may take as long as it likes."""
    with Server("work_for_long", "--workers", "1", *LONGER) as server:
        pids = server.settled(1).pids
        assert int(server.ask(b"1.5")) == pids[0]
        assert server.settled(1).pids == pids
        assert server.stop() == 0
        assert "WARNING" not in server.log


def test_long_queues() -> None:
    """A worker that finishes one connection after the other may have some in hand for as long as
    it likes."""
    with Server("work_for_long", "--workers", "1", "--capacity", "15", *LONGER) as server:
        pids = server.settled(1).pids
        with connections(server, 15) as socks:
            for sock in socks:
                sock.sendall(b"0.1")
            assert [int(read_all(sock)) for sock in socks] == pids * 15
        assert "WARNING" not in server.log


def test_progress_outside_of_a_worker() -> None:
    """A handler runs anywhere: nobody watches it there."""
    fdpass_c.pool.note_progress()


def test_a_bad_timeout() -> None:
    """No time at all is refused."""
    for timeout in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout is a positive"):
            fdpass_c.pool.Pool(print, 1, timeout=timeout)
