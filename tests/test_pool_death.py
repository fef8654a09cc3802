"""Workers may die at any moment: what they had not begun is answered by others."""

import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from fdpass_c.pool import failed_starts
from fdpass_c.pool.failed_starts import FailedStarts
from fdpass_c.pool.worker_process import UNKNOWN_STATUS, WorkerSettings, fork_worker
from support.marks import linux_only
from support.processes import run_in_child
from support.server import Server, connections
from support.sockets import read_all, read_some

# Every 100 connections one is killed. For slow machines and emulators there may be fewer, and
# `nox -s soak` has more.
CONNECTIONS = int(os.environ.get("FDPASS_POOL_CONNECTIONS", "4000"))
AT_ONCE = 20
WORKERS = 4
# What the master's memory may grow by after a tenth of them, in KiB.
GROWTH = 1024


def read_rss_kib(pid: int) -> int:
    """The resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


@pytest.mark.thread_unsafe
@linux_only
@pytest.mark.parametrize(
    ("handler", "capacity"), [("echo", "1"), ("echo", "5"), ("echo_async", "10")]
)
def test_random_kills(handler: str, capacity: str) -> None:
    """Only what a killed worker had begun is lost; then all is as before: the number of workers,
    the master's descriptors, its memory."""
    random.seed(1)
    unanswered = 0
    memory = []
    with Server(handler, "--workers", str(WORKERS), "--capacity", capacity) as server:
        server.settled(WORKERS)
        fds = server.list_fds()
        killed = 0
        dying: set[int] = set()
        for number in range(0, CONNECTIONS, AT_ONCE):
            victim = None
            if number % (CONNECTIONS // 10) < AT_ONCE:
                memory.append(read_rss_kib(server.pid))
            if number % 100 == 0:
                # One that was killed may take long enough to die to be listed still. After that its
                # number may be another's.
                pids = {*server.status().pids}
                dying &= pids
                victim = random.choice([*(pids - dying)])
            with connections(server, AT_ONCE) as socks:
                for position, sock in enumerate(socks):
                    sock.sendall(b"request")
                    if victim and position == AT_ONCE // 2:
                        os.kill(victim, signal.SIGKILL)
                        dying.add(victim)
                        killed += 1
                for sock in socks:
                    answer = read_some(sock)
                    assert answer.endswith(b"request") or not answer
                    unanswered += not answer
        after = server.settled(WORKERS)
        assert unanswered <= after.lost
        assert after.handled + after.lost == CONNECTIONS
        assert sum(worker.restarts for worker in after.workers) == killed
        assert CONNECTIONS // 200 < killed <= CONNECTIONS // 100
        assert server.settled_fds(fds) == fds
        # PyPy's memory grows for as long as it compiles.
        assert max(memory) - memory[1] <= GROWTH or sys.implementation.name == "pypy", memory
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("where", ["full", "pipe", "closed", "none", "no stream"])
def test_a_broken_standard_output(where: str) -> None:
    """Whatever has become of standard output, a dead worker has a successor."""
    with Server(program=("pool_programs.py", "print_to", where)) as server:
        (old,) = server.settled(1).pids
        assert server.ask() == str(old).encode()
        os.kill(old, signal.SIGKILL)
        server.wait_for("killed by SIGKILL")
        (new,) = server.settled(1).pids
        assert server.ask() == str(new).encode() != str(old).encode()
        server.stop()
        assert "cannot start" not in server.log


@pytest.mark.thread_unsafe
def test_idle_workers_that_die_young() -> None:
    """Workers that die, idle, as soon as they have started are not replaced without end."""
    with Server(program=("pool_programs.py", "die_idle")) as server:
        server.wait_for("stopping")
        assert server.process.wait() == 1
        server.wait_for("PoolError: 5 workers in a row died before they began a connection")
        assert server.log.count(" started\n") == 5


@pytest.mark.thread_unsafe
@linux_only
def test_stable_workers_that_cannot_receive() -> None:
    """Nor are workers that have started well and die of a connection before they have begun it."""
    with Server(program=("pool_programs.py", "die_of_the_first")) as server:
        server.settled(1)
        with server.connect() as sock:
            server.wait_for("stopping")
            assert server.process.wait() == 1
            server.wait_for("PoolError: 5 workers in a row died before they began a connection")
            assert read_some(sock) == b""
        assert server.log.count(" started\n") == 5


@pytest.mark.thread_unsafe
def test_a_used_up_worker_without_a_successor(tmp_path: Path) -> None:
    """It goes on, and nothing more is tried until it has had as many connections again, given and
    taken ones. So attempts of another kind are counted as such."""
    flag = tmp_path / "die"
    with Server(program=("pool_programs.py", "use_up", str(flag))) as server:
        (old,) = server.settled(1).pids
        flag.touch()
        with connections(server, 2) as socks:  # While it has one, it takes the other.
            for sock in socks:
                sock.sendall(b"hello")
            assert [int(read_all(sock)) for sock in socks] == [old, old]
        server.wait_for("the old workers go on")
        assert int(server.ask()) == old
        server.send_signal(signal.SIGTTIN)
        server.wait_for("the pool has 1 workers as before")
        assert server.log.count("the old workers go on") == 1
        assert int(server.ask()) == old
        server.wait_for("the old workers go on")
        flag.unlink()
        assert [int(server.ask()) for _ in range(2)] == [old, old]
        while server.settled(1).pids == [old]:
            pass
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_an_event_loop_that_cannot_receive() -> None:
    """Its worker ends. What it had begun is lost, and no failure of the handler."""
    with Server(program=("pool_programs.py", "receive_once")) as server:
        with server.connect() as begun:
            assert read_some(begun)
            with server.connect() as other:
                other.sendall(b"hello")
                assert read_all(other).endswith(b"hello")
            assert read_some(begun) == b""
        status = server.settled(1)
        assert (status.handled, status.failed, status.lost) == (1, 0, 1)
        assert "the handler failed" not in server.log
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("capacity", ["1", "4"])
def test_a_worker_whose_counts_are_impossible(capacity: str) -> None:
    """What a program writes over them ends neither the master nor the reload."""
    with Server("scribble", "--workers", "1", "--capacity", capacity) as server:
        with server.connect() as sock:
            assert sock.recv(1000)
            server.status()
            server.send_signal(signal.SIGHUP)
            server.wait_for("worker .* started")
            sock.sendall(b"go on")
            assert read_all(sock) == b"go on"
        server.wait_for("exited with status 0")
        status = server.settled(1)
        assert (status.handled, status.failed, status.lost) == (1, 0, 0)
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_workers_that_somebody_kills() -> None:
    """Workers that have served may be killed as often as anybody likes."""
    with Server("echo", "--workers", "2") as server:
        for _ in range(10):
            victim = server.settled(2).pids[0]
            assert server.ask().endswith(b"hello")
            os.kill(victim, signal.SIGKILL)
            server.wait_for("killed by SIGKILL")
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("how", ["handler", "thread"])
def test_somebody_else_waits_for_the_workers(how: str) -> None:
    """Where something else in the program takes the status of dead workers, they are replaced all
    the same, and nobody else is killed."""
    with Server(program=("pool_programs.py", "wait_for_any", how)) as server:
        for _ in range(5):
            first, second = server.settled(2).pids
            os.kill(first, signal.SIGKILL)
            server.wait_for(rf"worker {first} (was killed|ended)")
            assert second in server.settled(2).pids
            assert int(server.ask())
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_a_worker_whose_status_others_have_taken() -> None:
    """It counts as ended at once, and no signal is sent to its number, which may be another's."""

    def wait_first() -> None:
        settings = WorkerSettings(slot=0, restarts=0, capacity=1, max_requests=1)
        worker = fork_worker(settings, [], lambda: None, lambda _channel, _counters: None)
        os.waitpid(worker.pid, 0)
        assert worker.has_exited()
        assert worker.wait_status == UNKNOWN_STATUS
        worker.channel.close()

    run_in_child(wait_first)


@pytest.mark.thread_unsafe
def test_reload_with_workers_that_die(tmp_path: Path) -> None:
    """If no successor starts, the old workers go on."""
    flag = tmp_path / "die"
    with Server(program=("-m", "support.handlers", "0.01", str(flag))) as server:
        old = server.settled(2).pids
        flag.touch()
        server.send_signal(signal.SIGHUP)
        server.wait_for(
            "5 workers in a row died before they began a connection.*; the old workers go on"
        )
        status = server.settled(2)
        assert status.pids == old
        assert server.ask().endswith(b"hello")
        flag.unlink()
        server.send_signal(signal.SIGHUP)
        while {*server.settled(2).pids} & {*old}:
            pass
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_successors_that_die(tmp_path: Path) -> None:
    """Where a dead worker's successors do not start, the pool ends with an error that says so."""
    flag = tmp_path / "die"
    with Server(program=("-m", "support.handlers", "0.01", str(flag))) as server:
        old = server.settled(2).pids
        flag.touch()
        os.kill(old[0], signal.SIGKILL)
        server.wait_for("stopping")
        assert server.process.wait() == 1
        server.wait_for("PoolError: 5 workers in a row died before they began a connection")


@pytest.mark.thread_unsafe
def test_successors_that_die_in_a_busy_pool(tmp_path: Path) -> None:
    """While the others serve they are tried again, after delays that double."""
    flag = tmp_path / "die"
    with Server(program=("-m", "support.handlers", "0.05", str(flag))) as server:
        old = server.settled(2).pids
        flag.touch()
        os.kill(old[0], signal.SIGKILL)
        began = time.monotonic()
        for _ in range(5):
            server.wait_for("exited with status 1")
            assert server.ask().endswith(b"hello")
        assert time.monotonic() - began > 0.05 + 0.1 + 0.2 + 0.4
        flag.unlink()
        assert old[1] in server.settled(2).pids
        assert server.stop() == 0


def fail(failed: FailedStarts, begun: int, delay: float, ready_at: Iterable[float] = ()) -> bool:
    """Counts a failure, after which the next start is so many seconds away. Returns whether there
    are too many."""
    before = time.monotonic()
    too_many = failed.add(begun, ready_at)
    assert before + delay <= failed.retry_at <= time.monotonic() + delay
    return too_many


@pytest.mark.thread_unsafe
def test_delays_between_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They double up to a limit, although other workers begin connections meanwhile, and are short
    again once a start has succeeded. Only failures between two connections, or two successes, are
    failures in a row."""
    monkeypatch.setattr(failed_starts, "STABLE_AFTER", 0.0)
    failed = FailedStarts()
    for begun, delay in enumerate((0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2)):
        assert not fail(failed, begun, delay)
    assert [fail(failed, begun, 2) for _ in range(4)] == [False, False, False, True]
    failed.reset()
    assert not fail(failed, begun, 0.05)
    assert not fail(failed, begun, 0.1)
    ready_at = [time.monotonic()]
    assert not fail(failed, begun, 0.05, ready_at)
    # From here on that success was before the last failure.
    too_many = [fail(failed, begun, delay, ready_at) for delay in (0.1, 0.2, 0.4, 0.8)]
    assert too_many == [False, False, False, True]


@pytest.mark.thread_unsafe
@linux_only
def test_workers_that_cannot_receive(tmp_path: Path) -> None:
    """Workers that start but die of the first connection are not replaced for ever."""
    flag = tmp_path / "die"
    flag.write_text("full")
    with (
        Server(program=("-m", "support.handlers", "0.01", str(flag))) as server,
        server.connect() as sock,
    ):
        sock.sendall(b"hello")
        server.wait_for("stopping")
        assert server.process.wait() == 1
        server.wait_for("PoolError: 5 workers in a row died before they began a connection")
        assert not read_some(sock)
