"""The functions that a program gives to a pool: plain functions and coroutine functions."""

import inspect
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from fdpass_c.pool.counters import Counters
from fdpass_c.pool.log import logger

Handler = Callable[[socket.socket, Any], Any]
"""A plain function or a coroutine function of a connected socket and the peer's address."""


ENDS_WORKER = (SystemExit, KeyboardInterrupt)
"""Of a handler; every other exception, for instance gevent.Timeout, is one connection's failure."""

_GONE = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


def is_coroutine_function(handler: Any) -> bool:
    """Whether it is known, without calling it, that a call gives a coroutine."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(handler.__call__)


def note_failure(error: BaseException, counters: Counters, address: Any) -> None:
    """Logs and counts an exception of a handler, unless it says that the client has gone or that
    TLS with it failed: that is for debugging only, as in the servers of asyncio."""
    ssl = sys.modules.get("ssl")
    if isinstance(error, _GONE) or (ssl is not None and isinstance(error, ssl.SSLError)):
        logger.debug("the connection of %r failed: %s", address, error)
        return
    counters.fail()
    logger.error("the handler failed on the connection of %r", address, exc_info=error)


def note_closed(error: OSError, address: Any) -> None:
    """Logs what closing a connection raised. It counts as handled."""
    logger.error("the handler has closed the descriptor of %r: %s", address, error)


def call(handler: Handler, sock: socket.socket, address: Any) -> None:
    """Calls a plain function; TypeError for one that was none, which a lambda or a decorator can
    hide: nothing has run what it returned."""
    result = handler(sock, address)
    if result is None:
        return
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if close := getattr(result, "close", None):
            close()  # Or Python says that it was never awaited.
        raise TypeError(
            f"{handler!r} returned {result!r}, which the pool does not run: give it the "
            "coroutine function itself, or a plain function that does its work before it returns"
        )
