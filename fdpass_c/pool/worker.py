"""What a worker process does: receive connections, handle them, report."""

import asyncio
import contextlib
import marshal
import signal
import socket
from typing import Any

from fdpass_c.channel import Channel
from fdpass_c.errors import PeerClosedError
from fdpass_c.pool.bell import Bell
from fdpass_c.pool.handlers import Handler, call, is_coroutine_function
from fdpass_c.pool.log import logger
from fdpass_c.pool.signals import MASTERS_SIGNALS
from fdpass_c.pool.tally import Tally

dump_address = marshal.dumps
"""The payload of a connection. The worker was forked, so that both run the same Python."""

_GONE = (PeerClosedError, ConnectionResetError)
"""The master has closed its side, or died; ConnectionResetError with something
unread."""

_SOON = 0.005


def run_worker(channel: Channel, tally: Tally, bell: Bell, handler: Handler, capacity: int) -> None:
    """Serves until the master shuts its side of the channel, and what was given is finished."""
    tally.start()
    bell.ring()
    if is_coroutine_function(handler):
        asyncio.run(_EventLoopWorker(channel, tally, bell, handler, capacity).run())
    else:
        _serve(channel, tally, bell, handler, capacity)


def leave_signals_to_master() -> None:
    """A terminal and a service manager signal the whole group; the master says what it means.

    A handler that does nothing, because an ignored signal would stay ignored in what the worker
    executes.
    """
    signal.set_wakeup_fd(-1)
    for signum in MASTERS_SIGNALS:
        signal.signal(signum, lambda _signum, _frame: None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _serve(channel: Channel, tally: Tally, bell: Bell, handler: Handler, capacity: int) -> None:
    """One connection after the other. A queue rings when it is empty, and for every quarter of it
    that is finished."""
    many = max(1, capacity // 4)
    told = 0
    while True:
        news = tally.handled - told
        if bell.wanted and (news >= many or (news and not channel.pending)):
            told = tally.handled
            bell.ring()
        try:
            payload, fds = channel.recv()
        except _GONE:
            return
        tally.begin(1)
        with fds, fds.as_socket() as sock:
            # The BSDs hand the listener's non-blocking mode on.
            sock.setblocking(True)
            address = marshal.loads(payload)
            try:
                call(handler, sock, address)
            except Exception:
                tally.fail()
                logger.exception("the handler failed on the connection of %r", address)
            _hang_up(sock)
        tally.finish()


def _hang_up(sock: socket.socket) -> None:
    """Lets the peer see the end now, not when the master closes its copy; as socketserver does."""
    with contextlib.suppress(OSError):  # The handler closed or detached it, or the peer has gone.
        sock.shutdown(socket.SHUT_WR)


class _EventLoopWorker:
    """As many connections at once as the master gives."""

    def __init__(
        self, channel: Channel, tally: Tally, bell: Bell, handler: Handler, capacity: int
    ) -> None:
        self._channel = channel
        self._tally = tally
        self._bell = bell
        self._handler = handler
        self._many = max(1, capacity // 4)
        self._told = 0
        self._ring_later: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = asyncio.Event()
        self._loop.add_reader(self._channel.fileno(), self._receive)
        await self._left.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _receive(self) -> None:
        """Everything that is there; the tasks start after it."""
        while True:
            try:
                batch = self._channel.recv_many()
            except _GONE:
                self._loop.remove_reader(self._channel.fileno())
                self._left.set()
                return
            self._tally.begin(len(batch))
            with batch:
                for position, payload in enumerate(batch.payloads):
                    self._start(batch.fds.as_socket(position), marshal.loads(payload))
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
            self._tally.fail()
            logger.exception("the handler failed on the connection of %r", address)
        finally:
            self._finish()

    def _finish(self) -> None:
        """Rings now where there is nothing else in hand or much is finished, else soon: under a
        flood one ring is for many."""
        tally = self._tally
        tally.finish()
        if not self._bell.wanted:
            return
        if tally.handled == tally.begun or tally.handled - self._told >= self._many:
            self._ring()
        elif self._ring_later is None:
            self._ring_later = self._loop.call_later(_SOON, self._ring)

    def _ring(self) -> None:
        if self._ring_later is not None:
            self._ring_later.cancel()
            self._ring_later = None
        self._told = self._tally.handled
        self._bell.ring()
