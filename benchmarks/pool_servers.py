"""The servers that the pool's benchmarks compare, each in processes of its own."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fdpass_c.batches import Batch, Progress
from fdpass_c.descriptors import Descriptors
from fdpass_c.errors import PeerClosedError
from fdpass_c.pool import Pool, accepting, dispatch, worker, worker_process

WORKERS = 4
LONG = 0.05

_LONG_REQUEST = b"GET /long"


def handle(sock: socket.socket, _address: object) -> None:
    """Answers one HTTP request with this worker's pid, a long one after 50 ms."""
    request = sock.recv(4096)
    if request.startswith(_LONG_REQUEST):
        time.sleep(LONG)
    if request:
        sock.sendall(_answer())


async def handle_async(sock: socket.socket, _address: object) -> None:
    """The same in an event loop."""
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
    """serve(listener) in a child until the block ends; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            serve(listener)
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


# -- the pool, and the same pool on pure-socket calls ----------------------------------------------


def serve_pool(handler: Any, capacity: int) -> Callable[[socket.socket], object]:
    return lambda listener: Pool(handler, WORKERS, capacity).serve(listener)


class _PureChannel:
    """As much of a Channel as the pool uses: one system call a message, in each direction."""

    pending = unsent = 0

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self.setblocking = sock.setblocking
        self.closed = False

    def send(self, payload: bytes, fds: Sequence[int]) -> None:
        socket.send_fds(self._sock, [payload], fds)

    def send_many(self, payloads: Sequence[bytes], fds: Sequence[int]) -> None:
        sent = 0
        try:
            for payload, fd in zip(payloads, fds, strict=True):
                socket.send_fds(self._sock, [payload], [fd])
                sent += 1
        except OSError as error:
            error.progress = Progress(sent, 0)  # type: ignore[attr-defined]
            raise

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

    def __enter__(self) -> "_PureChannel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _PureAcceptor(accepting.Acceptor):
    """Accepts with socket.accept, as a program on the standard library does."""

    def __init__(self, sock: socket.socket, acceptors: Any) -> None:
        super().__init__(sock, acceptors)

        def accept() -> tuple[int, Any]:
            accepted, address = sock.accept()
            return accepted.detach(), address

        self._accept = accept


def _close_each(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def serve_pure(handler: Any, capacity: int) -> Callable[[socket.socket], object]:
    """The same pool, loop for loop, in whose process the calls are replaced."""

    def serve(listener: socket.socket) -> None:
        replaced: list[tuple[Any, str, Any]] = [
            (worker_process, "Channel", _PureChannel),
            (worker, "Channel", _PureChannel),
            (accepting, "Acceptor", _PureAcceptor),
            (dispatch, "close_fds", _close_each),
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
    """Workers that all block in accept() on one socket."""
    _fork_workers(lambda: _accept_for_ever(listener))


def serve_reuseport(listener: socket.socket) -> None:
    """Workers with a listening socket each, among which the kernel deals connections out."""
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
    """Event loops that all watch one listening socket."""
    listener.setblocking(False)

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(4096):
            writer.write(_answer())
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(serve_one, sock=listener, backlog=1024)
        await server.serve_forever()

    _fork_workers(lambda: asyncio.run(serve()))
