"""A service manager learns what the pool does, and passes it sockets with names."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdpass_c.pool import inherit_listeners
from fdpass_c.pool.service_manager import ServiceManager
from fdpass_c.pool.status import Phase
from support.marks import linux_only
from support.processes import FDPASS
from support.server import Server, connections
from support.sockets import read_all

pytestmark = pytest.mark.thread_unsafe


class Manager:
    """What a service manager hears."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.name = f"{'@' if kind == 'abstract' else ''}{directory}/notify"
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.name.replace("@", "\0"))
        self.sock.settimeout(30)

    def hear(self) -> "dict[str, str]":
        """The next message."""
        lines = self.sock.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def hear_of(self, name: str) -> "dict[str, str]":
        """The next message that says something of that name; those before it have told people
        something, and nothing else."""
        while name not in (message := self.hear()):
            assert [*message] == ["STATUS"]
        return message


@pytest.fixture
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    manager = Manager(getattr(request, "param", "path"), tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.name)
    with manager.sock:
        yield manager


@pytest.mark.parametrize(
    "manager", ["path", pytest.param("abstract", marks=linux_only)], indirect=True
)
def test_the_phases(manager: Manager) -> None:
    """Ready when all workers have started, reloading with the time, ready again when every worker
    is a new one, and stopping before the last request is finished."""
    with Server("begin_and_wait", "--workers", "3", "--capacity", "2") as server:
        ready = manager.hear_of("READY")
        assert ready == {"READY": "1", "STATUS": "serving, 3 of 3 workers ready"}
        old = server.settled(3).pids
        before = time.monotonic_ns() // 1000
        server.send_signal(signal.SIGHUP)
        reloading = manager.hear_of("RELOADING")
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert reloading["STATUS"].startswith("replacing the workers")
        assert manager.hear_of("READY")["STATUS"] == "serving, 3 of 3 workers ready"
        assert not {*server.settled(3).pids} & {*old}
        with connections(server, 1) as (sock,):
            assert sock.recv(100)
            server.send_signal(signal.SIGTERM)
            assert manager.hear_of("STOPPING")["STATUS"].startswith("stopping")
            sock.sendall(b"still here")
            assert read_all(sock) == b"still here"
        assert server.process.wait() == 0


def test_the_status_tells_of_losses(manager: Manager) -> None:
    """A worker that dies, and its successor, are told in words; the pool is ready all the while."""
    with Server("begin_and_wait", "--workers", "2") as server:
        manager.hear_of("READY")
        with connections(server, 1) as (sock,):
            os.kill(int(sock.recv(100)), signal.SIGKILL)
            texts: list[str] = []
            while texts[-1:] != ["serving, 2 of 2 workers ready, 1 connections lost"]:
                texts.append(manager.hear_of("STATUS")["STATUS"])
        assert "serving, 1 of 2 workers ready, 1 connections lost" in texts


@linux_only
def test_a_reload_without_a_worker(manager: Manager) -> None:
    """A reload begins and ends for the manager, which waits for it, though no worker was left."""
    with Server("echo", "--workers", "1") as server:
        manager.hear_of("READY")
        (worker,) = server.settled(1).pids
        server.send_signal(signal.SIGSTOP)  # It finds both at once.
        os.waitpid(server.pid, os.WUNTRACED)
        os.kill(worker, signal.SIGKILL)
        while " Z " not in Path(f"/proc/{worker}/stat").read_text():
            pass
        server.send_signal(signal.SIGHUP)
        server.send_signal(signal.SIGCONT)
        manager.hear_of("RELOADING")
        manager.hear_of("READY")
        assert server.settled(1).pids != [worker]
        assert server.stop() == 0


def test_a_death_in_a_reload(manager: Manager, tmp_path: Path) -> None:
    """A reload ends for the manager although an old worker dies before its turn."""
    gate = tmp_path / "gate"
    program = ("pool_programs.py", "wait_to_start", str(gate), "drain", "30")
    with Server(program=program) as server:
        manager.hear_of("READY")
        old = server.settled(2).pids
        gate.touch()
        server.send_signal(signal.SIGHUP)
        manager.hear_of("RELOADING")
        os.kill(old[1], signal.SIGKILL)
        server.wait_for(f"worker {old[1]} was killed")
        gate.unlink()
        manager.hear_of("READY")
        assert not {*server.settled(2).pids} & {*old}
        assert server.stop() == 0


