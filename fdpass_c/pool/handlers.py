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
"""A plain function or a coroutine function, whose arguments are a connected socket and the peer's
address."""


ENDS_WORKER = (SystemExit, KeyboardInterrupt)
"""Exceptions of a handler that end the worker. Any other, even a BaseException, ends only its
connection."""

_GONE = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


def is_coroutine_function(handler: Any) -> bool:
    """Whether handler is recognizably a coroutine function, without calling it."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(handler.__call__)


def note_failure(error: BaseException, counters: Counters, address: Any) -> None:
    """Logs an exception of a handler and counts it as failed. If it says that the client has gone
    or that TLS failed, it is not counted and only logged at the level DEBUG, as in asyncio's
    servers."""
    ssl = sys.modules.get("ssl")
    if isinstance(error, _GONE) or (ssl is not None and isinstance(error, ssl.SSLError)):
        logger.debug("the connection of %r failed: %s", address, error)
        return
    counters.fail()
    logger.error("the handler failed on the connection of %r", address, exc_info=error)


def note_closed(error: OSError, address: Any) -> None:
    """Logs an error of closing a connection. The connection still counts as handled."""
    logger.error("the handler has closed the descriptor of %r: %s", address, error)


def call(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a plain function. TypeError: it returned a coroutine or a generator, which nothing
    would run: a lambda or a decorator can hide a coroutine function."""
    result = function(*arguments)
    if result is None:
        return
    if inspect.isawaitable(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if close := getattr(result, "close", None):
            close()  # Otherwise Python warns that the coroutine was never awaited.
        raise TypeError(
            f"{function!r} returned {result!r}, which the pool does not run: give it the "
            "coroutine function itself, or a plain function that does its work before it returns"
        )
