"""A pool in a process of its own, and clients for it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from support.processes import FDPASS
from support.sockets import read_all

_TESTS = Path(__file__).parent.parent
_TIMEOUT = 30


class WorkerLine(NamedTuple):
    slot: int
    pid: int
    state: str
    in_hand: int
    handled: int
    failed: int
    restarts: int
    busy: int


class Status(NamedTuple):
    workers: list[WorkerLine]
    handled: int
    failed: int
    lost: int
    waiting: int

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers]


class Server:
    """fdpass pool with a handler of support.handlers; its log is read as it comes."""

    def __init__(
        self,
        handler: str = "echo",
        *options: str,
        addresses: tuple[str, ...] = ("127.0.0.1:0",),
        program: tuple[str, ...] = (),
    ) -> None:
        """program: in place of fdpass pool, what Python runs."""
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._read = 0
        command = [*FDPASS, "pool", *options, f"support.handlers:{handler}", *addresses]
        if program:
            command = [sys.executable, "-W", "error", *program, *addresses]
        self.process = subprocess.Popen(
            command,
            cwd=_TESTS,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # With a process group of its own, to be killed as a whole.
        )
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()
        self.addresses = [self.wait_for(r"listening at (.*)")[1] for _ in addresses]

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._lines.append("THE END\n")
            self._news.notify_all()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """The next line of the log, after those found before, in which pattern is found."""
        with self._news:
            while True:
                while self._read < len(self._lines):
                    self._read += 1
                    if match := re.search(pattern, self._lines[self._read - 1]):
                        return match
                    assert self._lines[self._read - 1] != "THE END\n", self.log
                assert self._news.wait(_TIMEOUT), f"{pattern} did not come in:\n{self.log}"

    @property
    def log(self) -> str:
        return "".join(self._lines)

    @property
    def port(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    @property
    def pid(self) -> int:
        return self.process.pid

    def send_signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def status(self) -> Status:
        self.send_signal(signal.SIGUSR1)
        self.wait_for(r"INFO status")
        workers: list[WorkerLine] = []
        while match := self.wait_for(
            r"^ *(\d+) +(\d+) +([A-Z]+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)%$|"
            r"^(\d+) handled, (\d+) failed, (\d+) lost, (\d+) w"
        ):
            if match[1] is None:
                return Status(workers, *map(int, match.groups()[8:]))
            numbers = map(int, match.groups()[3:8])
            workers.append(WorkerLine(int(match[1]), int(match[2]), match[3], *numbers))
        raise AssertionError

    def settled(self, workers: int) -> Status:
        """The status once all these workers are FREE with nothing in hand, and nobody else."""
        while True:
            status = self.status()
            states = [(worker.state, worker.in_hand) for worker in status.workers]
            if states == [("FREE", 0)] * workers and not status.waiting:
                return status

    def settled_fds(self, wanted: list[str]) -> list[str]:
        """What list_fds says once it is wanted, or after many turns of the master."""
        for _ in range(100):
            if (found := self.list_fds()) == wanted:
                break
            self.status()
        return found

    def list_fds(self, pid: int | None = None) -> list[str]:
        """What the descriptors of a process point to, the master's by default."""
        found = []
        for link in Path(f"/proc/{pid or self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # Closed since.
                found.append(re.sub(r"\d+", "", os.readlink(link)))
        return sorted(found)

    def list_children(self) -> list[int]:
        """The processes whose parent is the master, ended ones included, on Linux."""
        return [*map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split())]

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Returns the exit status."""
        self.send_signal(signum)
        return self.process.wait(_TIMEOUT)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), _TIMEOUT)

    def ask(self, request: bytes = b"hello") -> bytes:
        """The whole answer to one request on a connection of its own."""
        with self.connect() as sock:
            sock.sendall(request)
            return read_all(sock)

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            print(self.log)
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def connections(server: Server, count: int) -> Iterator[list[socket.socket]]:
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            socks.append(server.connect())
        yield socks
    finally:
        for sock in socks:
            sock.close()
