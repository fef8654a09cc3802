"""The numbers of a pool, for machines."""

import contextlib
import http.client
import json
import os
import re
import resource
import selectors
import signal
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fdpass_c.pool import Pool, metrics_server, open_listener
from fdpass_c.pool.metrics import to_prometheus
from fdpass_c.pool.metrics_server import MetricsServer
from fdpass_c.pool.status import Status, WorkerStatus
from support.handlers import echo
from support.marks import linux_only
from support.processes import run_in_child
from support.server import Server, connections
from support.sockets import read_all, read_some

pytestmark = pytest.mark.thread_unsafe

_SAMPLE = re.compile(r'(fdpass_pool_\w+(?:\{(?:slot="\d+"|state="[a-z]+")\})?) (\S+)')


class Client(http.client.HTTPConnection):
    """Of an address as the log tells it."""

    def __init__(self, address: str) -> None:
        super().__init__("pool", timeout=30)
        self._address = address

    def connect(self) -> None:
        if "/" in self._address:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(30)
            self.sock.connect(self._address)
        else:
            host, _, port = self._address.rpartition(":")
            self.sock = socket.create_connection((host.strip("[]"), int(port)), 30)


def ask(address: str, target: str, method: str = "GET") -> "tuple[int, str, str]":
    """The status, the type and the text of an answer."""
    client = Client(address)
    try:
        client.request(method, target)
        answer = client.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        client.close()


def read_status(address: str) -> Any:
    status, kind, text = ask(address, "/status")
    assert (status, kind) == (200, "application/json")
    return json.loads(text)


