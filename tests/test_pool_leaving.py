"""A worker that is to leave says so to its handlers, and ends in order."""

import os
import signal
from pathlib import Path

import pytest

import fdpass_c.pool
from support.server import Server, connections
from support.sockets import read_all, read_some


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("handler", "capacity", "end"),
    [
        ("keep_alive", "1", "TERM"),
        ("keep_alive", "1", "kill the master"),
        ("keep_alive_async", "2", "HUP"),
        ("keep_alive_async", "2", "kill the master"),
    ],
)
def test_kept_alive_connections_end(handler: str, capacity: str, end: str) -> None:
    """A handler learns that its worker is to leave, and its idle connections end long before the
    worker would be killed."""
    options = ("--workers", "2", "--capacity", capacity, "--drain", "10000")
    with Server(handler, *options) as server:
        server.settled(2)
        with connections(server, 2) as socks:
            pids = []
            for sock in socks:
                pids.append(int(sock.recv(100)))
                sock.sendall(b"still here")
                assert sock.recv(100) == b"still here"
            assert len({*pids}) == 2
            if end == "kill the master":
                server.process.kill()
            else:
                server.send_signal(signal.SIGTERM if end == "TERM" else signal.SIGHUP)
            for sock in socks:
                assert read_all(sock) == b""
        if end == "HUP":
            status = server.settled(2)
            assert not {*status.pids} & {*pids}
            assert (status.handled, status.lost) == (2, 0)
            assert server.stop() == 0
        elif end == "TERM":
            assert server.process.wait() == 0
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("handler", "capacity"), [("keep_alive", "1"), ("keep_alive_async", "2")])
def test_kept_alive_connections_end_at_max_requests(handler: str, capacity: str) -> None:
    """A worker that has had its last connection says so to its handlers, once its successor is
    ready."""
    options = ("--workers", "1", "--capacity", capacity, "--drain", "10000", "--max-requests", "1")
    with Server(handler, *options) as server:
        (old,) = server.settled(1).pids
        with connections(server, 1) as (sock,):
            assert int(sock.recv(100)) == old
            assert read_all(sock) == b""
        status = server.settled(1)
        assert status.pids != [old]
        assert (status.handled, status.lost) == (1, 0)
        assert server.stop() == 0
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
def test_outside_of_a_worker() -> None:
    """A handler runs in a test, or anywhere, as well: nobody is leaving there."""
    assert not fdpass_c.pool.is_leaving()
    assert not fdpass_c.pool.leaving_event().is_set()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("handler", "signum"),
    [("give_to_thread", signal.SIGHUP), ("give_to_executor", signal.SIGTERM)],
)
def test_threads_are_waited_for(handler: str, signum: int, tmp_path: Path) -> None:
    """A thread that a handler gave its connection to finishes before its worker ends; then the
    teardown runs, and what atexit holds in the program only."""
    notes = tmp_path / "notes"
    with Server(program=("pool_programs.py", "teardown", str(notes), handler)) as server:
        server.settled(1)
        with connections(server, 1) as (sock,):
            assert sock.recv(100)
            server.send_signal(signum)
            server.wait_for("stopping" if signum == signal.SIGTERM else "worker .* started")
            sock.sendall(b"still here")
            assert read_all(sock) == b"still here"
        if signum == signal.SIGHUP:
            server.wait_for("exited with status 0")
            assert server.settled(1).lost == 0
            server.send_signal(signal.SIGTERM)
        assert server.process.wait() == 0
        times = 2 if signum == signal.SIGHUP else 1
        assert "WARNING" not in server.log
    lines = notes.read_text().splitlines()
    assert sorted(lines) == sorted(["setup", "teardown beside 0"] * times + ["atexit"])
    assert lines[-1] == "atexit"


def end_worker(server: Server, end: str) -> None:
    """Ends the one worker: with the pool, or before that upon HUP or by its handler's exit."""
    if end == "exit":
        with server.connect() as sock:
            sock.sendall(b"exit")
            assert read_some(sock) == b""
        server.wait_for("exited with status 3")
    elif end == "HUP":
        server.send_signal(signal.SIGHUP)
        server.wait_for("exited with status 0")
    server.settled(1)
    assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("end", ["TERM", "HUP", "exit"])
