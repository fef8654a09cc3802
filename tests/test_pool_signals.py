"""A pool stops, replaces its workers and shows its state on signals."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fdpass_c.pool import Pool
from fdpass_c.pool.signals import MASTERS_SIGNALS, Signals, ignore
from fdpass_c.pool.wakeup import Wakeup
from support.handlers import echo
from support.processes import FDPASS, run_in_child
from support.server import Server, connections
from support.sockets import read_all, read_some

begin_and_wait = pytest.mark.parametrize("handler", ["begin_and_wait", "begin_and_wait_async"])
stops = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("handler", "signum"),
    [("begin_and_wait", signal.SIGTERM), ("begin_and_wait_async", signal.SIGINT)],
)
def test_drain(handler: str, signum: int) -> None:
    """A pool that stops finishes what it has begun, and only then exits."""
    with Server(handler, "--workers", "2", "--capacity", "2") as server:
        server.settled(2)
        with connections(server, 2) as socks:
            for sock in socks:
                assert sock.recv(1000)
            server.send_signal(signum)
            server.wait_for("stopping")
            for sock in socks:
                sock.sendall(b"the end")
                assert read_all(sock) == b"the end"
        assert server.process.wait() == 0
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
def test_drain_finishes_what_was_accepted() -> None:
    """Connections that wait in a worker's queue when the pool stops are handled before it exits."""
    with Server("begin_and_wait", "--workers", "1", "--capacity", "4") as server:
        with connections(server, 4) as socks:
            while server.status().workers[0].in_hand < 4:
                pass
            server.send_signal(signal.SIGTERM)
            server.wait_for("stopping")
            for sock in socks:
                sock.sendall(b"the end")
                assert read_all(sock).endswith(b"the end")
        assert server.process.wait() == 0


@pytest.mark.thread_unsafe
@begin_and_wait
def test_deadline(handler: str) -> None:
    """A worker that does not finish in time is killed, and the pool stops all the same."""
    with Server(handler, "--workers", "1", "--drain", "0.05") as server:
        with connections(server, 1) as (sock,):
            assert sock.recv(1000)
            assert server.stop() == 0
            assert read_some(sock) == b""
        server.wait_for("did not finish in time")
        server.wait_for("killed by SIGKILL: 1 connections lost")


@pytest.mark.thread_unsafe
def test_second_signal() -> None:
    """A second signal ends the pool at once, whatever is in hand."""
    with (
        Server("begin_and_wait", "--workers", "1") as server,
        connections(server, 1) as (sock,),
    ):
        assert sock.recv(1000)
        server.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        end = time.monotonic() + 0.6
        while time.monotonic() < end:  # Before, it is not a second one.
            server.status()
        assert server.stop(signal.SIGTERM) == 0
        assert read_some(sock) == b""


