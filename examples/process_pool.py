"""The process pool: one process accepts, and passes each connection to a worker that is free.

A worker killed at any moment is replaced, and what it had not begun goes to another one. Try it
with pool_client.py; signal USR1 shows the table of workers.

    python examples/process_pool.py 127.0.0.1:8000 4
"""

import logging
import os
import socket
import sys

from fdpass_c.pool import Pool


def handle(sock: socket.socket, _address: object) -> None:
    """Answers each line with the worker's pid and the line in capitals."""
    with sock.makefile("rwb") as stream:
        for line in stream:
            stream.write(b"%d %s" % (os.getpid(), line.upper()))
            stream.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
    Pool(handle, workers=int(sys.argv[2])).serve(sys.argv[1])
