"""How a worker process ends, and how a process ends that the worker's code has forked."""

import contextlib
import os
import sys
from typing import NoReturn

from fdpass_c.pool.leaving import is_worker
from fdpass_c.pool.log import logger
from fdpass_c.pool.multiprocess import end_multiprocessing


def end_process(error: BaseException | None, name: str = "the worker") -> NoReturn:
    """Ends this process. error: the exception that ended its work, or None. name: what the log
    calls this process."""
    status = 1
    try:
        if error is None:
            status = 0
        elif not isinstance(error, SystemExit):
            logger.critical("%s failed", name, exc_info=error)
        elif isinstance(error.code, int | None):
            status = error.code or 0
        else:  # The code is a message, which Python itself would print.
            logger.critical("%s exits: %s", name, error.code)
        end_multiprocessing()
        flush_streams()
    finally:
        os._exit(status & 0xFF)


def end_forked(error: BaseException | None = None) -> None:
    """Called when a handler or setup has returned or raised error: ends this process unless it is a
    worker.

    The handler or setup may have forked, and may return in the child too. Without this, the child
    would be a second worker that takes connections from the same channel.
    """
    if not is_worker():
        end_process(error, "a process that a worker has forked")


def flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The stream may be None or closed, the disk full, the pipe broken.
        with contextlib.suppress(Exception):
            stream.flush()
