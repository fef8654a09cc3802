"""The servers that the benchmarks of the pool compare. Each runs in processes of its own."""

import asyncio
import marshal
import os
import selectors
import signal
import socket
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from fdpass_c._native import lib
from fdpass_c.descriptors import Descriptors
from fdpass_c.errors import PeerClosedError
from fdpass_c.outcomes import Batch
from fdpass_c.pool import Pool, connected, event_loop, master, worker, worker_process
from fdpass_c.pool.accepting import Acceptor
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.wakeup import Wakeup

WORKERS = 4
LONG = 0.05

_LONG_REQUEST = b"GET /long"

_SHORTEST_POLL, _LONGEST_POLL = 0.005, 1.0


def handle(sock: socket.socket, _address: object) -> None:
    """Answers one HTTP request with this worker's pid. A long request is answered after 50 ms."""
    request = sock.recv(4096)
    if request.startswith(_LONG_REQUEST):
        time.sleep(LONG)
    if request:
        sock.sendall(_answer())


async def handle_async(sock: socket.socket, _address: object) -> None:
    """Does what handle does, in an event loop."""
    loop = asyncio.get_running_loop()
    request = await loop.sock_recv(sock, 4096)
    if request.startswith(_LONG_REQUEST):
        await asyncio.sleep(LONG)
    if request:
        await loop.sock_sendall(sock, _answer())


def _answer() -> bytes:
    body = b"%d\n" % os.getpid()
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def listen(*, shared: bool = True) -> socket.socket:
    sock = socket.socket()
    if not shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(1024)
    return sock


@contextmanager
def running(serve: Callable[[socket.socket], object], listener: socket.socket) -> Iterator[int]:
    """Runs serve(listener) in a child until the block ends. Yields the child's pid."""
    pid = os.fork()
    if pid == 0:
        try:
            serve(listener)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


# -- the pool, and the same pool with calls of the socket module -----------------------------------


def serve_pool(handler: Any, capacity: int) -> Callable[[socket.socket], object]:
    return lambda listener: Pool(handler, WORKERS, capacity).serve(listener)


class _PureChannel:
    """The part of a Channel that the pool uses. Sending and receiving a message takes one system
    call each."""

    pending = unsent = 0

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._end = SimpleNamespace(has_kept=False, outbox=None)
        self.fileno = sock.fileno
        self.setblocking = sock.setblocking
        self.closed = False

    def send(self, payload: bytes, fds: Sequence[int]) -> None:
        socket.send_fds(self._sock, [payload], fds)

    def recv(self) -> tuple[bytes, Descriptors]:
        payload, fds, _, _ = socket.recv_fds(self._sock, 4096, 1)
        if not payload:
            raise PeerClosedError
        return payload, Descriptors(fds)

    def recv_many(self, *_: object) -> Batch:
        payload, fds = self.recv()
        return Batch([payload], fds)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self._sock.close()


class _PureConnections(deque[tuple[int, bytes]]):
    """A queue of connections, like a struct fdp_queue: descriptors and payloads."""

    def accept(self, listener: socket.socket, origin: int, nonblocking: bool, most: int) -> bool:
        """Accepts up to most connections. Returns whether more may be waiting."""
        for _ in range(most):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return False
            sock.setblocking(not nonblocking)
            self.append((sock.detach(), origin.to_bytes(2, "little") + marshal.dumps(address)))
        return True

    def close(self) -> None:
        while self:
            os.close(self.popleft()[0])


