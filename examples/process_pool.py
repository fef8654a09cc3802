"""A pool of processes: one accepts connections and passes each to a worker that is free.

Try it with pool_client.py. Kill a worker: it is replaced, and the connections that it had not begun
go to other workers. The signal USR1 logs a table of the workers.

    python examples/process_pool.py [ADDRESS WORKERS]
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
    address, workers = sys.argv[1:] or ["127.0.0.1:8000", "4"]
    Pool(handle, workers=int(workers)).serve(address)
