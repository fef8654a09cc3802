"""What a pool is doing, as values and as a table."""

import enum
from typing import NamedTuple


class Phase(enum.Enum):
    """What a pool is about, in a word for people."""

    STARTING = "starting"
    SERVING = "serving"
    RELOADING = "replacing the workers"
    STOPPING = "stopping"


class WorkerStatus(NamedTuple):
    """One worker process.

    slot: its place in the pool, which its successor takes. state: STARTING, FREE, BUSY (it takes
    no more now) or LEAVING (it finishes what it has). in_hand: connections given and not finished.
    handled: connections finished; failed: those of them whose handler raised. restarts: workers
    that had this slot before.
    """

    slot: int
    pid: int
    state: str
    in_hand: int
    handled: int
    failed: int
    restarts: int


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
        rows = [("slot", "pid", "state", "in hand", "handled", "failed", "restarts")]
        rows += [tuple(map(str, worker)) for worker in self.workers]  # type: ignore[misc]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        counts = ("handled", "failed", "lost", "waiting")
        total = ", ".join(f"{getattr(self, name)} {name}" for name in counts)
        return "\n".join([*lines, total])
