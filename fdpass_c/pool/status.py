"""What a pool is doing, as values and as a table."""

import enum
from typing import NamedTuple


class Phase(enum.Enum):
    """What a pool is doing, in words for people."""

    STARTING = "starting"
    SERVING = "serving"
    RELOADING = "replacing the workers"
    STOPPING = "stopping"


STATES = ("STARTING", "FREE", "BUSY", "LEAVING")
"""The states of a worker, which WorkerStatus explains."""


class WorkerStatus(NamedTuple):
    """The status of one worker process.

    Attributes:
        slot: The number of its place in the pool. Its successor gets the same number.
        pid: Its process id.
        state: "STARTING", "FREE", "BUSY" (the worker has as many connections as its capacity) or
            "LEAVING" (the worker finishes its connections and ends).
        in_hand: Connections that it was given and has not finished.
        handled: Connections that it has finished.
        failed: How many of the handled connections ended with an exception of the handler.
        restarts: How many workers had this slot before it.
        age: Seconds since it was started.
        busy: Seconds in which it could do nothing else: for a plain worker, the time in handlers;
            for an event loop, the CPU time of the process.
    """

    slot: int
    pid: int
    state: str
    in_hand: int
    handled: int
    failed: int
    restarts: int
    age: float
    busy: float

    @property
    def busy_share(self) -> float:
        """busy divided by age, usually from 0 to 1. It can be more if a worker with an event loop
        has threads that use the CPU."""
        return self.busy / self.age if self.age else 0.0


class Status(NamedTuple):
    """The status of a pool.

    Attributes:
        workers: The worker processes, in the order of their slots.
        waiting: Connections that are accepted and not yet given to a worker.
        handled: Connections that all workers have finished since the pool started.
        failed: How many of the handled connections ended with an exception of the handler.
        lost: Connections that a worker had begun and not finished when it died.
    """

    workers: tuple[WorkerStatus, ...]
    waiting: int
    handled: int
    failed: int
    lost: int

    def render(self) -> str:
        """Returns a table of several lines, for people."""
        rows = [("slot", "pid", "state", "in hand", "handled", "failed", "restarts", "busy")]
        rows += [
            (*map(str, worker[:-2]), f"{worker.busy_share:.0%}")  # type: ignore[misc]
            for worker in self.workers
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        counts = ("handled", "failed", "lost", "waiting")
        total = ", ".join(f"{getattr(self, name)} {name}" for name in counts)
        return "\n".join([*lines, total])