class _PureAccount:
    """Replaces pool.connections.Account."""

    def __init__(self, counters: Counters, channel: _PureChannel, most: float) -> None:
        self.counters = counters
        self.channel = channel
        self.copies = _PureConnections()
        self.given = self.taken = self.begun = self.handled = 0
        self.capacity = self.room = self.turn = 0
        self.most = most

    @property
    def is_open(self) -> bool:
        return self.capacity > 0

    @property
    def has_copies(self) -> bool:
        return bool(self.copies)

    @property
    def is_used_up(self) -> bool:
        return self.given >= self.most

    def set_capacity(self, capacity: int) -> None:
        self.capacity = capacity
        self.count_room()

    def count_room(self) -> None:
        self.room = max(0, self.capacity - self.given + self.handled)

    def read(self, done: _PureConnections) -> int:
        words = self.counters.words
        handled = (words[lib.FDP_WORD_HANDLED] - self.handled) & 0xFFFFFFFF
        begun = (words[lib.FDP_WORD_BEGUN] - self.begun) & 0xFFFFFFFF
        if handled or begun:
            self.handled += handled
            self.begun += begun
            words[lib.FDP_WORD_RELEASED] = self.begun & 0xFFFFFFFF
            for _ in range(begun):
                done.append(self.copies.popleft())
            self.count_room()
        return begun

    def close(self) -> None:
        self.copies.close()