def read_metrics(address: str) -> dict[str, float]:
    """Each series once, all series of a name together, after its type."""
    status, kind, text = ask(address, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return parse(text)


def parse(text: str) -> dict[str, float]:
    assert text.endswith("\n")
    found: dict[str, float] = {}
    name = ""
    for line in text.splitlines():
        if match := re.fullmatch(r"# TYPE (fdpass_pool_\w+) (counter|gauge)", line):
            name = match[1]
            assert (match[2] == "counter") == name.endswith("_total")
        elif not line.startswith("# HELP "):
            sample = _SAMPLE.fullmatch(line)
            assert sample is not None, line
            assert sample[1].partition("{")[0] == name
            assert sample[1] not in found
            found[sample[1]] = float(sample[2])
    return found


@pytest.mark.parametrize("where", ["TCP", "Unix"])
def test_the_numbers(where: str, tmp_path: Path) -> None:
    """JSON and Prometheus' text say what the table says, at an address of either kind, whose file
    goes with the pool."""
    asked = str(tmp_path / "metrics") if where == "Unix" else "127.0.0.1:0"
    with Server("obey", "--workers", "2", "--metrics", asked) as server:
        address = re.findall(r"metrics at (.*)", server.log)[0]
        server.ask()
        server.ask(b"raise")
        old = server.settled(2)
        os.kill(old.pids[0], signal.SIGKILL)
        server.wait_for("killed by SIGKILL")
        table = server.settled(2)
        status = read_status(address)
        counts = ("waiting", "handled", "failed", "lost")
        assert [status[name] for name in counts] == [0, 2, 1, 0]
        assert {**status, "workers": 0} == {"workers": 0, **{n: status[n] for n in counts}}
        for worker, line in zip(status["workers"], table.workers, strict=True):
            assert {name: worker[name] for name in line._fields[:-1]} == {
                name: getattr(line, name) for name in line._fields[:-1]
            }
            assert 0 <= worker["busy"] <= worker["age"]
            assert worker["busy_share"] == pytest.approx(worker["busy"] / worker["age"])
        metrics = read_metrics(address)
        assert metrics["fdpass_pool_handled_total"] == 2
        assert metrics["fdpass_pool_failed_total"] == 1
        assert metrics["fdpass_pool_lost_total"] == 0
        assert metrics["fdpass_pool_waiting"] == 0
        assert metrics['fdpass_pool_workers{state="free"}'] == 2
        assert metrics['fdpass_pool_workers{state="busy"}'] == 0
        assert metrics['fdpass_pool_worker_restarts_total{slot="0"}'] == 1
        assert metrics['fdpass_pool_worker_restarts_total{slot="1"}'] == 0
        assert server.stop() == 0
    assert not (tmp_path / "metrics").exists()


def test_a_slot_with_two_workers() -> None:
    """While a worker is replaced, its slot has the numbers of the one that gets connections."""

    def make(slot: int, pid: int, state: str) -> WorkerStatus:
        return WorkerStatus(slot, pid, state, pid, 0, 0, 0, 1.0, 0.5)

    workers = (
        make(0, 10, "LEAVING"),
        make(0, 20, "FREE"),
        make(0, 30, "LEAVING"),
        make(1, 40, "BUSY"),
        make(1, 50, "STARTING"),
        make(2, 60, "LEAVING"),
    )
    found = parse(to_prometheus(Status(workers, 0, 0, 0, 0)))
    in_hand = {name: value for name, value in found.items() if "in_hand" in name}
    assert [*in_hand.values()] == [20, 40, 60]
    assert found['fdpass_pool_workers{state="leaving"}'] == 3


def test_a_busy_plain_worker() -> None:
    """Its time counts while its handler still runs, and afterwards stays."""
    with Server("begin_and_wait", "--workers", "1", "--metrics", "127.0.0.1:0") as server:
        address = re.findall(r"metrics at (.*)", server.log)[0]
        assert read_status(address)["workers"][0]["busy"] == 0
        with connections(server, 1) as (sock,):
            assert sock.recv(100)
            before = read_status(address)["workers"][0]
            while (during := read_status(address)["workers"][0])["busy"] < before["busy"] + 0.2:
                assert during["busy"] - before["busy"] <= during["age"] - before["age"] + 0.01
            sock.sendall(b"go on")
            assert read_all(sock)
        (line,) = server.settled(1).workers
        after = read_status(address)["workers"][0]
        assert after["busy"] >= during["busy"]
        assert read_status(address)["workers"][0]["busy"] == after["busy"]
        assert 0 < line.busy <= 100
        assert server.stop() == 0


def test_a_busy_event_loop() -> None:
    """Its time is that on a CPU, and no time where its connections are idle."""
    with Server("burn_async", "--workers", "2", "--metrics", "127.0.0.1:0") as server:
        address = re.findall(r"metrics at (.*)", server.log)[0]
        server.settled(2)
        with connections(server, 2) as (idle, burning):
            assert idle.recv(1)
            assert burning.recv(1)
            burning.sendall(b"burn")
            while max(busy := [w["busy"] for w in read_status(address)["workers"]]) < 0.5:
                pass
            assert min(busy) < 0.25
        assert server.stop() == 0


def test_while_it_stops() -> None:
    """The numbers are there until the last connection is finished."""
    with Server("begin_and_wait", "--workers", "2", "--metrics", "127.0.0.1:0") as server:
        address = re.findall(r"metrics at (.*)", server.log)[0]
        with connections(server, 1) as (sock,):
            assert sock.recv(100)
            server.send_signal(signal.SIGTERM)
            server.wait_for("stopping")
            while len(workers := read_status(address)["workers"]) > 1:
                pass
            assert (workers[0]["state"], workers[0]["in_hand"]) == ("LEAVING", 1)
            sock.sendall(b"go on")
        assert server.process.wait() == 0


def test_odd_requests() -> None:
    """What is no question for numbers is refused, and the answer is not cut, whatever follows."""
    with Server("echo", "--workers", "1", "--metrics", "127.0.0.1:0") as server:
        port = int(re.findall(r"metrics at .*:(.*)", server.log)[0])
        for request_line, status in (
            ("GET /nothing HTTP/1.1", 404),
            ("GET /status?pretty HTTP/1.1", 200),
            ("GET http://pool:80/status HTTP/1.1", 200),
            ("GET HTTP://pool/metrics?x=/ HTTP/1.1", 200),
            ("GET http://pool HTTP/1.1", 404),
            ("GET http:///status HTTP/1.1", 404),
            ("GET /proxy/http://pool/status HTTP/1.1", 404),
            ("POST /status HTTP/1.1", 405),
            ("GET", 404),
            ("", 405),
            ("\xff\x00 /status HTTP/1.1", 405),
        ):
            request = f"{request_line}\r\nHost: pool\r\n\r\n".encode("latin-1")
            with socket.create_connection(("127.0.0.1", port), 30) as sock:
                sock.sendall(request + bytes(50_000))
                assert read_all(sock).startswith(b"HTTP/1.1 %d " % status), request_line
        assert server.stop() == 0
        assert "Traceback" not in server.log


@pytest.mark.parametrize("head", [b"GET /status\n\n", b"GET /status HTTP/1.0\nHost: pool\n\r\n"])
def test_lines_as_people_type_them(head: bytes, tmp_path: Path) -> None:
    """Lines may end without a carriage return."""
    path = str(tmp_path / "metrics")
    with Server("echo", "--workers", "1", "--metrics", path) as server:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(head)
            assert read_all(sock).startswith(b"HTTP/1.1 200 ")
        assert server.stop() == 0


def test_head() -> None:
    """HEAD has no body, and the length of one."""
    with Server("echo", "--workers", "1", "--metrics", "127.0.0.1:0") as server:
        address = re.findall(r"metrics at (.*)", server.log)[0]
        assert ask(address, "/metrics", "HEAD")[::2] == (200, "")


def talk_on(sock: socket.socket) -> None:
    while True:
        sock.sendall(b"x" * 4096)


def test_silent_clients() -> None:
    """Clients that say nothing, too much, or go before they are answered, keep neither the pool
    nor, for longer than a few seconds, others from theirs."""
    with (
        Server(program=("pool_programs.py", "short_metrics")) as server,
        ExitStack() as stack,
    ):
        address = re.findall(r"metrics at (.*)", server.log)[0]
        port = int(address.rpartition(":")[2])

        def connect() -> socket.socket:
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))

        fds = server.settled(1) and server.list_fds()
        connect().close()
        with connect() as gone:
            gone.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        talker = connect()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            talk_on(talker)
        silent = [connect() for _ in range(12)]
        assert int(server.ask())
        assert len(read_status(address)["workers"]) == 1
        for sock in silent:
            assert read_all(sock) == b""
        assert server.settled_fds(fds) == fds
        assert server.stop() == 0


