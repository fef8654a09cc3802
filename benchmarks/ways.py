"""Ways to pass descriptors, and how to turn one into a contender: in one process or across two."""

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NoReturn, Protocol

from benchmarks.runner import Contender, SkipCase, garbage_untouched, timed


@dataclass(frozen=True)
class Observation:
    """What arrived: the payloads, and the file to which each descriptor refers."""

    payloads: list[bytes]
    files: list[tuple[int, int]]


def identify(fds: Iterable[int]) -> list[tuple[int, int]]:
    """Returns the device and the inode of each descriptor's file."""
    return [(status.st_dev, status.st_ino) for status in map(os.fstat, fds)]


class Way(ABC):
    """One way to send a batch of descriptors from one socket and receive it from another."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def send(self, passes: int) -> None:
        """Sends the batch so many times."""

    @abstractmethod
    def receive(self, passes: int) -> None:
        """Receives the batch so many times, and closes."""

    @abstractmethod
    def exchange(self, passes: int) -> None:
        """Sends, receives and closes the batch, so many times."""

    @abstractmethod
    def observe(self) -> Observation:
        """Receives the batch once, closes it, and returns what arrived."""


class PythonWay(Way):
    """A way written in Python.

    send() sends the batch. receive(close) receives all of it, calls close with every object that
    holds descriptors, and returns the payload or the list of payloads. close takes a descriptor, a
    list of them, or an object with a list of them in its attribute fds.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[], object],
        receive: Callable[[Callable[[Any], object]], bytes | list[bytes]],
        close: Callable[[Any], object] = os.close,
    ) -> None:
        super().__init__(name)
        self._send = send
        self._receive = receive
        self._close = close

    def send(self, passes: int) -> None:
        send = self._send
        for _ in repeat(None, passes):
            send()

    def receive(self, passes: int) -> None:
        receive, close = self._receive, self._close
        for _ in repeat(None, passes):
            receive(close)

    def exchange(self, passes: int) -> None:
        send, receive, close = self._send, self._receive, self._close
        for _ in repeat(None, passes):
            send()
            receive(close)

    def observe(self) -> Observation:
        files = []

        def close(held: Any) -> None:
            files.extend(identify([held] if isinstance(held, int) else getattr(held, "fds", held)))
            self._close(held)

        payloads = self._receive(close)
        return Observation([payloads] if isinstance(payloads, bytes) else payloads, files)


def _require_equal(name: str, seen: object, expected: object) -> None:
    if seen != expected:
        raise RuntimeError(f"{name}: what arrived is not what was sent")


def here(way: Way, expected: Observation) -> Contender:
    """Makes a contender of the way, in one process: each pass sends, receives and closes."""

    def verify() -> None:
        way.send(1)
        _require_equal(way.name, way.observe(), expected)

    return Contender(way.name, timed(way.exchange), verify)


_OBSERVE = 0

_CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _pin(cpus: Sequence[int]) -> None:
    """Lets this process run on these CPUs only. Otherwise the two processes would sometimes share
    one CPU and sometimes not, and the times would vary."""
    if len(_CPUS) > 1:
        os.sched_setaffinity(0, cpus)


class Closable(Protocol):
    """An object that has to be closed."""

    def close(self) -> object: ...