class _PureRounds:
    """Replaces pool.rounds.Rounds, in Python, with one system call for each connection."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        wakeup: Wakeup,
        _offers: object,
        nonblocking: bool,
    ) -> None:
        self._queue = _PureConnections()
        self.found = SimpleNamespace(begun=0, has_errors=0, unsent=0, error=0, is_paused=False)
        self._done = _PureConnections()
        self._accounts: list[_PureAccount] = []
        self._turn = 0
        self._poll_interval = _SHORTEST_POLL
        self._nonblocking = nonblocking
        self._wakeup = wakeup
        self._ready: list[Acceptor] = []
        self._watched: dict[Acceptor, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(wakeup, selectors.EVENT_READ)
        self._selector.register(selector, selectors.EVENT_READ)  # type: ignore[arg-type]

    def listen(self, acceptors: Sequence[Acceptor]) -> None:
        known = {*self._ready, *self._watched}
        self._ready += [one for one in acceptors if one not in known]
        if not acceptors:
            self._ready.clear()
            for one in [*self._watched]:
                self._selector.unregister(self._watched.pop(one))

    def add(self, account: _PureAccount) -> None:
        self._accounts.append(account)

    def take_back(self, account: _PureAccount) -> int:
        self.found.begun += account.read(self._done)
        count = len(account.copies)
        self._queue.extendleft(reversed(account.copies))
        account.copies.clear()
        account.given -= count
        return count

    def remove(self, account: _PureAccount) -> int:
        count = self.take_back(account)
        self._accounts.remove(account)
        return count

    def run(self, seconds: float, is_paused: bool) -> None:
        found = self.found
        found.used_up = False
        found.is_paused = is_paused
        end = time.monotonic() + seconds
        while True:
            is_full = self._run_round()
            if is_full != self._wakeup.wanted:
                self._wakeup.shared[0] = is_full
                if is_full:
                    is_full = self._run_round()
            self._done.close()
            if found.used_up or not self._wait(end, is_full):
                return

    def _run_round(self) -> bool:
        """Runs one round. Returns whether there is no room for more connections."""
        found = self.found
        begun = found.begun
        room = 0
        for account in self._accounts:
            if account.given != account.handled:
                found.begun += account.read(self._done)
            room += account.room
        if found.begun > begun:
            found.is_paused = False
        if found.is_paused:
            return True
        if room > len(self._queue):
            for one in [*self._ready]:
                self._accept(one, room - len(self._queue))
        is_full = room <= len(self._queue)
        if self._queue and room:
            self._poll_interval = _SHORTEST_POLL
            self._deal()
        return is_full

    def _accept(self, acceptor: Acceptor, most: int) -> None:
        sock, number = acceptor.sock, acceptor.record.number
        if not self._queue.accept(sock, number, self._nonblocking, most):
            self._ready.remove(acceptor)
            self._watched[acceptor] = sock
            self._selector.register(sock, selectors.EVENT_READ, acceptor)

    def _deal(self) -> None:
        free = [account for account in self._accounts if account.room]
        while self._queue and free:
            account = min(free, key=_rank) if len(free) > 1 else free[0]
            try:
                account.channel.send(self._queue[0][1], [self._queue[0][0]])
            except OSError:
                account.room = 0
            else:
                account.copies.append(self._queue.popleft())
                account.given += 1
                account.room -= 1
                self._turn += 1
                account.turn = self._turn
            if not account.room:
                free.remove(account)
            if account.is_used_up:
                self.found.used_up = True

    def _wait(self, end: float, is_full: bool) -> bool:
        """Waits. Returns whether another round comes next."""
        left = end - time.monotonic()
        wait = 0.0 if self._ready and not is_full else left
        if is_full or any(account.copies for account in self._accounts):
            wait = min(wait, self._poll_interval)
            self._poll_interval = min(2 * self._poll_interval, _LONGEST_POLL)
        events = self._selector.select(max(0.0, min(wait, left)))
        for key, _ in events:
            if key.data is not None:
                self._selector.unregister(self._watched.pop(key.data))
                self._ready.append(key.data)
            elif key.fileobj is not self._wakeup or any(os.read(key.fd, 256)):
                return False
        return bool(events) or wait < left

    @property
    def begun(self) -> int:
        return int(self.found.begun)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def drop_waiting(self) -> None:
        self._queue.close()

    def close_done(self) -> None:
        self._done.close()

    def close_in_child(self) -> None:
        self._selector.close()
        self._done.close()
        self._queue.close()
        for account in self._accounts:
            account.close()


def _rank(account: _PureAccount) -> tuple[int, int]:
    return account.given - account.handled, account.turn


def _take_connection(
    fds: Descriptors, position: int, payload: bytes, _kinds: object
) -> tuple[socket.socket, Any]:
    """Replaces pool.connected.take_connection."""
    sock = connected.ConnectedSocket(fileno=fds.take(position))
    return sock, marshal.loads(payload[2:])


class _PureIntake:
    """Replaces pool.intake.Intake."""

    pending = 0

    def __init__(
        self, channel: _PureChannel, counters: Counters, _offers: object, kinds: object
    ) -> None:
        self._channel = channel
        self._counters = counters
        self._kinds = kinds

    def receive(self) -> None:
        self._payload, self._fds = self._channel.recv()
        self._counters.begin(1)

    def take_offer(self) -> bool:
        return True

    def take(self) -> tuple[socket.socket, Any]:
        with self._fds as fds:
            return _take_connection(fds, 0, self._payload, self._kinds)


def serve_pure(handler: Any, capacity: int) -> Callable[[socket.socket], object]:
    """Returns a server that is the same pool, but with the classes above in place of the pool's
    own."""

    def serve(listener: socket.socket) -> None:
        replaced: list[tuple[Any, str, Any]] = [
            (worker_process, "Channel", _PureChannel),
            (worker, "Channel", _PureChannel),
            (worker_process, "Account", _PureAccount),
            (master, "Rounds", _PureRounds),
            (worker, "Intake", _PureIntake),
            (event_loop, "take_connection", _take_connection),
        ]
        for module, name, value in replaced:
            setattr(module, name, value)
        Pool(handler, WORKERS, capacity).serve(listener)

    return serve


# -- servers without a master ----------------------------------------------------------------------


def _fork_workers(serve: Callable[[], object]) -> None:
    pids = []
    for _ in range(WORKERS):
        if (pid := os.fork()) == 0:
            try:
                serve()
            finally:
                os._exit(0)
        pids.append(pid)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda _signum, _frame: stopped.set())
    stopped.wait()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _accept_for_ever(listener: socket.socket) -> None:
    while True:
        sock, address = listener.accept()
        with sock:
            handle(sock, address)


def serve_shared_accept(listener: socket.socket) -> None:
    """Forks workers that all block in accept() on one socket."""
    _fork_workers(lambda: _accept_for_ever(listener))


def serve_reuseport(listener: socket.socket) -> None:
    """Forks workers with one listening socket each. The kernel distributes the connections."""
    address = listener.getsockname()

    def serve() -> None:
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            own.bind(address)
            own.listen(1024)
            listener.close()
            _accept_for_ever(own)

    _fork_workers(serve)


def serve_shared_accept_async(listener: socket.socket) -> None:
    """Forks workers with event loops that all watch one listening socket."""
    listener.setblocking(False)

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4096):
            writer.write(_answer())
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(serve_one, sock=listener, backlog=1024)
        await server.serve_forever()

    _fork_workers(lambda: asyncio.run(serve()))
