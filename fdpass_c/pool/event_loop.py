"""A worker that runs coroutines, for many connections at once."""

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fdpass_c import aio
from fdpass_c.channel import Channel
from fdpass_c.errors import DescriptorTableFullError
from fdpass_c.pool.config import Config
from fdpass_c.pool.connected import (
    MASTER_GONE,
    ConnectedSocket,
    Kind,
    end_sending,
    find_unread,
    read_out_async,
    take_connection,
)
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.ending import end_forked
from fdpass_c.pool.handlers import (
    ENDS_WORKER,
    is_coroutine_function,
    note_closed,
    note_failure,
)
from fdpass_c.pool.leaving import become_ready, begin_no_more, make_event
from fdpass_c.pool.log import logger
from fdpass_c.pool.wakeup import Wakeup

_WAKE_DELAY = 0.005
"""Seconds after which the master learns of a finished connection at the latest."""

_NONBLOCK = getattr(socket, "SOCK_NONBLOCK", 0)

_HEARTBEAT_INTERVAL = 1.0
"""Seconds between two heartbeats, unless the master checks for progress more often."""

_RETRY_DELAY = 0.1
"""Seconds until the next try to receive when the descriptor table is full."""

_MAX_REFUSALS = 10
"""How many tries in a row may find the table full if this worker has no connection that could end
and make room."""

_NO_ROOM = "no room for %d more descriptors (RLIMIT_NOFILE); trying again every %s s"


