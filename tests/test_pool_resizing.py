"""The number of workers changes while a pool serves."""

import signal
from pathlib import Path

import pytest

from support.server import Server, connections
from support.sockets import read_all

pytestmark = pytest.mark.thread_unsafe


def test_more_workers() -> None:
    """TTIN adds a worker, which serves beside those that stay."""
    with Server("begin_and_wait", "--workers", "1") as server:
        old = server.settled(1).pids
        for count in (2, 3):
            server.send_signal(signal.SIGTTIN)
            server.wait_for(f"the pool now has {count} workers")
        new = server.settled(3)
        assert new.pids[:1] == old
        with connections(server, 3) as socks:
            assert {int(sock.recv(100)) for sock in socks} == {*new.pids}
        assert server.stop() == 0
        assert "WARNING" not in server.log


def test_fewer_workers() -> None:
    """TTOU removes the worker that came last, once it has finished what it has; one stays."""
    with Server("begin_and_wait", "--workers", "3") as server:
        old = server.settled(3).pids
        with connections(server, 3) as socks:
            by_pid = {int(sock.recv(100)): sock for sock in socks}
            for count in (2, 1, 1):
                server.send_signal(signal.SIGTTOU)
                server.wait_for(f"the pool now has {count} workers")
            states = {worker.pid: worker.state for worker in server.status().workers}
            assert [states[pid] for pid in old] == ["BUSY", "LEAVING", "LEAVING"]
            for sock in by_pid.values():
                sock.sendall(b"still here")
                assert read_all(sock) == b"still here"
        status = server.settled(1)
        assert status.pids == old[:1]
        assert (status.handled, status.lost) == (3, 0)
        server.send_signal(signal.SIGTTIN)
        server.wait_for("the pool now has 2 workers")
        assert [worker.restarts for worker in server.settled(2).workers] == [0, 1]
        assert server.stop() == 0
        assert "WARNING" not in server.log


def test_fewer_and_a_reload() -> None:
    """A worker that is removed while all are replaced has no successor."""
    with Server("echo", "--workers", "4") as server:
        old = server.settled(4).pids
        server.send_signal(signal.SIGHUP)
        for count in (3, 2):
            server.send_signal(signal.SIGTTOU)
            server.wait_for(f"the pool now has {count} workers")
        while {*server.settled(2).pids} & {*old}:
            pass
        assert server.stop() == 0


def test_more_under_load() -> None:
    """Every connection is answered, whatever the number of workers becomes."""
    with Server("echo", "--workers", "2", "--capacity", "2") as server:
        for signum in (signal.SIGTTIN, signal.SIGTTOU) * 5:
            server.send_signal(signum)
            with connections(server, 20) as socks:
                for sock in socks:
                    sock.sendall(b"hello")
                for sock in socks:
                    assert read_all(sock).endswith(b"hello")
        status = server.settled(2)
        assert (status.handled, status.lost) == (200, 0)
        assert server.stop() == 0


def test_more_that_do_not_start(tmp_path: Path) -> None:
    """Where the workers that are added do not start, the pool serves on with those it has."""
    flag = tmp_path / "die"
    with Server(program=("-m", "support.handlers", "0.01", str(flag))) as server:
        old = server.settled(2).pids
        flag.touch()
        server.send_signal(signal.SIGTTIN)
        server.wait_for("5 workers in a row died .*; the pool has 2 workers as before")
        assert server.settled(2).pids == old
        flag.unlink()
        server.send_signal(signal.SIGTTIN)
        assert server.settled(3).pids[:2] == old
        assert server.stop() == 0


def test_every_change_has_its_attempts(tmp_path: Path) -> None:
    """However often none of its workers start: what failed before does not count against it."""
    flag = tmp_path / "die"
    with Server(program=("-m", "support.handlers", "0.01", str(flag))) as server:
        old = server.settled(2).pids
        flag.touch()
        changes = {signal.SIGTTIN: "the pool has 2 workers as before", signal.SIGHUP: "the old w"}
        for signum, text in [*changes.items()] * 2:
            server.send_signal(signum)
            for _ in range(5):
                server.wait_for("exited with status 1")
            server.wait_for(f"5 workers in a row died .*; {text}")
        assert server.settled(2).pids == old
        assert server.stop() == 0


def test_from_the_program() -> None:
    """The program adds and removes workers itself."""
    with Server(program=("pool_programs.py", "resize")) as server:
        for count in (2, 3, 2):
            server.wait_for(f"the pool now has {count} workers")
        assert int(server.ask()) in server.settled(2).pids
        assert server.stop() == 0