@pytest.mark.thread_unsafe
@stops
def test_the_same_signal_twice_at_once(signum: int) -> None:
    """A signal that comes twice, as timeout(1) sends it to the process and to its group, is one."""
    with (
        Server("begin_and_wait", "--workers", "1") as server,
        connections(server, 1) as (sock,),
    ):
        assert sock.recv(1000)
        server.send_signal(signum)
        server.wait_for("stopping")
        server.send_signal(signum)
        server.status()
        sock.sendall(b"the end")
        assert read_all(sock) == b"the end"
        assert server.process.wait() == 0
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
def test_a_stopping_pool_refuses() -> None:
    """Once it stops, nobody can connect."""
    with Server("begin_and_wait", "--workers", "1", "--capacity", "1") as server:
        with connections(server, 1) as (sock,):
            assert sock.recv(1000)
            server.send_signal(signal.SIGTERM)
            # Closing the listener is part of the turn that logs this, and the worker goes on.
            server.wait_for("stopping")
            server.status()
            with pytest.raises(ConnectionRefusedError):
                server.connect()
            sock.sendall(b"go on")
        assert server.process.wait() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("handler", "capacity"), [("begin_and_wait", "1"), ("begin_and_wait_async", "2")]
)
def test_reload(handler: str, capacity: str) -> None:
    """Every worker is replaced; connections begun before are finished by the old ones, and none
    that comes meanwhile is refused."""
    with Server(handler, "--workers", "3", "--capacity", capacity) as server:
        old = server.settled(3)
        with connections(server, 3) as begun:
            pids = [int(sock.recv(1000)) for sock in begun]
            assert {*pids} == {*old.pids}
            server.send_signal(signal.SIGHUP)
            while len([w for w in server.status().workers if w.state == "LEAVING"]) < 3:
                with server.connect() as sock:
                    sock.sendall(b"go on")
                    assert read_all(sock).endswith(b"go on")
            for sock in begun:
                sock.sendall(b"still here")
                assert read_all(sock) == b"still here"
        new = server.settled(3)
        assert not {*new.pids} & {*old.pids}
        assert [worker.restarts for worker in new.workers] == [1, 1, 1]
        assert new.lost == 0
        assert server.stop() == 0
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
def test_large_numbers() -> None:
    """A capacity and times that nobody reaches are as good as none."""
    with Server(program=("pool_programs.py", "without_limits")) as server:
        (old,) = server.settled(1).pids
        with connections(server, 1) as (sock,):
            assert int(sock.recv(100)) == old
            server.send_signal(signal.SIGHUP)
            while {worker.state for worker in server.status().workers} != {"LEAVING", "FREE"}:
                pass
            with server.connect() as other:
                assert int(other.recv(100)) != old
            sock.sendall(b"still here")
            assert read_all(sock) == b"still here"
        assert server.settled(1).handled == 2
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("max_requests", ["1", "8"])
def test_successors_come_first(max_requests: str, tmp_path: Path) -> None:
    """Workers that are used up serve on while their successors take long to start, one at a time;
    then they leave."""
    gate = tmp_path / "gate"
    program = ("pool_programs.py", "wait_to_start", str(gate), "max_requests", max_requests)
    with Server(program=program) as server:
        old = server.settled(2).pids
        gate.touch()
        for _ in range(40):
            assert int(server.ask()) in old
        # The client knows of its last answer before the master does.
        while "BUSY" in (states := [worker.state for worker in server.status().workers]):
            pass
        assert sorted(states) == ["FREE", "FREE", "STARTING"]
        gate.unlink()
        while {*server.settled(2).pids} & {*old}:
            pass
        assert server.settled(2).lost == 0
        assert server.stop() == 0
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
def test_a_start_that_hangs(tmp_path: Path) -> None:
    """A reload whose workers hang at their start is given up, and can be tried again."""
    gate = tmp_path / "gate"
    program = ("pool_programs.py", "wait_to_start", str(gate), "start_timeout", "0.2")
    with Server(program=program) as server:
        old = server.settled(2).pids
        gate.touch()
        server.send_signal(signal.SIGHUP)
        for _ in range(5):
            server.wait_for(r"WARNING worker \d+ did not start in time")
        server.wait_for("5 workers in a row died.*the old workers go on")
        assert server.settled(2).pids == old
        assert int(server.ask()) in old
        gate.unlink()
        server.send_signal(signal.SIGHUP)
        while {*server.settled(2).pids} & {*old}:
            pass
        assert server.stop() == 0


@contextmanager
def reload_that_hangs(gate: Path) -> Iterator[Server]:
    """A pool of two workers that has begun to replace them. The first successor hangs at its start
    while there is a file gate."""
    program = ("pool_programs.py", "wait_to_start", str(gate), "drain", "10000")
    with Server(program=program) as server:
        server.settled(2)
        gate.touch()
        server.send_signal(signal.SIGHUP)
        while not any(worker.state == "STARTING" for worker in server.status().workers):
            pass
        yield server


@pytest.mark.thread_unsafe
def test_a_stop_while_a_start_hangs(tmp_path: Path) -> None:
    """A pool that stops does not wait, for as long as it would for requests, for a worker that
    hangs at its start."""
    with reload_that_hangs(tmp_path / "gate") as server:
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_reloads_at_once(tmp_path: Path) -> None:
    """However often a reload is asked for while a worker starts, that worker and the rest are
    replaced once more, and no more often."""
    gate = tmp_path / "gate"
    with reload_that_hangs(gate) as server:
        for _ in range(5):
            server.send_signal(signal.SIGHUP)
            server.wait_for("replacing the workers")
        gate.unlink()
        while [worker.restarts for worker in server.settled(2).workers] != [2, 1]:
            pass
        assert server.stop() == 0
        assert len(re.findall("worker .* started", server.log)) == 5
        assert "WARNING" not in server.log


