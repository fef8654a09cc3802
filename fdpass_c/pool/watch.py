"""Finds workers that hang: they have connections in hand and make no progress."""

import time
from collections.abc import Callable, Sequence

from fdpass_c.pool.config import Config
from fdpass_c.pool.worker_process import WorkerProcess


class Watch:
    """Compares the counters of each worker with earlier ones.

    due_at: when check is to be called, as time.monotonic.
    """

    def __init__(
        self,
        workers: Sequence[WorkerProcess],
        config: Config,
        replace: Callable[[WorkerProcess], None],
    ) -> None:
        """workers: the living workers, a list that the supervisor keeps up to date. replace: called
        once for each worker that hangs."""
        self.due_at: float = time.monotonic() + config.check_interval
        self._workers = workers
        self._config = config
        self._replace = replace
        self._seen: dict[WorkerProcess, tuple[object, float]] = {}

    def check(self) -> None:
        now = time.monotonic()
        # This check comes late if the master did not run. That time does not count, because the
        # workers may have been suspended too.
        late = now - self.due_at
        self.due_at = now + self._config.check_interval
        before, self._seen = self._seen, {}
        for worker in [*self._workers]:
            if not worker.count_in_hand():
                continue  # Its time begins when it has a connection.
            progress = worker.counters.progress
            seen, since = before.get(worker, (None, now))
            since = since + late if progress == seen else now
            if now - since >= self._config.timeout:
                since = float("inf")
                self._replace(worker)
            self._seen[worker] = progress, since