class EventLoopWorker:
    """Runs a task for each connection, until its handler has returned and its socket is closed."""

    def __init__(
        self,
        channel: Channel,
        counters: Counters,
        wakeup: Wakeup,
        config: Config,
        kinds: Sequence[Kind],
    ) -> None:
        """kinds: the Kind of each listener's connections."""
        self._channel = channel
        self._counters = counters
        self._wakeup = wakeup
        self._config = config
        # The sockets are non-blocking already. With this flag Python's objects know it.
        self._kinds = [kind._replace(type=kind.type | _NONBLOCK) for kind in kinds]
        self._report_every = max(1, config.capacity // 4)
        self._heartbeat_interval = min(_HEARTBEAT_INTERVAL, config.check_interval)
        self._reported = 0
        self._wake_timer: asyncio.TimerHandle | None = None
        self._heartbeat_timer: asyncio.TimerHandle | None = None
        self._is_full = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._leaving = make_event()
        # If SystemExit ends the loop, asyncio.run cancels the task that awaits this future, and so
        # the future. Every other task then finds it done when its own cancellation arrives.
        self._end: asyncio.Future[None] = self._loop.create_future()
        for name in ("create_connection", "create_unix_connection", "connect_accepted_socket"):
            setattr(self._loop, name, _note_adoption(getattr(self._loop, name)))
        await _await_coroutine(self._config.setup)
        end_forked()
        become_ready(self._counters, self._wakeup)
        # The attribute also keeps the task alive: a loop does not.
        self._receiving = self._loop.create_task(self._receive(aio.Channel.adopt(self._channel)))
        self._receiving.add_done_callback(self._end_if_failed)
        try:
            await self._end
        finally:
            self._leaving.set()
            begin_no_more(self._counters, self._wakeup)
            await _await_coroutine(self._config.teardown)

    async def _receive(self, channel: aio.Channel) -> None:
        """Receives connections, and starts a task for each."""
        refused = 0
        while True:
            try:
                batch = await channel.recv_many()
            except MASTER_GONE:
                break
            except DescriptorTableFullError as error:
                # Connections that end make room: this gives up only if there are none.
                refused = 1 if self._tasks else refused + 1
                if refused > _MAX_REFUSALS:
                    raise
                if not self._is_full:
                    self._is_full = True
                    logger.warning(_NO_ROOM, error.needed, _RETRY_DELAY)
                await asyncio.sleep(_RETRY_DELAY)
                continue
            refused = 0
            self._is_full = False
            first = self._counters.begun + 1
            self._counters.begin(len(batch))
            with batch:
                for position, payload in enumerate(batch.payloads):
                    sock, address = take_connection(batch.fds, position, payload, self._kinds)
                    self._start(sock, first + position, address)
        self._leaving.set()
        self._end_if_done()

    def _end_if_failed(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) and not self._end.done():
            self._end.set_exception(error)
            # At once: connections that are still in the channel go to other workers.
            self._receiving.cancel()

    def _start(self, sock: ConnectedSocket, number: int, address: Any) -> None:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        sock.on_close = partial(self._wakeup.wake_for_copy, self._counters, number)
        task = self._loop.create_task(self._handle(sock, address))
        self._tasks.add(task)
        task.add_done_callback(self._discard)
        if self._heartbeat_timer is None:
            self._heartbeat()

    def _discard(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._end_if_failed(task)  # The task fails if the handler's exception cannot be logged.
        self._end_if_done()

    def _heartbeat(self) -> None:
        """Shows progress while there are connections, even if all of them are idle."""
        self._counters.heartbeat()
        self._counters.note_cpu_time()
        self._heartbeat_timer = None
        if self._tasks:
            self._heartbeat_timer = self._loop.call_later(self._heartbeat_interval, self._heartbeat)

    def _end_if_done(self) -> None:
        if self._leaving.is_set() and not self._tasks and not self._end.done():
            self._end.set_result(None)

    async def _handle(self, sock: ConnectedSocket, address: Any) -> None:
        """Runs the handler, closes the connection, and counts it as handled.

        It is not counted if SystemExit, or an error of receiving, ends the worker before.
        """
        try:
            await self._config.handler(sock, address)
            end_forked()
        except BaseException as error:
            end_forked(error)
            if self._end.done() or isinstance(error, ENDS_WORKER):
                raise
            note_failure(error, self._counters, address)
            if sock.transport is not None:
                sock.transport.close()
        try:
            await self._end_connection(sock)
        except asyncio.CancelledError:
            # The program set a deadline for the handler's task, which came after the handler had
            # returned.
            if self._end.done():
                raise
            if sock.transport is not None:
                sock.transport.abort()
        except OSError as error:
            note_closed(error, address)
        self._finish()

    async def _end_connection(self, sock: ConnectedSocket) -> None:
        """Closes the connection, or waits until its transport has closed it. OSError: closing
        failed."""
        if sock.adopted:
            await self._wait_until_closed(sock)
        else:
            sock.on_close = None
            with sock:
                end_sending(sock)
                self._stop_watching(sock.fileno())
                if find_unread(sock) > 0:
                    await read_out_async(sock)

    def _stop_watching(self, fd: int) -> None:
        """Makes asyncio's loop forget a descriptor before it is closed.

        The handler may have left a reader or writer registered. Then asyncio would report no event
        of the next socket that gets this number. Other loops prevent that themselves.
        """
        if fd >= 0 and isinstance(self._loop, asyncio.SelectorEventLoop):
            try:
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
            except RuntimeError:
                pass  # A transport uses this number.

    async def _wait_until_closed(self, sock: ConnectedSocket) -> None:
        """Waits until the transport has closed the socket: it may still have bytes to send."""
        if sock.fileno() < 0:
            return
        closed = self._loop.create_future()
        wake = sock.on_close

        def note_closed() -> None:
            if wake is not None:
                wake()
            if threading.get_ident() == self._thread:
                _resolve(closed)
            else:  # The garbage collector closes a dropped transport, in any thread.
                self._loop.call_soon_threadsafe(_resolve, closed)

        sock.on_close = note_closed
        await closed

    def _finish(self) -> None:
        """Counts the connection, and wakes the master if the master wants to be woken.

        It does so at once if no connection is left or many are finished, and otherwise a little
        later. So under heavy load one wakeup reports many connections.
        """
        counters = self._counters
        counters.finish()
        if not self._wakeup.wanted:
            return
        if (
            counters.handled == counters.begun
            or counters.handled - self._reported >= self._report_every
        ):
            self._wake_master()
        elif self._wake_timer is None:
            self._wake_timer = self._loop.call_later(_WAKE_DELAY, self._wake_master)

    def _wake_master(self) -> None:
        if self._wake_timer is not None:
            self._wake_timer.cancel()
            self._wake_timer = None
        self._reported = self._counters.handled
        self._wakeup.wake_for_counters()


async def _await_coroutine(function: Callable[[], Any] | None) -> None:
    """Calls and awaits a coroutine function. A plain function is called outside of the loop."""
    if function is not None and is_coroutine_function(function):
        await function()


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _note_adoption(make_transport: Any) -> Any:
    """Wraps a method of the loop that makes a transport, so that a ConnectedSocket which is passed
    to it is marked as adopted.

    The worker must know the transport's sockets, because a loop does not report whether a closing
    transport still has bytes to send. The mark is set when the protocol is made: a call that fails
    before that has not taken the socket.
    """

    async def call(factory: Callable[[], Any], *args: Any, **options: Any) -> Any:
        given = [*args, options.get("sock")]
        socks = [sock for sock in given if isinstance(sock, ConnectedSocket)]

        def make_protocol() -> Any:
            protocol = factory()
            for sock in socks:
                sock.adopted = True
            return protocol

        transport, protocol = await make_transport(make_protocol, *args, **options)
        for sock in socks:
            sock.transport = transport
        return transport, protocol

    return call
