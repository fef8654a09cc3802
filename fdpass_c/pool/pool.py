"""Pool, the class that a program uses."""

import asyncio
import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing

from fdpass_c.aio.loops import in_trio
from fdpass_c.errors import FdpassError
from fdpass_c.pool.accepting import Acceptors
from fdpass_c.pool.config import Config
from fdpass_c.pool.handlers import Handler
from fdpass_c.pool.listeners import Address, check_listener, opened, parse_address
from fdpass_c.pool.master import Helper, Master, Ready
from fdpass_c.pool.metrics_server import MetricsServer
from fdpass_c.pool.offers import Offers
from fdpass_c.pool.service_manager import ServiceManager
from fdpass_c.pool.signals import Signals
from fdpass_c.pool.status import Status


class PoolError(FdpassError):
    """A pool cannot serve any longer.

    There are two reasons, and the message says which. Five workers in a row could not be started,
    died at start, or died before they began a connection. Or no listener accepts connections any
    longer. Workers that were running have finished the connections that they were given.
    """


class Pool:
    """Accepts connections and passes each one to a worker process that is free.

    The process that calls serve() is the master. It accepts connections and forks the workers. A
    connection is begun when a worker has taken it from its queue. If a worker dies, the connections
    that it had not begun go to other workers, and those that it had begun are lost.

    The handler is called in a worker as handler(sock, address). address is the peer's address, as
    socket.accept returns it. sock is a connected socket.socket, which the pool closes when the
    handler returns or raises an exception. To keep the descriptor, call sock.detach(): then the
    handler owns it. After an exception the worker goes on. The exception is logged, and the
    connection counts as failed, unless the exception says that the client has gone or that TLS
    with the client failed.

    If the handler is a plain function, sock is blocking, and a worker handles one connection at a
    time. If it is a coroutine function, sock is non-blocking, and a worker runs an event loop that
    handles up to capacity connections at once.
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
        """Checks the arguments. serve() starts the workers.

        If the handler is a coroutine function, setup and teardown may be coroutine functions too.
        Then they run in the event loop of the worker. Such a teardown runs before the worker waits
        for its non-daemon threads.

        Args:
            handler: A plain function or a coroutine function of a socket and the peer's address.
            workers: The number of worker processes.
            capacity: The largest number of connections that a worker has been given and has not
                finished. For a coroutine function, give as many as one process can serve. With a
                plain function, more than 1 makes a queue in the worker: this needs fewer system
                calls per connection, but a short request can wait behind a long one.
                With 1, while all workers are busy, the master accepts one more connection per
                worker. The first worker that finishes takes the first of these.
            max_requests: A worker is replaced after about this number of connections: a random
                number from three quarters of it to all of it, so that not all workers are replaced
                at once. A worker serves until its successor is ready. None: never.
            drain: Seconds in which a worker that is stopped or replaced must finish. After that it
                is killed.
            start_timeout: Seconds in which a worker must start, setup included. After that it is
                killed, and counts as one that died at start.
            timeout: Seconds after which a worker that has connections and makes no progress is
                replaced. A plain worker makes progress when it begins or finishes a connection or
                calls note_progress(), and an event loop when it runs callbacks. The worker gets
                SIGABRT, at which it writes the tracebacks of its threads to standard error. One
                second later it is killed. The master checks four times in each timeout. None:
                never.
            setup: Called in each worker before its first connection. If it raises an exception, or
                is a plain function and returns a coroutine, the worker counts as one that died at
                start.
            teardown: Called in each worker that ends: after its last connection and after its
                non-daemon threads have ended, or when the handler calls sys.exit. It is not called
                if the worker is killed. What is registered with atexit does not run in workers,
                because it belongs to the master.
            loop_factory: Makes the event loop of each worker, for instance uvloop.new_event_loop.
                None: what asyncio.run makes.

        Raises:
            TypeError: The handler, setup, teardown or loop_factory is not callable, workers,
                capacity or max_requests is not an int, or a time is not a number.
            ValueError: workers, capacity or max_requests is less than 1. drain or start_timeout is
                negative. timeout is not positive. setup or teardown is a coroutine function, or
                loop_factory is given, and the handler is not a coroutine function.
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
        """Starts the workers and serves until SIGTERM, SIGINT or stop().

        Then it stops accepting, lets the workers finish, and returns. If stop() was called before
        serve(), it stops at once. Only the main thread may call serve(). It forks, so start other
        threads only in setup or in the handler.

        While it serves, it unblocks and handles the following signals. At its end it restores the
        mask and the previous handlers. SIGTERM and SIGINT call stop(). A second one kills the
        workers, unless it is the same signal within half a second. SIGHUP calls reload(), SIGTTIN
        add_worker() and SIGTTOU remove_worker(). SIGUSR1 logs the status as a table.

        If NOTIFY_SOCKET names a service manager, it is notified when the pool is ready, reloads and
        stops. If WATCHDOG_USEC is set, the service manager gets WATCHDOG=1 twice in that time (man
        3 sd_notify).

        Args:
            listeners: Listening sockets and addresses, at least one. The caller still owns a
                socket. The pool makes it non-blocking, and restores its mode at the end. In the
                workers it is closed. The pool opens a socket for each address, and closes it at the
                end.
            metrics: One more listening socket or address, where the master answers HTTP requests:
                GET /metrics in the format of Prometheus, GET /status with status() as JSON. Anyone
                who can connect gets an answer. The caller still owns a socket, as for listeners.
            ready: Called once, in the master, when every worker has started. Its argument is a
                tuple of the addresses of the listeners, each as from socket.getsockname. For a port
                that was given as 0, the address has the port that the system chose. An exception of
                this function ends serve(). A process that it forks has the listeners too, and keeps
                them open after serve(). A program that it executes does not have them.

        Raises:
            PoolError: Workers die at start again and again, or no listener accepts any longer.
            ValueError: There is no listener. A socket does not listen. A socket or address is given
                twice. An address has an unknown form. The caller is not the main thread.
            TypeError: An address has the wrong type, or ready is not callable.
            RuntimeError: A task of trio calls it, and the handler is a coroutine function. The
                forked workers would be inside of trio's loop too, and could not run their own.
            OSError: As for open_listener. EBADF: a socket is closed.
        """
        if ready is not None and not callable(ready):
            raise TypeError(f"ready is not callable: {ready!r}")
        if not listeners:
            raise ValueError(
                "a pool needs at least one listener; inherit_listeners() returns none unless "
                "LISTEN_PID is this process"
            )
        if isinstance(metrics, socket.socket) and metrics in listeners:
            raise ValueError("a listening socket is given twice")
        _check_addresses([*listeners, metrics])
        if self._config.runs_coroutines and in_trio():
            raise RuntimeError("serve() starts event loops in its workers: call it outside of trio")
        with ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            acceptors = Acceptors(self._config.runs_coroutines)
            stack.callback(acceptors.close)
            acceptors.open(listeners)
            wakeup = stack.enter_context(self._signals.handling())
            offers = stack.enter_context(closing(Offers())) if self._config.is_serial else None
            manager = ServiceManager()
            stack.callback(manager.close)
            helpers: list[Helper] = [manager]
            if metrics is not None:
                server = MetricsServer(_open(metrics, stack), selector, self.status)
                stack.callback(server.close)
                helpers.append(server)
            self._master = Master(
                self._config,
                self._signals,
                wakeup,
                acceptors,
                offers,
                selector,
                manager,
                helpers,
                ready,
            )
            failure = self._master.run()
        if failure:
            raise PoolError(failure)

    def stop(self) -> None:
        """Makes serve() stop accepting, let the workers finish, and return, as SIGTERM does.

        The second call kills the workers. stop(), reload(), add_worker() and remove_worker() may be
        called in any thread of the master and in a signal handler, and return immediately.
        """
        self._signals.add(signal.SIGTERM)

    def reload(self) -> None:
        """Replaces the workers one by one while the pool serves, as SIGHUP does.

        A worker takes connections until its successor is ready. The new workers run the code that
        the master has already imported.
        """
        self._signals.add(signal.SIGHUP)

    def add_worker(self) -> None:
        """Adds one worker, as SIGTTIN does."""
        self._signals.add(signal.SIGTTIN)

    def remove_worker(self) -> None:
        """Removes one worker, as SIGTTOU does.

        The worker first finishes the connections that it was given, within drain seconds. The last
        worker is never removed.
        """
        self._signals.add(signal.SIGTTOU)

    def status(self) -> Status:
        """Returns what the pool has done and is doing.

        It may be called in any thread of the master and in a signal handler.

        Returns:
            The status at this moment. Before serve() it is empty. After serve() it has the last
                counts.
        """
        return self._master.status() if self._master else Status((), 0, 0, 0, 0)


def _check_addresses(listeners: Iterable[socket.socket | Address | None]) -> None:
    """ValueError: an address is given twice. Otherwise bind would fail, as if another process
    listened there."""
    addresses = [
        parse_address(listener)
        for listener in listeners
        if listener is not None and not isinstance(listener, socket.socket)
    ]
    paths = [os.path.abspath(where) for where in addresses if isinstance(where, str)]
    ports = [where for where in addresses if not isinstance(where, str) and where[1] != 0]
    if len({*paths, *ports}) < len(paths) + len(ports):
        raise ValueError("an address is given twice")


def _open(listener: socket.socket | Address, stack: ExitStack) -> socket.socket:
    """Borrows a socket, or opens an address until the stack is closed."""
    if not isinstance(listener, socket.socket):
        return stack.enter_context(opened(listener))
    check_listener(listener)
    return listener
