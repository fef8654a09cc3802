"""Finds out which workers have exited."""

import contextlib
import os
import time
from itertools import repeat

from fdpass_c.pool.worker_process import KILL_INTERVAL, WorkerProcess, collect_exits


class Exits:
    """Waits for the processes of workers, as wait(2) does, so that no zombies stay."""

    def __init__(self, workers: list[WorkerProcess]) -> None:
        """Borrows workers, which is kept up to date by others."""
        self._workers = workers
        self._found: list[tuple[int, int]] = []
        self._late: list[WorkerProcess] = []

    def wait_later(self, worker: WorkerProcess) -> None:
        """Called if a worker is removed from workers before it has exited."""
        self._late.append(worker)

    def find(self) -> list[WorkerProcess]:
        """Returns those of workers that have exited."""
        if os.getpid() == 1:
            self._wait_for_orphans()
        self._late = [worker for worker in self._late if not worker.has_exited()]
        return [worker for worker in self._workers if worker.has_exited()]

    def _wait_for_orphans(self) -> None:
        """The first process of a container becomes the parent of processes whose parent has died
        (man 7 pid_namespaces), and must wait for them when they exit."""
        with contextlib.suppress(ChildProcessError):
            collect_exits(self._found, repeat(-1), os.WNOHANG)
        self.note_found()

    def note_found(self) -> None:
        """Notes what was found before a signal handler raised an exception in find."""
        for worker in self._workers:
            for pid, status in self._found:
                if pid == worker.pid:
                    worker.note_exit(status)
        self._found.clear()

    def wait(self, seconds: float) -> None:
        """Waits until all have exited, but not longer than so many seconds after a worker was
        killed."""
        for worker in [*self._workers, *self._late]:
            while not worker.has_exited() and time.monotonic() < worker.killed_at + seconds:
                time.sleep(KILL_INTERVAL)
