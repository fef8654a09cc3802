"""The functions that a program gives to a pool: plain functions and coroutine functions."""

import inspect
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

Handler = Callable[[socket.socket, Any], Any]
"""A plain function or a coroutine function of a connected socket and the peer's address."""


def is_coroutine_function(handler: Any) -> bool:
    """Whether it is known, without calling it, that a call gives a coroutine."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(handler.__call__)


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
