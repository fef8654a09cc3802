"""How a worker process ends, and a process that its code has forked."""

import contextlib
import os
import sys
from typing import NoReturn

from fdpass_c.pool.leaving import is_worker
from fdpass_c.pool.log import logger
from fdpass_c.pool.multiprocess import end_multiprocessing


def end_process(error: BaseException | None, name: str = "the worker") -> NoReturn:
    """Ends this process, which the log calls name. error: what ended its work."""
    status = 1
    try:
        if error is None:
            status = 0
        elif not isinstance(error, SystemExit):
            logger.critical("%s failed", name, exc_info=error)
        elif isinstance(error.code, int | None):
            status = error.code or 0
        else:  # A message, which Python would print.
            logger.critical("%s exits: %s", name, error.code)
        end_multiprocessing()
        flush_streams()
    finally:
        os._exit(status & 0xFF)


def end_forked(error: BaseException | None = None) -> None:
    """Ends a process that a handler or setup has forked and in which it returns, or raises error.

    Otherwise there would be two workers that take connections from the same channel.
    """
    if not is_worker():
        end_process(error, "a process that a worker has forked")


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, closed, a full disk, a broken pipe.
            stream.flush()
