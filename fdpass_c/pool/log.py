"""The logger of the pool."""

import contextlib
import logging

logger: logging.Logger = logging.getLogger("fdpass_c.pool")

_handle = logger.handle


def _handle_safely(record: logging.LogRecord) -> None:
    """Logs. If the program has closed both its log and standard error, logging raises a ValueError,
    which must end neither the master nor a worker."""
    with contextlib.suppress(ValueError):
        _handle(record)


logger.handle = _handle_safely  # type: ignore[method-assign]
