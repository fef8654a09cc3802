"""Where the pool logs."""

import contextlib
import logging

logger: logging.Logger = logging.getLogger("fdpass_c.pool")

_handle = logger.handle


def _handle_though_closed(record: logging.LogRecord) -> None:
    """If the program has closed its log and standard error, logging raises a ValueError, which must
    end neither the master nor a worker."""
    with contextlib.suppress(ValueError):
        _handle(record)


logger.handle = _handle_though_closed  # type: ignore[method-assign]
