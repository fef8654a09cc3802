"""What a worker process does: receive connections, handle them, report."""

import asyncio
import contextlib
import inspect
import logging
import marshal
import signal
import socket
import struct
from collections.abc import Callable
from typing import Any

from fdpass_c.channel import Channel
from fdpass_c.errors import PeerClosedError

Handler = Callable[[socket.socket, Any], Any]
"""A plain function or a coroutine function of a connected socket and the peer's address."""

logger = logging.getLogger("fdpass_c.pool")

REPORT = struct.Struct("=QQ")
"""What a worker sends, bare, over its side of the channel's socket: how many connections it has
begun and how many it has finished since it started. A report makes all before it worthless."""

dump_address = marshal.dumps
"""The payload of a connection. The worker was forked, so that both run the same Python."""

_GONE = (PeerClosedError, ConnectionResetError)
"""The master has closed its side, or died; ConnectionResetError where reports were unread."""

_MASTERS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def run_worker(sock: socket.socket, handler: Handler) -> None:
    """Serves until the master shuts its side of sock down, and what was given is finished.

    sock is open when it returns: the master takes its closing for the end of the process.
    """
    channel = Channel(sock.dup())
    with channel:
        if _is_coroutine_function(handler):
            asyncio.run(_EventLoopWorker(channel, sock, handler).run())
        else:
            _serve(channel, sock, handler)


def _is_coroutine_function(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(handler.__call__)


def leave_signals_to_master() -> None:
    """A terminal and a service manager signal the whole group; the master says what it means.

    A handler that does nothing, because an ignored signal would stay ignored in what the worker
    executes.
    """
    signal.set_wakeup_fd(-1)
    for signum in _MASTERS_SIGNALS:
        signal.signal(signum, lambda _signum, _frame: None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _report(sock: socket.socket, begun: int, handled: int) -> None:
    # Without a master there is nobody to tell, and what it gave is still to be handled.
    with contextlib.suppress(BrokenPipeError):
        sock.send(REPORT.pack(begun, handled))


def _serve(channel: Channel, reports: socket.socket, handler: Handler) -> None:
    """One connection after the other. Begun says so at once: the master holds a copy till then."""
    begun = handled = 0
    while True:
        if not channel.pending:
            _report(reports, begun, handled)
        try:
            payload, fds = channel.recv()
        except _GONE:
            return
        begun += 1
        _report(reports, begun, handled)
        with fds, fds.as_socket() as sock:
            # The BSDs hand the listener's non-blocking mode on.
            sock.setblocking(True)
            address = marshal.loads(payload)
            try:
                handler(sock, address)
            except Exception:
                logger.exception("the handler failed on the connection of %r", address)
            _hang_up(sock)
        handled += 1


def _hang_up(sock: socket.socket) -> None:
    """Lets the peer see the end now, not when the master closes its copy; as socketserver does."""
    with contextlib.suppress(OSError):  # The handler closed or detached it, or the peer has gone.
        sock.shutdown(socket.SHUT_WR)


class _EventLoopWorker:
    """As many connections at once as the master gives."""

    def __init__(self, channel: Channel, reports: socket.socket, handler: Handler) -> None:
        self._channel = channel
        self._reports = reports
        self._handler = handler
        self._begun = 0
        self._handled = 0
        self._report_due = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()
        self._report()
        self._loop.add_reader(self._channel.fileno(), self._receive)
        await self._left.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _receive(self) -> None:
        """Everything that is there, with one report a batch; the tasks start after it."""
        while True:
            try:
                batch = self._channel.recv_many()
            except _GONE:
                self._loop.remove_reader(self._channel.fileno())
                self._left.set()
                return
            with batch:
                for position, payload in enumerate(batch.payloads):
                    self._start(batch.fds.as_socket(position), marshal.loads(payload))
            self._begun += len(batch)
            self._report()
            if not self._channel.pending:
                return

    def _start(self, sock: socket.socket, address: Any) -> None:
        sock.setblocking(False)
        task = self._loop.create_task(self._handle(sock, address))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, sock: socket.socket, address: Any) -> None:
        try:
            with sock:
                try:
                    await self._handler(sock, address)
                finally:
                    _hang_up(sock)
        except Exception:
            logger.exception("the handler failed on the connection of %r", address)
        finally:
            self._handled += 1
            if not self._report_due:
                self._report_due = True
                self._loop.call_soon(self._report)

    def _report(self) -> None:
        self._report_due = False
        _report(self._reports, self._begun, self._handled)