def test_multiprocessing_ends_with_its_worker(end: str, tmp_path: Path) -> None:
    """A worker that ends leaves no manager and no daemon of multiprocessing behind, delivers what
    it has put into queues, and ends nothing that the program has started before."""
    notes = tmp_path / "notes"
    with Server(program=("pool_programs.py", "start_processes", str(notes))) as server:
        server.settled(1)
        end_worker(server, end)
    whole = ["True", *map(str, range(100))]
    assert notes.read_text().splitlines() == (whole if end == "TERM" else whole + whole[1:])


@pytest.mark.thread_unsafe
def test_a_manager_of_the_programs() -> None:
    """Each worker has a connection of its own to a manager that the program has used before."""
    with Server(program=("pool_programs.py", "use_a_manager")) as server:
        server.settled(2)
        assert server.stop() == 0
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("end", ["TERM", "HUP", "exit"])
def test_coroutines_at_start_and_end(end: str, tmp_path: Path) -> None:
    """A setup and a teardown that are coroutine functions run in the handler's loop, before the
    first connection and after the last."""
    notes = tmp_path / "notes"
    with Server(program=("pool_programs.py", "in_the_loop", str(notes))) as server:
        server.settled(1)
        assert notes.read_text() == "setup in 1\n"
        server.ask()
        end_worker(server, end)
    lines = notes.read_text().splitlines()
    whole = ["setup in 1", "hello in 1", "teardown in 1"]
    if end == "exit":
        whole.insert(2, "exit in 1")
    assert lines[:2] == whole[:2]
    assert sorted(lines) == sorted(
        whole if end == "TERM" else [*whole, "setup in 1", "teardown in 1"]
    )
    assert lines[-1] == "teardown in 1"


@pytest.mark.thread_unsafe
def test_a_coroutine_that_fails_at_start(tmp_path: Path) -> None:
    """A worker whose setup fails in the loop has died at start: none is ready before it is done."""
    notes = tmp_path / "notes"
    with Server(program=("pool_programs.py", "in_the_loop", str(notes))) as server:
        old = server.settled(1).pids
        (tmp_path / "notes.die").touch()
        server.send_signal(signal.SIGHUP)
        server.wait_for("5 workers in a row died.*the old workers go on")
        assert server.settled(1).pids == old
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["echo", "echo_async"])
def test_what_sys_exit_says(handler: str) -> None:
    """A worker that exits with a message, as Python programs do, leaves it in the log."""
    with Server(program=("pool_programs.py", "exit_at_start", handler)) as server:
        server.wait_for("CRITICAL the worker exits: no database")
        server.wait_for("exited with status 1")
        server.wait_for("PoolError: 5 workers in a row")
        assert server.process.wait() == 1


@pytest.mark.thread_unsafe
def test_coroutines_beside_a_plain_handler() -> None:
    """There is no loop for them."""

    async def start() -> None:
        pass

    with pytest.raises(ValueError, match=r"start.* is a coroutine function and the handler"):
        fdpass_c.pool.Pool(print, 1, setup=start)
    with pytest.raises(ValueError, match=r"start.* is a coroutine function and the handler"):
        fdpass_c.pool.Pool(print, 1, teardown=start)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("handler", ["echo", "echo_async"])
@pytest.mark.parametrize("name", ["setup", "teardown"])
def test_a_coroutine_that_is_not_awaited(name: str, handler: str) -> None:
    """A worker whose setup or teardown returns what it should have run has failed, and says why."""
    with Server(program=("pool_programs.py", "hide_a_coroutine", name, handler)) as server:
        if name == "teardown":
            assert server.ask() != b""
            server.send_signal(signal.SIGTERM)
        server.wait_for("CRITICAL the worker failed")
        server.wait_for("TypeError: .* returned <coroutine .*, which the pool does not run")
        server.wait_for("exited with status 1")
        assert server.process.wait() == (name == "setup")
        assert "never awaited" not in server.log


