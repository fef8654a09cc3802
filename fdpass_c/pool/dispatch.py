"""Distributing: who gets which connection."""

import heapq
import selectors
import time
from collections import deque
from collections.abc import Iterable
from operator import attrgetter

from fdpass_c.descriptors import close_fds
from fdpass_c.pool.crew import Worker
from fdpass_c.pool.intake import SHORT_OF, Connection, Entrance
from fdpass_c.pool.log import logger

_REST = 0.05
"""Seconds until the next attempt where a limit of the system is reached."""

_LEAST_PATIENCE, _MOST_PATIENCE = 0.005, 1.0
"""Seconds after which the master sees for itself whether a worker has begun."""

# Among those with as much in hand comes first who has waited longest.
_rank = attrgetter("in_hand", "turn")


class Dispatcher:
    """Accepts what there is room for, and gives each connection to the worker with the least in
    hand.

    waiting: connections accepted and given to nobody yet. alarm: when distribute is to be called
    again if nothing happens before, as time.monotonic.
    """

    def __init__(
        self, entrance: Entrance, workers: list[Worker], selector: selectors.BaseSelector
    ) -> None:
        """workers: the living ones, which somebody else keeps up to date."""
        self.waiting: deque[Connection] = deque()
        self.alarm = 0.0
        self._entrance = entrance
        self._workers = workers
        self._selector = selector
        self._done: list[int] = []
        self._turn = 0
        self._rest_until = 0.0
        self._patience = _LEAST_PATIENCE

    def look(self) -> bool:
        """Sees how far the workers are, those that said nothing too; whether any has begun more."""
        before = len(self._done)
        for worker in self._workers:
            if worker.in_hand:
                self._done += worker.look()
        return len(self._done) > before

    def distribute(self) -> bool:
        """Returns whether there is reason to look at the staff: a worker was given its last
        connection, or one that waited was given while no more are accepted."""
        now = time.monotonic()
        has_given = has_room = False
        if now >= self._rest_until:
            takers = [worker for worker in self._workers if worker.room > 0]
            room = sum(worker.room for worker in takers) - len(self.waiting)
            if room > 0 and self._entrance.is_ready:
                room -= self._accept(room)
            if self.waiting and takers:
                self._pass_on(takers)
                has_given = True
            has_room = room > 0 and now >= self._rest_until
        self._entrance.watch(has_room)
        self._set_alarm(now, has_room and self._entrance.is_ready)
        return has_given and (
            not self._entrance.is_open or any(worker.is_used_up for worker in takers)
        )

    def take_back(self, worker: Worker) -> None:
        """What a dead worker had not begun waits for another, before all that came later."""
        self._done += worker.look()
        self.waiting.extendleft(reversed(worker.copies))

    def close_done(self) -> None:
        """Closes the copies that nobody needs any more."""
        if self._done:
            # In ascending order neighbours are closed with one system call.
            self._done.sort()
            close_fds(self._done)
            self._done.clear()

    def drop_waiting(self) -> None:
        close_fds(fd for fd, _ in self.waiting)
        self.waiting.clear()

    def forget(self) -> None:
        """In a forked child: closes its copies."""
        close_fds([*self._done, *(fd for fd, _ in self.waiting)])

    def _set_alarm(self, now: float, more: bool) -> None:
        if more:
            self.alarm = 0.0
            return
        self.alarm = self._rest_until if self._rest_until > now else float("inf")
        if any(worker.copies for worker in self._workers):
            # Usually somebody is done before; else these looks become rare.
            self.alarm = min(self.alarm, now + self._patience)
            self._patience = min(2 * self._patience, _MOST_PATIENCE)

    def _accept(self, room: int) -> int:
        before = len(self.waiting)
        try:
            self._entrance.accept(room, self.waiting)
        except OSError as error:
            if error.errno not in SHORT_OF:
                raise
            self._rest(f"cannot accept: {error.strerror}")
        return len(self.waiting) - before

    def _rest(self, reason: str) -> None:
        logger.warning("%s; trying again in %s s", reason, _REST)
        self._rest_until = time.monotonic() + _REST

    def _pass_on(self, takers: list[Worker]) -> None:
        self._patience = _LEAST_PATIENCE
        if len(takers) == 1 or len(self.waiting) == 1:
            # Nothing to weigh, which is usual both under a flood and without one.
            worker = min(takers, key=_rank)
            count = min(worker.room, len(self.waiting))
            self._give(worker, [self.waiting.popleft() for _ in range(count)])
            return
        for worker, connections in self._deal(takers):
            self._give(worker, connections)

    def _deal(self, takers: list[Worker]) -> Iterable[tuple[Worker, list[Connection]]]:
        """One at a time, each to the worker that then has the least."""
        heap = [(*_rank(worker), worker.pid, worker.room, worker) for worker in takers]
        heapq.heapify(heap)
        shares: dict[Worker, list[Connection]] = {}
        while self.waiting and heap:
            in_hand, _, pid, room, worker = heap[0]
            self._turn += 1
            shares.setdefault(worker, []).append(self.waiting.popleft())
            if room > 1:
                heapq.heapreplace(heap, (in_hand + 1, self._turn, pid, room - 1, worker))
            else:
                heapq.heappop(heap)
        return shares.items()

    def _give(self, worker: Worker, connections: list[Connection]) -> None:
        self._turn += 1
        worker.turn = self._turn
        sent, reason = worker.give(connections)
        if worker.channel.unsent:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(worker.channel, both, self._selector.get_key(worker.channel).data)
        if reason is not None:
            self.waiting.extendleft(reversed(connections[sent:]))
            if worker.room > 0:
                self._rest(f"cannot pass connections to worker {worker.pid}: {reason.strerror}")
