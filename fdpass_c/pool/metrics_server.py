"""Answers HTTP requests for the status and the metrics, in the master's loop."""

import errno
import os
import re
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from fdpass_c._native import lib
from fdpass_c.pool.listeners import Mode, describe_listener
from fdpass_c.pool.log import logger
from fdpass_c.pool.metrics import PROMETHEUS_TYPE, to_json, to_prometheus
from fdpass_c.pool.status import Status

Report = Callable[[], Status]

_MAX_CLIENTS = 8
"""The most clients at the same time. Others wait in the kernel."""

_CLIENT_TIMEOUT = 2.0
"""Seconds after which a client's connection is closed, whether or not it has got its answer."""

_RETRY_DELAY = 5.0
"""Seconds until the next try to accept, after an error such as a full descriptor table."""

_MAX_HEAD = 16384

# A line may end in "\n" alone (RFC 9112, 2.2), as people type it.
_END_OF_HEAD = re.compile(rb"\n\r?\n")

# Turns SO_LINGER off, which accepted sockets inherit: closing one must not wait for its client.
_NO_LINGER = struct.pack("ii", 0, 0)

# Python ignores SIGPIPE, but the program may have changed that. macOS has no such flag.
_NO_SIGPIPE: int = getattr(socket, "MSG_NOSIGNAL", 0)


class _Client(NamedTuple):
    """steps: the rest of the exchange as an iterator. Each step yields the event to wait for."""

    sock: socket.socket
    steps: Iterator[int]
    deadline: float


class MetricsServer:
    """Answers GET /metrics and GET /status, one request on each connection.

    due_at: when check is to be called, as time.monotonic.
    """

    def __init__(
        self, listener: socket.socket, selector: selectors.BaseSelector, report: Report
    ) -> None:
        """Borrows the arguments. The listener is non-blocking until close()."""
        self._listener = listener
        self._selector = selector
        self._report = report
        self._clients: list[_Client] = []
        self._listens = False
        self._failed = False
        self._retry_at = 0.0
        self.due_at: float = float("inf")
        self._mode = Mode(listener)
        logger.info("metrics at %s", describe_listener(self._listener))
        self.check()

    def check(self) -> None:
        """Closes the connections of clients that took too long. Watches the listener if there is
        room for another client."""
        now = time.monotonic()
        for client in [*self._clients]:
            if now >= client.deadline:
                self._end(client)
        listens = len(self._clients) < _MAX_CLIENTS and now >= self._retry_at
        listens = listens and self._listener.fileno() >= 0  # Other code may have closed it.
        if listens and not self._listens:
            try:
                self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
            except OSError as error:  # The selector has no room.
                self._pause(error)
                listens = False
        elif self._listens and not listens:
            self._stop_listening()
        self._listens = listens
        moments = [client.deadline for client in self._clients]
        if now < self._retry_at:
            moments.append(self._retry_at)
        self.due_at = min(moments, default=float("inf"))

    def _stop_listening(self) -> None:
        # If other code has closed the listener, its number may belong to a worker's channel now.
        with suppress(KeyError, ValueError):
            self._selector.unregister(self._listener)

    def _accept(self, _events: int) -> None:
        self.due_at = 0.0
        try:
            # Another process that shares the socket may have made it blocking.
            self._listener.setblocking(False)
            sock, _ = self._listener.accept()
        except BlockingIOError:
            if self._is_shut_down():
                self._pause(OSError(errno.EINVAL, os.strerror(errno.EINVAL)))
            return
        except OSError as error:
            # ECONNABORTED usually means that one client has gone. If it comes twice, it may last.
            if self._failed or not isinstance(error, ConnectionAbortedError):
                self._pause(error)
            self._failed = True
            return
        self._failed = False
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        client = _Client(
            sock, _serve_client(sock, self._report), time.monotonic() + _CLIENT_TIMEOUT
        )
        try:
            self._selector.register(sock, next(client.steps), partial(self._step, client))
        except OSError as error:
            sock.close()
            self._pause(error)
            return
        self._clients.append(client)

    def _pause(self, error: OSError) -> None:
        logger.warning("cannot accept a client of the metrics: %s", error.strerror)
        lasts = self._is_shut_down()
        self._retry_at = float("inf") if lasts else time.monotonic() + _RETRY_DELAY

    def _is_shut_down(self) -> bool:
        """Whether other code has shut the listener down, or closed it."""
        return bool(lib.fdp_try_find_shut_down(self._listener.fileno()))

    def _step(self, client: _Client, _events: int) -> None:
        with suppress(OSError, StopIteration):  # The client has gone, or the exchange is over.
            events = next(client.steps)
            self._selector.modify(client.sock, events, self._selector.get_key(client.sock).data)
            return
        self._end(client)
        self.due_at = 0.0

    def _end(self, client: _Client) -> None:
        self._clients.remove(client)
        self._selector.unregister(client.sock)
        client.sock.close()

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        self._listener.close()
        for client in self._clients:
            client.sock.close()

    def close(self) -> None:
        """Closes all connections and restores the listener's mode."""
        for client in [*self._clients]:
            self._end(client)
        if self._listens:
            self._stop_listening()
        self._mode.restore()


def _serve_client(sock: socket.socket, report: Report) -> Iterator[int]:
    """Reads one request and answers it. Yields each event to wait for. OSError: the client has
    gone."""
    head = b""
    while not _END_OF_HEAD.search(head):
        yield selectors.EVENT_READ
        data = sock.recv(4096)
        head += data
        if not data or len(head) > _MAX_HEAD:
            return
    answer = _answer(head.decode("latin-1"), report)
    while answer:
        yield selectors.EVENT_WRITE
        answer = answer[sock.send(answer, _NO_SIGPIPE) :]
    # Reading to the end comes before closing: if the client has sent more than a request's head,
    # closing would reset the connection, and the client could lose the answer.
    sock.shutdown(socket.SHUT_WR)
    while True:
        yield selectors.EVENT_READ
        if not sock.recv(4096):
            return


def _answer(head: str, report: Report) -> bytes:
    words = head.partition("\n")[0].removesuffix("\r").split(" ")
    method, target = words[0], words[1].partition("?")[0] if len(words) > 1 else ""
    # A server must accept a target in the form for proxies too (RFC 9112, 3.2.2).
    target = re.sub(r"^http://[^/]+", "", target, flags=re.I)
    status, kind, body = "200 OK", "text/plain; charset=utf-8", ""
    if method not in ("GET", "HEAD"):
        status, body = "405 Method Not Allowed", "GET only\n"
    elif target == "/metrics":
        kind, body = PROMETHEUS_TYPE, to_prometheus(report())
    elif target == "/status":
        kind, body = "application/json", to_json(report())
    else:
        status, body = "404 Not Found", "/metrics for Prometheus, /status as JSON\n"
    length = len(body)  # In characters, which are bytes: the body is ASCII.
    if method == "HEAD":
        body = ""
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        f"Allow: GET, HEAD\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
    ).encode()