@pytest.mark.thread_unsafe
def test_reload_under_load() -> None:
    """Reload after reload, and every connection is answered."""
    with Server("echo", "--workers", "2", "--capacity", "2") as server:
        for _ in range(10):
            server.send_signal(signal.SIGHUP)
            with connections(server, 20) as socks:
                for sock in socks:
                    sock.sendall(b"hello")
                for sock in socks:
                    assert read_all(sock).endswith(b"hello")
        assert server.settled(2).lost == 0
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(("handler", "capacity"), [("echo", "1"), ("echo_async", "3")])
def test_max_requests(handler: str, capacity: str) -> None:
    """A worker is replaced after so many connections, and none is lost by it.

    It serves on until its successor is ready, so which of them reach the number, and how often,
    depends on how fast those start.
    """
    with Server(handler, "--workers", "2", "--capacity", capacity, "--max-requests", "5") as server:
        for _ in range(5):
            with connections(server, 10) as socks:
                for sock in socks:
                    sock.sendall(b"hello")
                for sock in socks:
                    assert read_all(sock).endswith(b"hello")
        while any(worker.handled >= 5 for worker in server.settled(2).workers):
            pass
        status = server.settled(2)
        assert (status.handled, status.lost) == (50, 0)
        assert any(worker.restarts for worker in status.workers)
        assert server.stop() == 0


@pytest.mark.thread_unsafe
@begin_and_wait
def test_signals_to_workers(handler: str) -> None:
    """Workers leave the signals that a whole group gets to the master."""
    with Server(handler, "--workers", "1") as server:
        (old,) = server.settled(1).pids
        for signum in MASTERS_SIGNALS:
            with connections(server, 1) as (sock,):
                pid = int(sock.recv(1000))
                os.kill(pid, signum)
                sock.sendall(b"still here")
                assert read_all(sock) == b"still here"
            assert server.settled(1).pids == [pid] == [old], signum


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP])
def test_a_flood_of_signals(signum: int) -> None:
    """Connections are served while signals come faster than they can be obeyed."""
    with Server("echo", "--workers", "2") as server:
        server.settled(2)
        # A process, because a thread of this one would take the interpreter's lock again and again.
        command = f"while kill -{signum} {server.pid}; do :; done"
        with subprocess.Popen(["sh", "-c", command]) as flood:
            try:
                for _ in range(10):
                    assert server.ask().endswith(b"hello")
            finally:
                flood.kill()
        assert server.stop() == 0


def find_calls(signums: Sequence[int]) -> list[str]:
    """The functions of Python that run as these signals come."""
    seen: list[str] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    for signum in signums:
        signal.raise_signal(signum)
    sys.setprofile(before)
    return seen


# A handler of Python can be interrupted by the next signal before its first bytecode, and so on up
# to the limit of recursion.
@pytest.mark.thread_unsafe
def test_no_bytecode_runs_as_a_signal_comes_to_the_master() -> None:
    signals = Signals()
    everything = [*MASTERS_SIGNALS, signal.SIGCHLD]
    with signals.handling():
        assert find_calls(everything * 2) == []
        taken = signals.take()
        assert signals.take() == []
    assert sorted(taken) == sorted([*everything, signal.SIGTTIN, signal.SIGTTOU])


@pytest.mark.thread_unsafe
def test_no_bytecode_runs_as_a_signal_comes_to_a_worker() -> None:
    for signum in MASTERS_SIGNALS:
        before = signal.getsignal(signum)
        try:
            ignore(signum)
            assert find_calls([signum]) == []
        finally:
            signal.signal(signum, before)


