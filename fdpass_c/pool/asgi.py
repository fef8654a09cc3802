"""An ASGI application in a pool, behind the protocol classes of uvicorn.

    AsgiServer(app).make_pool(workers=4).serve("127.0.0.1:8000")

It takes the extra: pip install 'fdpass-c[uvicorn]'.
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

_TICK = 1.0


class AsgiServer:
    """What uvicorn.Server is to a socket of its own: a pool's handler, setup and teardown.

    A connection is one of the pool's for as long as it is open, however many requests it has, and
    so is a WebSocket. A worker that is to leave closes its idle connections, and has the others end
    with their next answer.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        """app: an ASGI application, or where it is, "module:app". options: of uvicorn.Config; those
        that say where to listen, how many processes there are, and when they end, mean nothing
        here. Without others uvicorn logs as the program does, and no requests.
        """
        self._config = uvicorn.Config(app, **{"log_config": None, "access_log": False, **options})
        self._config.load()

    def make_pool(self, workers: int, capacity: int = 1000, **options: Any) -> Pool:
        """A pool that serves the application. options: of Pool, other than setup, teardown and
        loop_factory. The loop is uvicorn's: uvloop's where that is installed."""
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
        """In the worker, before its first connection: RuntimeError where the application's own
        start fails (lifespan)."""
        self._state = ServerState()
        self._lifespan = self._config.lifespan_class(self._config)
        await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise RuntimeError("the application did not start")
        self._ticking: asyncio.TimerHandle | None = None
        self._leaving = asyncio.create_task(self._leave())

    async def __call__(self, sock: socket.socket, _address: object) -> None:
        """Gives the connection to a protocol, whose transport closes it."""
        if self._ticking is None:
            self._tick()
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(self._make_protocol, sock, ssl=self._config.ssl)

    def _make_protocol(self) -> asyncio.Protocol:
        return self._config.http_protocol_class(  # type: ignore[call-arg]
            config=self._config, server_state=self._state, app_state=self._lifespan.state
        )

    def _tick(self) -> None:
        """Sets the headers of every answer, now and as long as there are connections."""
        headers = [*self._config.encoded_headers]
        if self._config.date_header:
            headers.insert(0, (b"date", formatdate(time.time(), usegmt=True).encode()))
        if leaving_event().is_set():
            headers.append((b"connection", b"close"))
        self._state.default_headers = headers
        self._ticking = asyncio.get_running_loop().call_later(_TICK, self._tick_on)

    def _tick_on(self) -> None:
        self._ticking = None
        if self._state.connections:
            self._tick()

    async def _leave(self) -> None:
        """Ends the connections that are idle, first those that have had an answer. A request may be
        on its way on those that have not, which get the time that uvicorn gives idle ones."""
        await leaving_event().wait()
        if self._ticking is not None:
            self._ticking.cancel()
        self._tick()
        for connection in [*self._state.connections]:
            if getattr(connection, "cycle", connection) is not None:
                connection.shutdown()
        await asyncio.sleep(self._config.timeout_keep_alive)
        for connection in [*self._state.connections]:
            connection.shutdown()

    async def stop(self) -> None:
        """In the worker, after its last connection: waits for what answers have left to do, and has
        the application stop."""
        self._leaving.cancel()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)
        await self._lifespan.shutdown()