def turn(selector: selectors.BaseSelector, server: MetricsServer) -> None:
    """As the master does."""
    for key, events in selector.select(max(0.0, min(30.0, server.due_at - time.monotonic()))):
        key.data(events)
    if time.monotonic() >= server.due_at:
        server.check()


@pytest.mark.parametrize(("length", "answered"), [(2**14, True), (2**14 + 1, False)])
def test_the_longest_request(length: int, answered: bool, tmp_path: Path) -> None:
    """A client that sends more than that is not read any longer, however much time it has."""
    with (
        open_listener(str(tmp_path / "metrics")) as listener,
        selectors.DefaultSelector() as selector,
        socket.socket(socket.AF_UNIX) as client,
    ):
        server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
        client.connect(listener.getsockname())
        client.sendall(b"GET /status HTTP/1.1\r\n".ljust(length - 4, b"x") + b"\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        while selector.select(0):
            turn(selector, server)
        assert [key.fileobj for key in selector.get_map().values()] == [listener]
        assert (b"waiting" in read_some(client)) == answered
        server.close()


def test_clients_at_once(tmp_path: Path) -> None:
    """Eight are accepted, and another one when one of these has gone."""
    with (
        open_listener(str(tmp_path / "metrics")) as listener,
        selectors.DefaultSelector() as selector,
        ExitStack() as stack,
    ):
        server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(9)]
        for client in clients:
            client.connect(listener.getsockname())
            client.sendall(b"GET /status")
        for gone in clients[:2]:
            while selector.select(0):
                turn(selector, server)
            assert len(selector.get_map()) == 8
            assert listener not in selector.get_map()
            gone.close()
        while listener not in selector.get_map():
            turn(selector, server)
        server.close()


