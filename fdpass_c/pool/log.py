"""Where the pool logs."""

import logging

logger: logging.Logger = logging.getLogger("fdpass_c.pool")
