"""An ASGI application in a pool, behind the protocol classes of uvicorn.

    AsgiServer(app).make_pool(workers=4).serve("127.0.0.1:8000")

It needs uvicorn: pip install 'fdpass-c[uvicorn]'.
"""

import asyncio
import socket
import time
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from fdpass_c.pool.leaving import leaving_event
from fdpass_c.pool.pool import Pool

_HEADERS_INTERVAL = 1.0
"""Seconds between two updates of the headers: the date in them has a resolution of one second."""


class AsgiServer:
    """Serves an ASGI application in the workers of a pool, with the protocol classes of uvicorn.

    An instance is the handler of a pool; start and stop are its setup and teardown. make_pool puts
    them together.

    A connection counts as one connection of the pool while it is open, however many requests it
    has. So does a WebSocket. A worker that is to end closes its idle connections, and closes each
    of the others after its next answer.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        """Loads the application.

        Args:
            app: An ASGI application, or where to import it from, as "module:app".
            options: Options of uvicorn.Config. Those for addresses, the number of processes and
                stopping have no effect, because the pool has such options itself. By default
                uvicorn uses the program's logging, and does not log requests.

        Raises:
            TypeError: uvicorn.Config has no such option.
            SystemExit: uvicorn cannot import app, and has logged why.
        """
        self._config = uvicorn.Config(app, **{"log_config": None, "access_log": False, **options})
        self._config.load()

    def make_pool(self, workers: int, capacity: int = 1000, **options: Any) -> Pool:
        """Makes a pool that serves the application.

        The event loop is uvicorn's choice: uvloop if it is installed, unless the option loop of
        AsgiServer says otherwise.

        Args:
            workers: The number of worker processes.
            capacity: The largest number of open connections of one worker.
            options: Options of Pool, except setup, teardown and loop_factory.

        Returns:
            The pool. Its serve() starts it.

        Raises:
            ValueError: As for Pool.
            TypeError: Pool has no such option, or it is setup, teardown or loop_factory.
        """
        return Pool(
            self,
            workers,
            capacity,
            setup=self.start,
            teardown=self.stop,
            loop_factory=self._config.get_loop_factory(),
            **options,
        )

    async def start(self) -> None:
        """Starts the application in a worker, before the first connection.

        This is the setup of the pool.

        Raises:
            RuntimeError: The start of the application failed (lifespan).
        """
        self._state = ServerState()
        self._lifespan = self._config.lifespan_class(self._config)
        await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise RuntimeError("the application did not start (lifespan): see the log of uvicorn")
        self._headers_timer: asyncio.TimerHandle | None = None
        # uvicorn counts a connection only after its TLS handshake. Until then it is counted here.
        self._connecting = 0
        self._leaving = asyncio.create_task(self._leave())

    async def __call__(self, sock: socket.socket, _address: object) -> None:
        """Gives the connection to a protocol of uvicorn. Its transport closes the socket."""
        if self._headers_timer is None:
            self._update_headers()
        loop = asyncio.get_running_loop()
        self._connecting += 1
        try:
            await loop.connect_accepted_socket(self._make_protocol, sock, ssl=self._config.ssl)
        finally:
            self._connecting -= 1

    def _make_protocol(self) -> asyncio.Protocol:
        return self._config.http_protocol_class(  # type: ignore[call-arg]
            config=self._config, server_state=self._state, app_state=self._lifespan.state
        )

    def _update_headers(self) -> None:
        """Sets the headers of all answers, now and every second while there are connections."""
        headers = [*self._config.encoded_headers]
        if self._config.date_header:
            headers.insert(0, (b"date", formatdate(time.time(), usegmt=True).encode()))
        if leaving_event().is_set():
            headers.append((b"connection", b"close"))
        self._state.default_headers = headers
        self._headers_timer = asyncio.get_running_loop().call_later(
            _HEADERS_INTERVAL, self._update_headers_again
        )

    def _update_headers_again(self) -> None:
        self._headers_timer = None
        if self._state.connections or self._connecting:
            self._update_headers()

    async def _leave(self) -> None:
        """Closes idle connections when the worker is to end.

        Those that have had an answer are closed at once. The others may still send their first
        request, for as long as uvicorn keeps idle connections open.
        """
        await leaving_event().wait()
        if self._headers_timer is not None:
            self._headers_timer.cancel()
        self._update_headers()
        for connection in [*self._state.connections]:
            if getattr(connection, "cycle", connection) is not None:
                connection.shutdown()
        await asyncio.sleep(self._config.timeout_keep_alive)
        for connection in [*self._state.connections]:
            connection.shutdown()

    async def stop(self) -> None:
        """Stops the application in a worker, after the last connection.

        This is the teardown of the pool. It first waits for the tasks of unfinished answers.
        """
        self._leaving.cancel()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)
        await self._lifespan.shutdown()