def test_a_long_answer() -> None:
    """It is not cut because the client has sent more than the master reads before."""
    worker = WorkerStatus(0, 1, "FREE", 0, 0, 0, 0, 1.0, 0.5)
    status = Status((worker,) * 10_000, 0, 0, 0, 0)
    with (
        open_listener("127.0.0.1:0") as listener,
        selectors.DefaultSelector() as selector,
        socket.create_connection(listener.getsockname()) as client,
    ):
        server = MetricsServer(listener, selector, lambda: status)
        client.sendall(b"GET /status HTTP/1.1\r\n\r\n" + bytes(10_000))
        pieces = [b" "]

        def read(_events: int) -> None:
            pieces.append(client.recv(1000))

        # The master does all that it can at once before the client reads.
        while selector.select(0):
            turn(selector, server)
        selector.register(client, selectors.EVENT_READ, read)
        while pieces[-1]:
            turn(selector, server)
        head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
        assert b"Content-Length: %d\r\n" % len(body) in head
        server.close()


def test_a_full_descriptor_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no place for a client's connection it waits, the master does not spin, and the
    client is answered when there is one again."""
    monkeypatch.setattr(metrics_server, "_RETRY_DELAY", 0.2)

    def serve() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with (
            open_listener("127.0.0.1:0") as listener,
            selectors.DefaultSelector() as selector,
            socket.create_connection(listener.getsockname(), 30) as client,
        ):
            server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
            client.sendall(b"GET /status HTTP/1.1\r\n\r\n")
            os.close(free := os.dup(0))
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            turn(selector, server)
            assert server.due_at > time.monotonic()
            assert not selector.select(0)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            client.setblocking(False)
            answer = b""
            while b"waiting" not in answer:
                turn(selector, server)
                with contextlib.suppress(BlockingIOError):
                    answer += client.recv(1000)
            server.close()

    run_in_child(serve)


class Deaf(socket.socket):
    """A listener whose every client, or every one until it hears, is aborted before it is
    accepted."""

    hears = False

    def accept(self) -> Any:
        if self.hears:
            return super().accept()
        raise ConnectionAbortedError


def test_clients_that_are_aborted() -> None:
    """One is no reason to wait; where it lasts, the master does not spin."""
    with (
        Deaf(socket.AF_INET) as listener,
        selectors.DefaultSelector() as selector,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.create_connection(listener.getsockname(), 30)
        server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
        turn(selector, server)
        assert selector.select(0)
        turn(selector, server)
        assert server.due_at > time.monotonic()
        assert not selector.select(0)
        server.close()
        client.close()


def test_clients_that_are_aborted_now_and_then() -> None:
    """Two of them are no reason to wait if one between them was answered."""
    with (
        Deaf(socket.AF_INET) as listener,
        selectors.DefaultSelector() as selector,
        ExitStack() as clients,
    ):
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
        for _ in range(3):
            clients.enter_context(socket.create_connection(listener.getsockname(), 30))
            turn(selector, server)
            assert selector.select(0)
            listener.hears = True
            turn(selector, server)
            assert not selector.select(0)
            listener.hears = False
        server.close()


def test_a_listener_that_another_process_uses() -> None:
    """It may be made blocking, and the client may be taken, just before the master accepts. The
    master does not wait for the next client."""
    with (
        open_listener("127.0.0.1:0") as listener,
        selectors.DefaultSelector() as selector,
        socket.create_connection(listener.getsockname(), 30),
    ):
        server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
        ready = selector.select(30)
        with socket.socket(fileno=os.dup(listener.fileno())) as shared:
            shared.setblocking(True)
            shared.accept()[0].close()
        for key, events in ready:
            key.data(events)
        server.check()
        assert server.due_at == float("inf")
        server.close()


@linux_only
@pytest.mark.parametrize("how", ["read", "both", "close"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_a_listener_that_ends(family: str, how: str, tmp_path: Path) -> None:
    """When other code shuts down or closes the listener, nobody can ask any more, and that is
    all: the master neither spins nor fails."""
    address = "127.0.0.1:0" if family == "tcp" else str(tmp_path / "metrics")
    with (
        open_listener(address) as listener,
        selectors.DefaultSelector() as selector,
        ExitStack() as clients,
    ):
        server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
        for _ in range(8):
            client = clients.enter_context(socket.socket(listener.family))
            client.connect(listener.getsockname())
            turn(selector, server)
        if how == "close":
            listener.close()
        else:
            listener.shutdown(socket.SHUT_RD if how == "read" else socket.SHUT_RDWR)
        clients.close()
        while selector.select(0):
            turn(selector, server)
        assert server.due_at == float("inf")
        server.close()


def test_the_number_of_a_closed_listener() -> None:
    """When other code closes the listener, the channel of the next worker gets its number."""
    with Server(program=("pool_programs.py", "close_metrics")) as server:
        old = server.settled(2).pids
        server.send_signal(signal.SIGUSR2)
        server.wait_for("closed")
        for pid in old:
            os.kill(pid, signal.SIGKILL)
            server.wait_for("killed by SIGKILL")
        new = server.settled(2).pids
        assert int(server.ask()) in new
        server.send_signal(signal.SIGHUP)
        server.wait_for("exited with status 0")
        server.wait_for("exited with status 0")
        assert not {*server.settled(2).pids} & {*new}
        assert server.stop() == 0


@linux_only
def test_a_client_that_does_not_read() -> None:
    """The listener may have SO_LINGER: the master waits for no client when it closes its end."""
    with open_listener("127.0.0.1:0") as listener, selectors.DefaultSelector() as selector:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        server = MetricsServer(listener, selector, lambda: Status((), 7, 0, 0, 0))
        with socket.create_connection(listener.getsockname()) as client:
            turn(selector, server)
            (accepted,) = {key.fd for key in selector.get_map().values()} - {listener.fileno()}
            with socket.socket(fileno=os.dup(accepted)) as same:
                server.close()
                on, _ = struct.unpack("ii", same.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
                assert not on
            assert client.recv(1) == b""


def test_a_client_that_has_gone(tmp_path: Path) -> None:
    """A client that does not wait for its answer ends no master, even if SIGPIPE ends it."""
    path = str(tmp_path / "metrics")
    with Server(program=("pool_programs.py", "die_of_broken_pipes", path)) as server:
        server.settled(1)
        server.send_signal(signal.SIGSTOP)
        os.waitpid(server.pid, os.WUNTRACED)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        server.send_signal(signal.SIGCONT)
        assert json.loads(ask(path, "/status")[2])["handled"] == 0
        assert server.stop() == 0


@linux_only
def test_workers_hold_nothing_of_it(tmp_path: Path) -> None:
    """A worker, one too that starts while a client is there, has neither the listener nor a
    client."""
    path = str(tmp_path / "metrics")
    with Server("echo", "--workers", "1", "--metrics", path) as server:
        (old,) = server.settled(1).pids
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            assert server.status()
            os.kill(old, signal.SIGKILL)
            server.wait_for("killed by SIGKILL")
            assert server.ask().endswith(b"hello")  # It has closed what it does not need.
            (pid,) = server.settled(1).pids
            # It closes the connection just after its answer. What it kept would be a timeout here.
            while len([fd for fd in server.list_fds(pid) if fd.startswith("socket:")]) != 2:
                pass
        assert server.stop() == 0


def test_a_listener_of_the_program() -> None:
    """A socket is borrowed; one that does not listen, or serves already, is refused."""
    with open_listener("127.0.0.1:0") as listener, socket.socket() as deaf:
        with pytest.raises(ValueError, match="not listen"):
            Pool(echo, 1).serve(listener, metrics=deaf)
        with pytest.raises(ValueError, match="twice"):
            Pool(echo, 1).serve(listener, metrics=listener)
        with open_listener("127.0.0.1:0") as metrics:
            pool = Pool(echo, 1)
            pool.stop()
            pool.serve(listener, metrics=metrics)
            assert metrics.gettimeout() is None
            assert listener.gettimeout() is None
