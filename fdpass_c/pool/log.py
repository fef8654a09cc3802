"""Where the pool logs."""

import logging

logger = logging.getLogger("fdpass_c.pool")
