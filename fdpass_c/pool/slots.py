"""The places of a pool's workers: which are empty, and which workers are to be replaced."""

from collections import deque

from fdpass_c.pool.log import logger
from fdpass_c.pool.worker_process import State, WorkerProcess


class Slots:
    """Says for which slots workers must be started.

    The successor of a worker is started in the same slot, and the worker leaves when its successor
    is ready. Workers are replaced one by one.

    count: how many slots there are.
    """

    def __init__(self, workers: list[WorkerProcess], count: int) -> None:
        """Borrows workers, which is kept up to date by others."""
        self.count: int = count
        self._workers = workers
        self._filled = 0  # How many there were when all of them last had workers.
        self._restarts = [0] * count
        self._outdated: deque[WorkerProcess] = deque()
        self._reloaded: set[WorkerProcess] = set()

    @property
    def active(self) -> list[WorkerProcess]:
        """The workers that were not told to leave."""
        return [worker for worker in self._workers if worker.state is not State.LEAVING]

    @property
    def were_filled(self) -> bool:
        """Whether all slots have had workers that were ready."""
        return self._filled > 0

    @property
    def is_reloading(self) -> bool:
        """Whether some of the workers that replace_all found were not told to leave yet."""
        return any(worker.state is not State.LEAVING for worker in self._reloaded)

    def find_missing(self) -> list[int]:
        """Returns the slots that need a worker: the empty slots, or if there are none, the slot of
        the next worker to replace."""
        active = self.active
        missing = [*({*range(self.count)} - {worker.settings.slot for worker in active})]
        while self._outdated and self._outdated[0] not in active:
            self._outdated.popleft()
        if self._outdated and not missing and all(w.state is State.READY for w in active):
            missing = [self._outdated[0].settings.slot]
        return missing

    def count_restarts(self, slot: int) -> int:
        """Returns how many workers had the slot before."""
        return self._restarts[slot]

    def note_started(self, slot: int) -> None:
        self._restarts[slot] += 1

    def note_filled(self) -> None:
        """Called when no slot needs a worker."""
        if all(worker.state is not State.STARTING for worker in self._workers):
            self._filled = self.count

    def resize(self, change: int) -> None:
        """Adds change to the number of slots. At least one stays."""
        self.count = max(1, self.count + change)
        self._restarts += [0] * (self.count - len(self._restarts))
        logger.info("the pool now has %d workers", self.count)

    def replace(self, worker: WorkerProcess) -> None:
        """Has a worker replaced. May be repeated."""
        if worker not in self._outdated:
            self._outdated.append(worker)

    def replace_all(self) -> None:
        self._outdated = deque(self.active)
        self._reloaded = {*self._outdated}

    def replace_none(self) -> None:
        self._outdated.clear()

    def remove(self, worker: WorkerProcess) -> None:
        """Called when a worker has ended."""
        self._reloaded.discard(worker)

    def undo_change(self) -> str:
        """Called if no worker can be started: keeps the workers that were to be replaced, or if
        there are none, gives up the slots that resize has added. Returns what the pool goes on
        with, or an empty string if there was nothing to undo."""
        if self._outdated:
            for worker in self._outdated:
                worker.postpone_replacement()
            self._outdated.clear()
            self._reloaded.clear()
            return "the old workers go on"
        if self.count > self._filled > 0:
            self.count = self._filled
            return f"the pool has {self.count} workers as before"
        return ""