@pytest.mark.thread_unsafe
def test_teardown_where_a_handler_exits(tmp_path: Path) -> None:
    """The teardown runs where a handler calls sys.exit, and not in a worker that is killed."""
    notes = tmp_path / "notes"
    with Server(program=("pool_programs.py", "teardown", str(notes), "obey")) as server:
        with server.connect() as sock:
            sock.sendall(b"exit")
            assert read_some(sock) == b""
        server.wait_for("exited with status 3")
        assert notes.read_text().startswith("setup\nteardown beside 0\n")
        (pid,) = server.settled(1).pids
        os.kill(pid, signal.SIGKILL)
        server.wait_for("killed by SIGKILL")
        server.settled(1)
        server.stop()
    assert notes.read_text().split("\n").count("teardown beside 0") == 2


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("handler", "capacity"), [("obey", "1"), ("obey", "4"), ("obey_async", "4")]
)
def test_an_exit_that_hangs(handler: str, capacity: str) -> None:
    """A worker in which a handler calls sys.exit has drain seconds for its teardown too."""
    program = ("pool_programs.py", "end_slowly", handler, "1", capacity, "0.2")
    with Server(program=program) as server:
        old = server.ask()
        with server.connect() as sock:
            sock.sendall(b"exit")
            server.wait_for("did not finish in time")
        assert server.ask() not in (old, b"")
        assert server.status().lost == 1
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("handler", "drain"), [("obey", "1000"), ("obey_async", "inf")])
def test_an_exit_that_takes_long(handler: str, drain: str) -> None:
    """Meanwhile the worker gets no more connections, and keeps its slot."""
    program = ("pool_programs.py", "end_slowly", handler, "2", "4", drain)
    with Server(program=program) as server:
        pids = {str(pid).encode() for pid in server.settled(2).pids}
        with server.connect() as sock:
            sock.sendall(b"exit")
        while "LEAVING" not in (states := [worker.state for worker in server.status().workers]):
            pass
        assert sorted(states) == ["FREE", "LEAVING"]
        with connections(server, 4) as socks:
            for other in socks:
                other.sendall(b"hello")
            for other in socks:
                pids &= {read_all(other)}
        assert len(pids) == 1
        assert {worker.restarts for worker in server.status().workers} == {0}
        server.send_signal(signal.SIGTERM)
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.thread_unsafe
def test_what_an_exit_leaves() -> None:
    """What a worker had not begun when its handler called sys.exit goes to others at once, however
    long its teardown takes, and no copy of it hides its end."""
    program = ("pool_programs.py", "end_slowly", "obey", "2", "4", "1000")
    with Server(program=program) as server:
        server.settled(2)
        with connections(server, 8) as (exiting, *others):
            while [worker.in_hand for worker in server.status().workers] != [4, 4]:
                pass
            exiting.sendall(b"exit")
            for sock in others:
                sock.sendall(b"close")
            (pid,) = {int(read_all(sock)) for sock in others}
            while (status := server.status()).handled < 7:  # A client sees the end before that.
                pass
            leaving, free = sorted(status.workers, key=lambda worker: worker.pid == pid)
            assert (leaving.state, leaving.in_hand) == ("LEAVING", 1)
            assert (free.state, free.handled) == ("FREE", 7)
        server.send_signal(signal.SIGTERM)
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.thread_unsafe
def test_an_exit_while_it_leaves() -> None:
    """The same in a worker that is replaced: what it had not begun is its successor's."""
    program = ("pool_programs.py", "end_slowly", "obey", "1", "4", "1000")
    with Server(program=program) as server, connections(server, 4) as (exiting, *others):
        while server.status().workers[0].in_hand < 4:
            pass
        server.send_signal(signal.SIGHUP)
        while {worker.state for worker in server.status().workers} != {"LEAVING", "FREE"}:
            pass
        exiting.sendall(b"exit")
        for sock in others:
            sock.sendall(b"close")
        assert len({read_all(sock) for sock in others}) == 1
        server.send_signal(signal.SIGTERM)
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.thread_unsafe
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_workers_of_another_user() -> None:
    """Workers that the system does not let the master kill are replaced, however long they take,
    and finish what they have; so they do when the pool stops."""
    with Server(program=("pool_programs.py", "give_up_root", "0.2")) as server:
        old = server.settled(2).pids
        with connections(server, 1) as (sock,):
            pid = int(read_some(sock))
            server.send_signal(signal.SIGHUP)
            server.wait_for(f"worker {pid} cannot be killed: Operation not permitted")
            while len(server.status().pids) > 3:
                pass
            assert not {*old} & {int(server.ask().split()[0]) for _ in range(4)}
            sock.sendall(b"hello")
            assert read_all(sock) == b"hello"
        status = server.settled(2)
        assert (status.handled, status.lost) == (5, 0)
    with Server(program=("pool_programs.py", "give_up_root", "0.2")) as server:
        server.settled(2)
        with connections(server, 1) as (sock,):
            pid = int(read_some(sock))
            assert server.stop() == 0
            server.wait_for(f"worker {pid} has not ended yet: 1 connections lost")
            sock.sendall(b"hello")
            assert read_all(sock) == b"hello"
