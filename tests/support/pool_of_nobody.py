"""A pool of two workers, run by a user whom limits bind."""

import logging
import resource
import sys

from fdpass_c.pool import Pool, failed_starts, open_listener
from support.handlers import echo
from support.processes import become_nobody


def main(processes: str, address: str) -> None:
    """processes: how many the user may have, or "any"."""
    failed_starts._FIRST_DELAY = 0.01
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    listener = open_listener(address)
    # Files of another user's may be out of reach from here on.
    become_nobody()
    if processes != "any":
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (int(processes), hard))
    with listener:
        Pool(echo, 2).serve(listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
