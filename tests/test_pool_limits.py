"""A pool that runs into a limit waits for what it lacks, loses nothing, and serves on."""

import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest

import fdpass_c
from fdpass_c import Channel
from support.marks import linux_only
from support.processes import become_nobody, fork, read_cpu_time, run_in_child
from support.server import Server, connections
from support.sockets import read_all, read_some

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits another process")

OF_NOBODY = ("-m", "support.pool_of_nobody", "any")


@contextmanager
def limited(pid: int, what: int, soft: int) -> Iterator[None]:
    """Gives a process of nobody's another limit while the block runs."""
    before, hard = resource.getrlimit(what)

    def set_to(limit: int) -> None:
        become_nobody()
        resource.prlimit(pid, what, (limit, hard))

    run_in_child(partial(set_to, soft))
    yield
    run_in_child(partial(set_to, before))


@contextmanager
def in_flight(count: int) -> Iterator[None]:
    """While the block runs, the user of a pool_of_nobody has so many descriptors in flight."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(go)
        become_nobody()
        left, _right = Channel.pair()
        left.send_many([b""] * count, [0] * count)
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    assert os.read(told, 1) == b"x"
    try:
        yield
    finally:
        fdpass_c.close_fds([told, tell, go])
        os.waitpid(pid, 0)


@pytest.mark.thread_unsafe
def test_too_many_in_flight() -> None:
    """While the user has too many descriptors in flight, a connection waits; then it is served."""
    with Server(program=OF_NOBODY) as server, ExitStack() as stack:
        server.settled(2)
        with limited(server.pid, resource.RLIMIT_NOFILE, 64), in_flight(100):
            sock = stack.enter_context(server.connect())
            sock.sendall(b"hello")
            server.wait_for(r"cannot pass connections to worker \d+: Too many references")
            before = read_cpu_time(server.pid)
            sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                sock.recv(1)  # The master tries again a few times, and does not spin.
            assert read_cpu_time(server.pid) - before < 0.15
            sock.settimeout(30)
            assert server.status().waiting == 1
        assert read_all(sock).endswith(b"hello")
        assert server.log.count("cannot pass connections") == 1
        status = server.settled(2)
        assert (status.handled, status.lost) == (1, 0)


@pytest.mark.thread_unsafe
def test_few_in_flight() -> None:
    """As soon as one more may be in flight, that is the connection that has waited longest."""
    with Server(program=OF_NOBODY) as server, ExitStack() as stack:
        server.settled(2)
        assert server.ask().endswith(b"hello")
        pids = server.settled(2).pids  # The first worker comes after the second from now on.
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(os.kill, pid, signal.SIGCONT)
        with limited(server.pid, resource.RLIMIT_NOFILE, 64), in_flight(65):
            server.send_signal(signal.SIGSTOP)  # It finds both at once.
            os.waitpid(server.pid, os.WUNTRACED)
            socks = [stack.enter_context(server.connect()) for _ in range(2)]
            server.send_signal(signal.SIGCONT)
            while server.status().waiting < 2:
                pass
            with limited(server.pid, resource.RLIMIT_NOFILE, 65):
                while not any(in_hand := [worker.in_hand for worker in server.status().workers]):
                    pass
                assert in_hand == [0, 1]
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for sock in socks:
            sock.sendall(b"hello")
            assert read_all(sock).endswith(b"hello")


@pytest.mark.thread_unsafe
def test_a_full_channel() -> None:
    """A worker that takes nothing out of a full channel gets no more; the others do, at once, and
    it serves all that it has when it goes on."""
    with Server("begin_and_wait_async", "--workers", "2", "--capacity", "450") as server:
        stopped, running = server.settled(2).pids
        os.kill(stopped, signal.SIGSTOP)
        with ExitStack() as stack:
            socks = []
            in_hand = {stopped: 0, running: 0}
            while in_hand[running] < in_hand[stopped] + 10:
                socks.append(stack.enter_context(server.connect()))
                while sum(in_hand.values()) < len(socks):  # One a message.
                    in_hand = {worker.pid: worker.in_hand for worker in server.status().workers}
            assert 0 < in_hand[stopped] < 450
            os.kill(stopped, signal.SIGCONT)
            for sock in socks:
                sock.sendall(b"hello")
            pids = [int(read_all(sock).removesuffix(b"hello")) for sock in socks]
        assert pids.count(stopped) >= in_hand[stopped]
        status = server.settled(2)
        assert (status.handled, status.lost) == (len(socks), 0)
        assert "cannot pass" not in server.log


@pytest.mark.thread_unsafe
def test_a_channel_with_room_for_a_part() -> None:
    """The master sends the rest of a frame as soon as the worker has made room."""
    with Server(program=("pool_programs.py", "small_buffers")) as server:
        pids = [server.pid, *server.settled(1).pids]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        os.waitpid(server.pid, os.WUNTRACED)
        with connections(server, 400) as socks:
            os.kill(server.pid, signal.SIGCONT)
            while not (in_hand := server.status().workers[0].in_hand):
                pass
            assert in_hand < len(socks)
            os.kill(pids[1], signal.SIGCONT)
            for sock in socks:
                sock.sendall(b"hello")
                assert read_all(sock).endswith(b"hello")
        assert server.settled(1).handled == 400
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_no_process_for_a_successor() -> None:
    """While there is no process for a dead worker's successor the others serve on, and it starts
    as soon as there is one."""
    with Server(program=OF_NOBODY) as server:
        old = server.settled(2).pids
        with limited(server.pid, resource.RLIMIT_NPROC, 0):
            os.kill(old[0], signal.SIGKILL)
            for _ in range(6):
                server.wait_for("cannot start a worker: Resource temporarily unavailable")
            assert server.status().pids == old[1:]
            assert server.ask().endswith(b"hello")
        assert old[1] in server.settled(2).pids
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_no_process_for_a_busy_pool() -> None:
    """The delay between the attempts doubles although the others begin connections meanwhile."""
    with Server(program=OF_NOBODY) as server:
        old = server.settled(2).pids
        with limited(server.pid, resource.RLIMIT_NPROC, 0):
            os.kill(old[0], signal.SIGKILL)
            began = time.monotonic()
            for _ in range(6):
                server.wait_for("cannot start a worker: Resource temporarily unavailable")
                assert server.ask().endswith(b"hello")
            assert time.monotonic() - began > 0.01 + 0.02 + 0.04 + 0.08 + 0.16
        assert old[1] in server.settled(2).pids
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_no_process_at_all() -> None:
    """Where there is no process for the first worker, the pool ends with an error that says so."""
    with Server(program=("-m", "support.pool_of_nobody", "0")) as server:
        server.wait_for("stopping")
        assert server.process.wait() == 1
        server.wait_for(r"PoolError: 5 workers in a row.*cannot start a worker: Resource temp")


@pytest.mark.thread_unsafe
def test_no_room_to_watch() -> None:
    """Where the selector has no room for a worker or a client of the metrics (max_user_watches),
    the pool tries again."""
    with Server(program=("pool_programs.py", "no_room_to_watch")) as server:
        for _ in range(3):
            assert int(server.ask())
        host, _, port = re.findall(r"metrics at (.*)", server.log)[0].rpartition(":")
        with socket.create_connection((host, int(port)), 30) as sock:
            assert read_some(sock) == b""
        server.wait_for("cannot accept a client of the metrics: No space left on device")
        with socket.create_connection((host, int(port)), 30) as sock:
            sock.sendall(b"GET /status HTTP/1.1\r\n\r\n")
            assert read_some(sock).startswith(b"HTTP/1.1 200")
        assert server.log.count("cannot accept a client of the metrics") == 2
        assert server.log.count("cannot start a worker: No space left on device") == 1
        status = server.settled(1)
        assert (status.handled, status.lost) == (3, 0)
        assert server.stop() == 0
        assert "SIGKILL" not in server.log


@pytest.mark.thread_unsafe
@linux_only
def test_no_memory_for_a_channel() -> None:
    """Where no channel can be made for a worker there is none, and the next try has one."""
    with Server(program=("pool_programs.py", "fail_once", "__init__")) as server:
        status = server.settled(1)
        assert "cannot start a worker: No buffer space available" in server.log
        assert server.list_children() == status.pids
        assert server.stop() == 0


@pytest.mark.thread_unsafe
def test_no_memory_to_flush() -> None:
    """A worker to which the rest of a frame cannot be sent is replaced."""
    with Server(program=("pool_programs.py", "fail_once", "flush")) as server:
        (old,) = server.settled(1).pids
        server.send_signal(signal.SIGHUP)
        server.wait_for(f"cannot send to worker {old}: No buffer space available")
        server.wait_for(f"worker {old} was killed by SIGKILL")
        assert int(server.ask()) in server.settled(1).pids
        assert server.stop() == 0


def leave_places(server: Server, count: int) -> int:
    """Gives the only worker of a pool room for so many more descriptors; returns its pid."""
    assert server.ask().endswith(b"hello")  # Its event loop runs.
    (worker,) = server.settled(1).pids
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    places = len(os.listdir(f"/proc/{worker}/fd")) + count
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (places, hard))
    return worker


@pytest.mark.thread_unsafe
def test_a_full_table_in_an_event_loop() -> None:
    """While a worker's descriptor table is full its connections wait, with few words of it in the
    log; it serves them as its others end."""
    with Server(program=("pool_programs.py", "retry_often")) as server:
        leave_places(server, 4)
        with ExitStack() as stack:
            socks = []
            for number in range(8):
                socks.append(stack.enter_context(server.connect()))
                while server.status().workers[0].in_hand <= number:  # One a message.
                    pass
            while "no room for 1 more descriptors" not in server.log:
                server.status()
            for _ in range(1000):  # It may try any number of times while connections can end.
                server.status()
            for sock in socks:
                sock.sendall(b"hello")
                assert read_all(sock).endswith(b"hello")
        status = server.settled(1)
        assert (status.handled, status.lost) == (9, 0)
        assert server.log.count("no room") < 8
        assert "Traceback" not in server.log


@pytest.mark.thread_unsafe
def test_a_full_table_with_nothing_in_hand() -> None:
    """A worker without room, and without connections whose end would make some, ends itself, and
    its successor serves what it had."""
    with Server("echo_async", "--workers", "1", "--capacity", "100") as server:
        worker = leave_places(server, 0)
        assert server.ask().endswith(b"hello")
        server.wait_for("DescriptorTableFullError")
        status = server.settled(1)
        assert status.pids != [worker]
        assert (status.handled, status.lost) == (2, 0)
        assert server.log.count("no room") == 1
