"""A worker pool: one process accepts connections and passes each to a process that is free.

    def handler(sock, address):
        sock.sendall(b"hello\n")

    Pool(handler, workers=4).serve("127.0.0.1:8000")

docs/pool.md tells how it works and what it promises.

Arrows point down only: pool (what a program sees) -> master (the loop) -> watch (who hangs), staff
(death, respawn, replacement) -> dispatch (who gets what) -> crew (the master's side of one worker)
-> worker (the worker's own side), intake (accepting) -> listeners, service_manager (who is told
what the pool does), metrics_server (who asks) -> metrics, signals, wakeup (waking the master), counters,
status, log.
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
