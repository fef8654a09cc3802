"""How a worker process ends, and a process that its code has forked."""

import contextlib
import os
import sys
from typing import NoReturn

from fdpass_c.pool.leaving import is_worker
from fdpass_c.pool.log import logger


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
        _end_multiprocessing()
        flush_streams()
    finally:
        os._exit(status & 0xFF)


def _end_multiprocessing() -> None:
    """Does what multiprocessing has Python do at its end, which os._exit does not.

    Managers and pools end, queues deliver what was put into them, and daemons are terminated. What
    belongs to the process that this one was forked from stays.
    """
    if (util := sys.modules.get("multiprocessing.util")) is None:
        return
    util._run_finalizers(0)
    for child in [*util.process._children]:
        if child.daemon and child._parent_pid == os.getpid():
            child.terminate()
    util._run_finalizers()


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