class Peer:
    """A forked process, on a CPU of its own, that does its part of the work when it is told to.

    receive(passes) and observe() run in this process. The caller does the other part between
    start() and finish(). finish() returns what observe() has returned.
    """

    def __init__(
        self,
        receive: Callable[[int], object],
        observe: Callable[[], object],
        close_in_child: Sequence[Closable] = (),
    ) -> None:
        self._control, remote = multiprocessing.Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._control.close()
            for one in close_in_child:
                one.close()
            _pin(_CPUS[-1:])
            self._serve(remote, receive, observe)
        remote.close()
        _pin(_CPUS[:1])

    @staticmethod
    def _serve(
        remote: Any, receive: Callable[[int], object], observe: Callable[[], object]
    ) -> NoReturn:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            with garbage_untouched():
                while True:
                    passes = remote.recv()
                    remote.send(observe() if passes == _OBSERVE else receive(passes))
        except EOFError:
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def start(self, passes: int) -> None:
        """Lets the peer receive so many times, or observe once."""
        self._control.send(passes)

    def finish(self) -> object:
        """Waits until the peer has done its part."""
        return self._control.recv()

    def close(self) -> None:
        """Kills the process, which may be waiting for messages that are never sent."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._control.close()
        _pin(_CPUS)


_MOST_CHUNKS = 4


class Window:
    """Limits how much is in flight: at most four chunks are sent and not yet received.

    Without this, a socket's buffer could hold more descriptors than a user may have in flight,
    which is RLIMIT_NOFILE (man 7 unix, ETOOMANYREFS). The sender calls send(). The other process, a
    Peer, calls receive() and observe(), and says through a pipe when it has closed the descriptors
    of a chunk.
    """

    def __init__(self, way: Way, chunk: int, stack: ExitStack) -> None:
        self._way = way
        self._chunk = chunk
        self._from_peer, self._to_sender = os.pipe()
        stack.callback(os.close, self._from_peer)
        stack.callback(os.close, self._to_sender)

    def _steps(self, passes: int) -> Iterator[int]:
        for start in range(0, passes, self._chunk):
            yield min(self._chunk, passes - start)

    def send(self, passes: int) -> None:
        ahead = 0
        for step in self._steps(passes):
            if ahead == _MOST_CHUNKS:
                ahead -= self._wait()
            self._way.send(step)
            ahead += 1
        while ahead:
            ahead -= self._wait()

    def _wait(self) -> int:
        return len(os.read(self._from_peer, _MOST_CHUNKS))

    def receive(self, passes: int) -> None:
        for step in self._steps(passes):
            self._way.receive(step)
            os.write(self._to_sender, b"x")

    def observe(self) -> Observation:
        observation = self._way.observe()
        os.write(self._to_sender, b"x")
        return observation


def across(
    name: str,
    send: Callable[[int], object],
    peer: Peer,
    expected: object,
) -> Contender:
    """Makes a contender across two processes: this one sends, the peer receives and closes. The
    time ends when the peer says that it has received the last message."""

    def exchange(passes: int) -> None:
        peer.start(passes)
        send(passes)
        peer.finish()

    def verify() -> None:
        peer.start(_OBSERVE)
        send(1)
        _require_equal(name, peer.finish(), expected)

    return Contender(name, timed(exchange), verify)


LARGE_BUFFER = 4 << 20
"""The buffer size for open_pair if one process sends much before it receives. A system may allow
less."""


def open_pair(stack: ExitStack, sndbuf: int = 0) -> tuple[socket.socket, socket.socket]:
    """Returns a connected pair of stream sockets. sndbuf: the size of the send buffer, or 0 for the
    system's default."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.enter_context(left)
    stack.enter_context(right)
    if sndbuf:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    return left, right


def count_capacity(left: socket.socket, right: socket.socket, size: int, enough: int) -> int:
    """Returns how many messages of this size the pair holds before the sender would wait."""
    payload = bytes(size)
    held = sent = 0
    left.setblocking(False)
    try:
        while held < enough:
            sent = left.send(payload)
            if sent < size:
                break
            held += 1
            sent = 0
    except BlockingIOError:
        sent = 0
    left.setblocking(True)
    rest = held * size + sent
    while rest:
        rest -= len(right.recv(rest))
    return held


def require_capacity(left: socket.socket, right: socket.socket, size: int, messages: int) -> None:
    """SkipCase: one process cannot send the whole batch before it receives."""
    if count_capacity(left, right, size, messages) < messages:
        raise SkipCase(
            f"a socket buffer holds fewer than {messages} messages of {size} bytes "
            "(sysctl net.core.wmem_max)"
        )


def open_files(stack: ExitStack, count: int) -> list[int]:
    """Opens so many different files, and returns their descriptors."""
    return [stack.enter_context(tempfile.TemporaryFile()).fileno() for _ in range(count)]


@contextmanager
def busy_thread() -> Iterator[None]:
    """Runs a thread in the block that executes Python code all the time."""
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