def test_a_reload_that_is_given_up(manager: Manager, tmp_path: Path) -> None:
    """A reload whose workers do not start ends for the manager too: the old workers are ready."""
    flag = tmp_path / "die"
    with Server(program=("-m", "support.handlers", "0.01", str(flag))) as server:
        manager.hear_of("READY")
        flag.touch()
        server.send_signal(signal.SIGHUP)
        manager.hear_of("RELOADING")
        manager.hear_of("READY")
        server.wait_for("the old workers go on")


def test_ready_when_all_workers_are(manager: Manager, tmp_path: Path) -> None:
    """Neither the manager nor the program is told ready while a worker starts; then the program
    is told where its listeners are, port 0 and paths included."""
    gate = tmp_path / "gate"
    gate.touch()
    path = str(tmp_path / "socket")
    program = ("pool_programs.py", "tell_addresses", str(gate))
    with Server(program=program, addresses=("127.0.0.1:0", path)) as server:
        while len(server.status().workers) < 2:
            pass
        assert "ready at" not in server.log
        assert manager.hear()["STATUS"] == "starting, 0 of 2 workers ready"
        gate.unlink()
        manager.hear_of("READY")
        told = server.wait_for("INFO ready at (.*)")
        assert told[1] == repr((("127.0.0.1", server.port), path))
        server.send_signal(signal.SIGHUP)
        manager.hear_of("RELOADING")
        manager.hear_of("READY")
        assert server.stop() == 0
        assert server.log.count("ready at") == 1


def fill(manager: Manager) -> None:
    """Has others say so much that there is no room in the manager's queue."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while other.sendto(b"STATUS=other", manager.sock.getsockname()):
                pass


def test_a_full_queue(manager: Manager) -> None:
    """What a busy manager could not take is told when it can, and the pool serves meanwhile."""
    fill(manager)
    with Server("begin_and_wait", "--workers", "2") as server:
        with connections(server, 2) as socks:
            assert [len(sock.recv(100)) > 0 for sock in socks] == [True, True]
        assert manager.hear_of("READY")["STATUS"] == "serving, 2 of 2 workers ready"
        assert server.stop() == 0
        assert "cannot send" not in server.log


def test_the_order_of_messages(manager: Manager) -> None:
    """A busy manager is told last what came last, which is not that a reload begins."""
    fill(manager)
    with contextlib.closing(ServiceManager()) as told:
        for phase in (Phase.SERVING, Phase.RELOADING, Phase.SERVING):
            told.follow(phase, phase.value)
        while (first := manager.hear()) == {"STATUS": "other"}:
            told.check()
        assert [*first] == ["RELOADING", "MONOTONIC_USEC", "STATUS"]
        assert manager.hear() == {"READY": "1", "STATUS": "serving"}


def test_the_same_again(manager: Manager) -> None:
    """The manager hears of changes only."""
    with contextlib.closing(ServiceManager()) as told:
        told.follow(Phase.SERVING, "serving")
        told.follow(Phase.SERVING, "serving")
        told.follow(Phase.SERVING, "serving, 1 connections lost")
        assert manager.hear() == {"READY": "1", "STATUS": "serving"}
        assert manager.hear() == {"STATUS": "serving, 1 connections lost"}


def test_a_reload_with_long_connections(manager: Manager) -> None:
    """A reload ends for the manager when every worker that gets connections is a new one, although
    old ones have not finished theirs."""
    with Server("begin_and_wait", "--workers", "2") as server:
        manager.hear_of("READY")
        with connections(server, 2) as socks:
            old = {int(sock.recv(100)) for sock in socks}
            server.send_signal(signal.SIGHUP)
            manager.hear_of("RELOADING")
            assert manager.hear_of("READY")["STATUS"] == "serving, 2 of 2 workers ready"
            assert old < {*server.status().pids}
            for sock in socks:
                sock.sendall(b"still here")
                assert read_all(sock) == b"still here"
        assert server.stop() == 0


def test_a_program_that_is_not_ready() -> None:
    """What the program raises when it is told ready ends the pool."""
    with Server(program=("pool_programs.py", "raise_when_ready")) as server:
        server.wait_for("RuntimeError: not ready for that")
        assert server.process.wait() == 1


@pytest.mark.parametrize("whose", ["nobody's", "own", "another's"])
def test_watchdog(manager: Manager, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The master shows that it lives, in time, where the manager waits for it and not for another
    process."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    program: tuple[str, ...] = ()
    if whose == "another's":
        monkeypatch.setenv("WATCHDOG_PID", "1")
    elif whose == "own":
        code = (
            "import os, sys\n"
            "os.environ['WATCHDOG_PID'] = str(os.getpid())\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
        )
        program = ("-c", code, *FDPASS[1:], "pool", "--workers", "1", "support.handlers:echo")
    with Server("echo", "--workers", "1", program=program) as server:
        for _ in range(10 if whose != "another's" else 0):
            while "WATCHDOG" not in (message := manager.hear()):
                assert not {*message} - {"READY", "STATUS"}
            assert message == {"WATCHDOG": "1"}
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            assert server.ask().endswith(b"hello")
        server.send_signal(signal.SIGTERM)
        while "STOPPING" not in (message := manager.hear()):
            assert "WATCHDOG" not in message or whose != "another's"
        assert server.process.wait() == 0


def test_watchdog_interval(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is half of the manager's, as sd_watchdog_enabled(3) recommends."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    before = time.monotonic()
    with contextlib.closing(ServiceManager()) as told:
        assert manager.hear() == {"WATCHDOG": "1"}
        assert before + 10 <= told.due_at <= time.monotonic() + 10


@pytest.mark.parametrize("microseconds", ["0", "soon", str(2**64 - 1), "9" * 400])
def test_no_watchdog(manager: Manager, microseconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that is none, or for ever, does not have the master tell anything again and again."""
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    with Server("echo", "--workers", "1") as server:
        messages = [manager.hear() for _ in range(2)]
        server.settled(1)
        assert server.ask().endswith(b"hello")
        assert server.stop() == 0
        while "STOPPING" not in messages[-1]:
            messages.append(manager.hear())
    assert sum("WATCHDOG" in message for message in messages) <= 1


