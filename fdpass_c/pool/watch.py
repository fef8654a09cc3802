"""Finding workers that hang: they have connections in hand and make no progress."""

import time
from collections.abc import Callable, Sequence

from fdpass_c.pool.crew import State, Worker
from fdpass_c.pool.plan import Plan


class Watch:
    """Compares the counters with what they were.

    alarm: when check is to be called, as time.monotonic.
    """

    def __init__(
        self, workers: Sequence[Worker], plan: Plan, replace: Callable[[Worker], None]
    ) -> None:
        """workers: the living ones. replace: called once for each that hangs."""
        self.alarm = time.monotonic() + plan.look_every
        self._workers = workers
        self._plan = plan
        self._replace = replace
        self._seen: dict[Worker, tuple[object, float]] = {}

    def check(self) -> None:
        now = time.monotonic()
        self.alarm = now + self._plan.look_every
        before, self._seen = self._seen, {}
        for worker in [*self._workers]:
            if worker.state is State.STARTING or not worker.count_in_hand():
                continue  # Its time begins when it has something.
            progress = worker.counters.progress
            seen, since = before.get(worker, (None, now))
            if progress != seen:
                since = now
            elif now - since >= self._plan.timeout:
                since = float("inf")
                self._replace(worker)
            self._seen[worker] = progress, since
