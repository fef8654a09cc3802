"""A worker pool: one process accepts connections and passes each to a free worker process.

    def handler(sock, address):
        sock.sendall(b"hello\n")

    Pool(handler, workers=4).serve("127.0.0.1:8000")

docs/pool.md explains how it works and what it promises.

Each of these modules imports only those below it:

    pool             Pool, the class that a program uses
    asgi             an ASGI application in a pool
    master           the loop of the master
    watch            finds workers that hang
    dispatch         distributes connections, and pauses after an error
    supervisor       starts, replaces and reaps workers
    rounds           the part of the master's loop that is in the C core
    worker_process   one worker, as the master sees it
    worker           what runs in a worker
    intake           receives connections in a worker whose handler is a plain function
    event_loop       receives and handles connections if the handler is a coroutine function
    connections      the connections that each worker was given, in memory of the C core
    offers           connections that any worker may take, if each handles one at a time
    accepting        the listening sockets, as the master uses them
    listeners        opens and inherits listening sockets
    service_manager  reports to systemd what the pool does
    metrics_server   answers HTTP requests for metrics

Several of them import these: metrics, signals, wakeup (wakes the master), counters (in shared
memory), leaving and ending (of a worker), status, config, log.
"""

from fdpass_c.pool.leaving import is_leaving, leaving_event, note_progress
from fdpass_c.pool.listeners import Address, InheritedSocket, inherit_listeners, open_listener
from fdpass_c.pool.pool import Pool, PoolError
from fdpass_c.pool.status import Status, WorkerStatus

__all__ = [
    "Address",
    "InheritedSocket",
    "Pool",
    "PoolError",
    "Status",
    "WorkerStatus",
    "inherit_listeners",
    "is_leaving",
    "leaving_event",
    "note_progress",
    "open_listener",
]
