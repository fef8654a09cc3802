"""The configuration of a pool."""

import asyncio
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

from fdpass_c.options import check_int
from fdpass_c.pool.handlers import Handler, is_coroutine_function

_CHECKS = 4
"""How many times each worker is checked for progress within the timeout."""


class Config(NamedTuple):
    """The arguments of Pool, under the same names. A timeout of None is inf here."""

    handler: Handler
    workers: int
    capacity: int
    max_requests: int | None
    drain: float
    start_timeout: float
    timeout: float
    setup: Callable[[], Any] | None
    teardown: Callable[[], Any] | None
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None

    def check(self) -> None:
        """TypeError and ValueError as for Pool."""
        most = self.max_requests
        for name in ("handler", "setup", "teardown", "loop_factory"):
            function = getattr(self, name)
            if not callable(function) and (function is not None or name == "handler"):
                raise TypeError(f"the {name} is not callable: {function!r}")
        for name in ("workers", "capacity", "max_requests"):
            number = getattr(self, name)
            if number is not None or name != "max_requests":
                check_int(name, number)
        if self.workers < 1 or self.capacity < 1 or (most is not None and most < 1):
            raise ValueError(
                "workers, capacity and max_requests are at least 1, "
                f"got {self.workers}, {self.capacity} and {most}"
            )
        for name in ("drain", "start_timeout", "timeout"):
            seconds = getattr(self, name)
            if not isinstance(seconds, Real):
                kind = type(seconds).__name__
                raise TypeError(f"{name} is a number of seconds, not {kind}")
        if not (self.drain >= 0 and self.start_timeout >= 0):
            raise ValueError(
                "drain and start_timeout are numbers of seconds, not negative, "
                f"got {self.drain} and {self.start_timeout}"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout is a positive number of seconds, got {self.timeout}")
        for function in (self.setup, self.teardown):
            if function and is_coroutine_function(function) and not self.runs_coroutines:
                raise ValueError(
                    f"{function!r} is a coroutine function and the handler is not: "
                    "make both coroutine functions, or both plain functions"
                )
        if self.loop_factory and not self.runs_coroutines:
            raise ValueError("loop_factory needs a handler that is a coroutine function")

    @property
    def check_interval(self) -> float:
        """Seconds between two checks for workers that hang, or inf without a timeout."""
        return self.timeout / _CHECKS

    @property
    def is_serial(self) -> bool:
        """Whether a worker handles one connection at a time and has no queue of others."""
        return self.capacity == 1 and not self.runs_coroutines

    @property
    def runs_coroutines(self) -> bool:
        return is_coroutine_function(self.handler)