@pytest.mark.thread_unsafe
def test_signals_that_the_parent_has_blocked() -> None:
    """A pool obeys them, hears that a worker has died whose child lives on, and has a worker that
    hangs say where. A program that blocks a signal has it blocked again after the pool."""
    code = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    )
    blocking = ("-c", f"{code}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")
    command = (*FDPASS, "pool", "--workers", "1", "--timeout", "0.4")
    with Server(program=(*blocking, *command[1:], "support.handlers:fork_a_child")) as server:
        with server.connect() as sock:
            sock.sendall(b"fork")
            worker, child = map(int, sock.recv(1000).split())
            try:
                server.wait_for(r"support/handlers.py\", line \d+ in fork_a_child")
                server.wait_for(f"worker {worker} was killed by SIGABRT")
                server.settled(1)
            finally:
                os.kill(child, signal.SIGKILL)
        assert server.stop() == 0

    def serve() -> None:
        blocked = {signal.SIGTERM, signal.SIGUSR2}
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        pool = Pool(echo, 1)
        pool.serve("127.0.0.1:0", ready=lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= blocked

    run_in_child(serve)


@pytest.mark.thread_unsafe
def test_handlers_of_the_program() -> None:
    """After the pool, the program has its handlers and its wakeup descriptor again."""

    def serve() -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        handlers: dict[int, Any] = {signal.SIGUSR1: print, signal.SIGHUP: signal.SIG_IGN}
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        pool = Pool(echo, 1)
        pool.serve("127.0.0.1:0", ready=lambda _: pool.stop())
        assert {signum: signal.getsignal(signum) for signum in handlers} == handlers
        assert signal.set_wakeup_fd(-1) == writer
        os.close(reader)
        os.close(writer)

    run_in_child(serve)


@pytest.mark.thread_unsafe
def test_signals_of_an_earlier_run() -> None:
    """What came as serve() ended by an exception does not stop the next one, nor does a signal that
    stopped the last one make the next signal a duplicate."""

    def serve() -> None:
        pool = Pool(echo, 1)
        terminate = partial(os.kill, os.getpid(), signal.SIGTERM)
        served = []

        def fail(stop: Callable[[], object], _addresses: object) -> None:
            stop()
            raise ZeroDivisionError

        def end(addresses: object) -> None:
            served.append(addresses)
            terminate()

        for stop in (pool.stop, terminate):
            with pytest.raises(ZeroDivisionError):
                pool.serve("127.0.0.1:0", ready=partial(fail, stop))
            pool.serve("127.0.0.1:0", ready=end)
        assert len(served) == 2

    run_in_child(serve)


@pytest.mark.thread_unsafe
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="to wait for another's child")
@begin_and_wait
def test_death_of_the_master(handler: str) -> None:
    """When the master is killed, workers finish what they were given and exit."""
    with Server(handler, "--workers", "1", "--capacity", "2") as server:
        with connections(server, 2) as socks:
            pid = int(socks[0].recv(1000))
            pidfd = os.pidfd_open(pid)
            while server.status().workers[0].in_hand < 2:
                pass
            server.process.kill()
            server.process.wait()
            for sock in socks:
                sock.sendall(b"the end")
                assert read_all(sock).endswith(b"the end")
        # Readable once the process has gone.
        assert select.select([pidfd], [], [], 60)[0]
        os.close(pidfd)


@pytest.mark.thread_unsafe
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="to wait for another's child")
def test_death_of_the_master_while_a_start_hangs(tmp_path: Path) -> None:
    """Workers that are still starting die with the master."""
    with reload_that_hangs(tmp_path / "gate") as server:
        pidfds = [os.pidfd_open(pid) for pid in server.status().pids]
        server.process.kill()
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], 60)[0]
            os.close(pidfd)


@pytest.mark.thread_unsafe
def test_late_wakeup(tmp_path: Path) -> None:
    """A thread that calls reload() just as serve() ends writes to nobody who has the number now."""
    wakeup = Wakeup()
    number = wakeup.writer.fileno()
    wakeup.close()
    path = tmp_path / "file"
    with path.open("wb") as file:
        os.dup2(file.fileno(), number)
        wakeup.wake()
        os.close(number)
    assert path.read_bytes() == b""
