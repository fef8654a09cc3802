"""Plain workers that get one connection at a time take what waits as soon as they have finished."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from fdpass_c import Channel
from fdpass_c._native import lib
from fdpass_c.pool import Pool, leaving
from fdpass_c.pool.connected import Kind
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.intake import Intake
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.worker import _serve
from support.marks import linux_only
from support.processes import read_state, run_in_child
from support.server import Server, connections
from support.sockets import read_all, read_some

pytestmark = [linux_only, pytest.mark.thread_unsafe]


@contextmanager
def waiting(handler: str, workers: int, count: int) -> Iterator[tuple[Server, list[socket.socket]]]:
    """A pool whose workers are all busy with the first connections, and wait for a request, while
    the others are offered."""
    with Server(handler, "--workers", str(workers)) as server:
        server.settled(workers)
        with connections(server, workers) as busy, connections(server, count) as others:
            for sock in busy:
                assert sock.recv(1000)
            while server.status().waiting < count:
                pass
            yield server, [*busy, *others]


def suspend(server: Server) -> None:
    server.send_signal(signal.SIGSTOP)
    os.waitpid(server.pid, os.WUNTRACED)


def finish(sock: socket.socket) -> int:
    """The pid of the worker, or 0 if it was said before."""
    sock.sendall(b"done")
    pid, _, answer = read_all(sock).rpartition(b" ")
    assert answer == b"done"
    return int(pid or 0)


def test_a_stopped_master() -> None:
    """They need no master for that."""
    with waiting("begin_and_wait", 2, 2) as (server, socks):
        suspend(server)
        for sock in socks:
            finish(sock)
        server.send_signal(signal.SIGCONT)
        assert server.settled(2).handled == 4
        assert server.ask().endswith(b"hello")
        assert server.stop() == 0


def test_a_dead_worker() -> None:
    """What was offered is not lost with it."""
    with waiting("begin_and_wait", 1, 1) as (server, (busy, offered)):
        (pid,) = server.status().pids
        os.kill(pid, signal.SIGKILL)
        assert finish(offered) not in (0, pid)
        assert read_all(busy) == b""
        status = server.settled(1)
        assert (status.handled, status.lost) == (1, 1)
        assert server.stop() == 0


def test_the_counts_of_a_late_master() -> None:
    """What a worker has taken does not wait any more, whether or not the master has noticed."""
    with waiting("begin_and_wait", 2, 2) as (server, (busy, _, offered, *_rest)):
        suspend(server)
        finish(busy)
        assert offered.recv(1000)
        server.send_signal(signal.SIGUSR1)  # Before anything else that would wake it.
        server.send_signal(signal.SIGCONT)
        status = server.status()
        in_hand = sum(worker.in_hand for worker in status.workers)
        assert (status.handled, in_hand, status.waiting) == (1, 2, 1)


def test_a_dead_worker_of_a_late_master() -> None:
    """What it has taken is lost, and no other worker gets it."""
    with waiting("begin_and_wait", 2, 2) as (server, (busy, _, offered, other)):
        suspend(server)
        finish(busy)
        pid = int(offered.recv(1000))
        os.kill(pid, signal.SIGKILL)
        while read_state(pid) != "Z":
            pass
        server.send_signal(signal.SIGCONT)
        server.wait_for("killed by SIGKILL: 1 connections lost, 0 go to other workers")
        finish(other)


def test_no_room_for_it() -> None:
    """A worker whose table is full ends, and another one gets what it could not take."""
    with waiting("end_room", 1, 1) as (server, (busy, offered)):
        finish(busy)
        server.wait_for("exited with status 1: 0 connections lost")
        finish(offered)
        status = server.settled(1)
        assert (status.handled, status.lost) == (2, 0)
        assert server.stop() == 0


def test_a_descriptor_closed_by_a_handler() -> None:
    """The next connection, which gets its number, is not closed in its place."""
    with waiting("wait_and_close_descriptor", 1, 1) as (server, socks):
        for sock in socks:
            finish(sock)
        status = server.settled(1)
        assert (status.handled, status.failed, status.lost) == (2, 0, 0)
        assert server.log.count("the handler has closed the descriptor") == 2
        assert server.stop() == 0


def test_reload() -> None:
    """A worker that is replaced takes nothing any more: its successor does."""
    with waiting("begin_and_wait", 1, 1) as (server, (busy, offered)):
        (old,) = server.status().pids
        server.send_signal(signal.SIGHUP)
        assert int(offered.recv(1000)) != old
        finish(busy)
        finish(offered)
        assert server.settled(1).handled == 2
        assert server.stop() == 0


def test_a_worker_that_leaves_beside_its_successor() -> None:
    """It takes nothing that is offered while its successor is busy: it ends."""
    with Server("begin_and_wait", "--workers", "1") as server:
        with connections(server, 1) as (first,):
            old = int(first.recv(1000))
            server.send_signal(signal.SIGHUP)
            while {worker.state for worker in server.status().workers} != {"LEAVING", "FREE"}:
                pass
            with connections(server, 2) as (busy, offered):
                new = int(busy.recv(1000))
                while not server.status().waiting:
                    pass
                finish(first)
                server.wait_for(f"worker {old} exited with status 0")
                finish(busy)
                assert int(offered.recv(1000)) == new
                finish(offered)
        assert server.settled(1).handled == 3
        assert server.stop() == 0


def test_stop() -> None:
    """What was offered is answered before the pool ends."""
    with waiting("begin_and_wait", 2, 2) as (server, socks):
        server.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        for sock in socks:
            finish(sock)
        assert server.process.wait(30) == 0
        assert "lost" not in server.log.split("stopping")[1]
        assert "dropping" not in server.log


def test_stop_with_connections_kept_alive() -> None:
    """A worker ends what its client keeps alive, and then answers what was offered."""
    with waiting("keep_alive", 1, 1) as (server, (kept, offered)):
        (pid,) = server.status().pids
        server.send_signal(signal.SIGTERM)
        assert read_all(kept) == b""
        assert read_all(offered) == b"%d " % pid
        assert server.process.wait(30) == 0
        assert "lost" not in server.log.split("stopping")[1]


def test_killed_while_stopping() -> None:
    """With all workers gone, a stopping pool starts one for what is left."""
    with waiting("begin_and_wait", 2, 2) as (server, socks):
        pids = server.status().pids
        server.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for sock in socks[2:]:
            finish(sock)
        assert server.process.wait(30) == 0


def test_an_offer_that_no_worker_takes_in_time() -> None:
    """A pool that stops drops it with the connections in hand, and starts no worker for it."""
    with Server("begin_and_wait", "--workers", "1", "--drain", "0.5") as server:
        with connections(server, 1) as (begun,):
            assert begun.recv(100)
            with connections(server, 1) as (offered,):
                while not server.status().waiting:
                    pass
                assert server.stop() == 0
                assert read_some(begun) == read_some(offered) == b""
        server.wait_for("dropping 1 connections that no worker took")
        assert len(re.findall("worker .* started", server.log)) == 1


def test_reports_to_a_master_that_waits() -> None:
    """A worker with a queue wakes it after each quarter of what it may have, and at the end."""

    def serve() -> None:
        counters = Counters()
        leaving.become_worker(counters, os.getppid())
        ours, theirs = Channel.pair()
        config = Pool(lambda *_: None, 1, 8)._config
        kinds = [Kind(socket.AF_UNIX, socket.SOCK_STREAM, 0)]
        with closing(Wakeup()) as wakeup, socket.socket() as sock:
            wakeup.shared[0] = 1
            ours.send_many([bytes(lib.FDP_ORIGIN_SIZE + lib.FDP_ADDRESS_SIZE)] * 7, [sock] * 7)
            ours.close()
            _serve(Intake(theirs, counters, None, kinds), counters, wakeup, config)
            assert (counters.begun, counters.handled) == (7, 7)
            assert len(os.read(wakeup.fileno(), 100)) == 4

    run_in_child(serve)
