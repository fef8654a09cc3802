"""Pool: what a program sees of it."""

import asyncio
import selectors
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack

from fdpass_c.errors import FdpassError
from fdpass_c.pool.accepting import Acceptors
from fdpass_c.pool.config import Config
from fdpass_c.pool.handlers import Handler
from fdpass_c.pool.listeners import Address, check_listener, opened
from fdpass_c.pool.master import Helper, Master, Ready
from fdpass_c.pool.metrics_server import MetricsServer
from fdpass_c.pool.service_manager import ServiceManager
from fdpass_c.pool.signals import Signals
from fdpass_c.pool.status import Status


class PoolError(FdpassError):
    """Workers die at start again and again, or no listener accepts any longer.

    Workers that ran have finished what they had.
    """


class Pool:
    """Workers, each a forked process, that get connections while they are free.

    handler(sock, address) runs in a worker. sock: a connected socket.socket, blocking, closed
    when the handler returns or raises; detach() it to keep the descriptor. address: the peer's,
    as from socket.accept. A coroutine function gets a non-blocking socket, and runs in an event
    loop beside others of the same worker. An exception is logged, and the worker goes on.

    A connection is begun when a worker has taken it from its queue. One that is given to a worker
    but not begun when that dies goes to another worker; one that is begun is lost with it.
    """

    def __init__(
        self,
        handler: Handler,
        workers: int,
        capacity: int = 1,
        *,
        max_requests: int | None = None,
        drain: float = 30.0,
        start_timeout: float = 60.0,
        timeout: float | None = None,
        setup: Callable[[], object] | None = None,
        teardown: Callable[[], object] | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        """workers: how many processes. capacity: how many connections a worker has in hand at most.

        With a plain function a capacity over 1 is a queue in the worker: fewer system calls a
        connection, but a short one waits behind a long one. max_requests: a worker is replaced
        after so many connections; None for never. Its successor starts after three quarters of
        them to all, at random, one at a time; until that is ready the worker serves on.

        drain: seconds that a worker has to finish when it is to stop or to be replaced; then it is
        killed. start_timeout: seconds that a worker has to start; one that hangs in setup is
        killed then, and counts as one that died at start.

        timeout: seconds that a worker may have connections in hand and neither begin nor finish
        one, nor call note_progress(), nor, with coroutines, take another turn of its event loop;
        None for any time. Then it is replaced: it gets SIGABRT, upon which it writes the tracebacks
        of its threads to standard error, and is killed where that does not end it. The master
        looks four times in that time.

        setup: called in each worker before its first connection; one that raises is a worker that
        died at start. teardown: called in each worker at its end, when it has finished what it was
        given and its threads that are no daemons have ended, and when a handler calls sys.exit;
        not in one that is killed. Where the handler is a coroutine function they may be such too:
        then they run in the worker's event loop, the teardown before the threads have ended. What
        atexit holds does not run in a worker: it would be the master's.

        loop_factory: makes the event loop of a worker, uvloop.new_event_loop for one; None for what
        asyncio.run makes.

        ValueError: workers, capacity or max_requests below 1, a negative drain or start_timeout,
        a timeout that is not positive, a coroutine function for setup or
        teardown, or a loop_factory, where the handler is none.
        """
        self._config = Config(
            handler,
            workers,
            capacity,
            max_requests,
            drain,
            start_timeout,
            float("inf") if timeout is None else timeout,
            setup,
            teardown,
            loop_factory,
        )
        self._config.check()
        self._signals = Signals()
        self._master: Master | None = None

    def serve(
        self,
        *listeners: socket.socket | Address,
        metrics: socket.socket | Address | None = None,
        ready: Ready | None = None,
    ) -> None:
        """Accepts and passes on until SIGTERM, SIGINT or stop(); then drains and returns.

        listeners: at least one. A socket.socket that listens is borrowed, and non-blocking while
        the pool serves; an Address is opened, and closed at the end. ready: called once, when
        every worker has started, with the addresses of the listeners in their order, each as from
        socket.getsockname: it has the number of a port that was asked for as 0.

        metrics: one more listener, at which the master answers GET /metrics with what Prometheus
        reads, and GET /status with status() as JSON, to whoever can connect.

        A service manager that NOTIFY_SOCKET names is told when the pool is ready, reloads and
        stops, and WATCHDOG_USEC is kept (man 3 sd_notify).

        Call it in the main thread. It handles signals and puts the handlers back when it returns:
        SIGTERM and SIGINT stop accepting and let workers finish, a second one kills them; SIGHUP
        is reload(), SIGTTIN add_worker() and SIGTTOU remove_worker(); SIGUSR1 logs the status
        table. A stop() that came before is obeyed at once.

        PoolError: workers die at start again and again, or somebody shut down the last listener.
        ValueError: no listener, one that does not listen or is given twice, an address of no known
        form, or another thread than the main one. OSError: as for socket.bind.
        """
        if not listeners:
            raise ValueError("a pool needs at least one listener")
        if isinstance(metrics, socket.socket) and metrics in listeners:
            raise ValueError("a listening socket is given twice")
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            acceptors = Acceptors(selector)
            stack.callback(acceptors.close)
            acceptors.open(listeners)
            wakeup = stack.enter_context(self._signals.handling())
            manager = ServiceManager()
            stack.callback(manager.close)
            helpers: list[Helper] = [manager]
            if metrics is not None:
                server = MetricsServer(_open(metrics, stack), selector, self.status)
                stack.callback(server.close)
                helpers.append(server)
            self._master = Master(
                self._config, self._signals, wakeup, acceptors, selector, manager, helpers, ready
            )
            failure = self._master.run()
        if failure:
            raise PoolError(failure)

    def stop(self) -> None:
        """Has serve() drain and return, as SIGTERM does. From any thread or signal handler."""
        self._signals.add(signal.SIGTERM)

    def reload(self) -> None:
        """Replaces the workers one by one while the pool serves on, as SIGHUP does.

        A worker's successor is ready before it stops taking connections. From any thread or
        signal handler.
        """
        self._signals.add(signal.SIGHUP)

    def add_worker(self) -> None:
        """One more, as SIGTTIN does. From any thread or signal handler."""
        self._signals.add(signal.SIGTTIN)

    def remove_worker(self) -> None:
        """One less, as SIGTTOU does, once it has finished what it has; the last one stays. From any
        thread or signal handler."""
        self._signals.add(signal.SIGTTOU)

    def status(self) -> Status:
        """What the pool is doing. From any thread of the master or a signal handler."""
        return self._master.status() if self._master else Status((), 0, 0, 0, 0)


def _open(listener: socket.socket | Address, stack: ExitStack) -> socket.socket:
    """Borrows a socket, or opens an address until the stack ends."""
    if not isinstance(listener, socket.socket):
        return stack.enter_context(opened(listener))
    check_listener(listener)
    return listener