@pytest.mark.parametrize("name", ["/no/such/directory/notify", "vsock:2:1234"])
def test_no_manager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that cannot be told is a warning; the pool serves."""
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with Server("echo", "--workers", "1") as server:
        assert server.ask().endswith(b"hello")
        server.settled(1)
        assert server.stop() == 0
        text = "cannot send STATUS" if name.startswith("/") else "neither an absolute path"
        assert text in server.log


@linux_only
def test_workers_do_not_speak_for_the_pool(manager: Manager) -> None:
    """A worker holds its channel and the end from which all take offers, and not the socket by
    which the master tells."""
    with Server("echo", "--workers", "2") as server:
        manager.hear_of("READY")
        for pid in server.settled(2).pids:
            fds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert len([fd for fd in fds if fd.startswith("socket:")]) == 2


_PASS = """
import fcntl, os, sys
fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[1].split(',')]
for target, fd in enumerate(fds, 3):
    os.dup2(fd, target)
os.environ.update(LISTEN_FDS=str(len(fds)), LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

_SHOW = """
import os
from fdpass_c.pool import inherit_listeners
from fdpass_c.pool.service_manager import ServiceManager
from fdpass_c.pool.status import Phase
socks = inherit_listeners()
for sock in socks:
    print(sock.fileno(), sock.name, sock.getsockname()[1], sock.get_inheritable())
print([os.get_inheritable(fd) for fd in (3, 4, 5)], [n for n in os.environ if "LISTEN" in n])
for sock in socks:
    sock.close()
"""


@pytest.mark.parametrize("names", ["http:log:admin", None])
def test_names_of_sockets(names: "str | None", monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets have the names that the manager gave them; what is no socket is left open, and no
    child takes it for its own."""
    if names is not None:
        monkeypatch.setenv("LISTEN_FDNAMES", names)
    reader, writer = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("", 0)) as admin:
        fds = [http.fileno(), reader, admin.fileno()]
        command = [sys.executable, "-c", _PASS, ",".join(map(str, fds)), "-W", "error"]
        done = subprocess.run(
            [*command, "-c", _SHOW],
            pass_fds=fds,
            capture_output=True,
            text=True,
            timeout=60,
        )
        ports = [sock.getsockname()[1] for sock in (http, admin)]
    os.close(reader)
    os.close(writer)
    first, last = ("http", "admin") if names else ("unknown", "unknown")
    assert done.stdout.splitlines() == [
        f"3 {first} {ports[0]} False",
        f"5 {last} {ports[1]} False",
        "[False, False, False] []",
    ], done.stderr


def test_a_wrong_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that cannot be told to whom they belong are an error."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDNAMES", "http:admin")
    with pytest.raises(ValueError, match="http:admin"):
        inherit_listeners()
