"""What a pool is doing, as values and as a table."""

import enum
from typing import NamedTuple


class Phase(enum.Enum):
    """What a pool is about, in a word for people."""

    STARTING = "starting"
    SERVING = "serving"
    RELOADING = "replacing the workers"
    STOPPING = "stopping"


STATES = ("STARTING", "FREE", "BUSY", "LEAVING")
"""BUSY: it takes no more now. LEAVING: it finishes what it has."""


class WorkerStatus(NamedTuple):
    """One worker process.

    slot: its place in the pool, which its successor takes. state: one of STATES. in_hand:
    connections given and not finished. handled: connections finished; failed: those of them whose
    handler raised. restarts: workers that had this slot before.

    age: seconds since it was started. busy: how many of them it could do nothing else: a plain
    worker was in a handler, an event loop used a CPU.
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
        """Of its time, from 0 to 1; above that where an event loop has threads."""
        return self.busy / self.age if self.age else 0.0


class Status(NamedTuple):
    """workers: in the order of their slots. waiting: connections accepted and given to nobody yet.

    handled: connections finished since the pool started, by all workers there ever were; failed:
    those of them whose handler raised. lost: connections that a worker had begun when it died.
    """

    workers: tuple[WorkerStatus, ...]
    waiting: int
    handled: int
    failed: int
    lost: int

    def render(self) -> str:
        """A table for people, of several lines."""
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
