"""Distributes connections among the workers."""

import heapq
import selectors
import time
from collections import deque
from collections.abc import Sequence
from operator import attrgetter

from fdpass_c.descriptors import close_fds
from fdpass_c.pool.accepting import RETRY_DELAY, Acceptors, Connection
from fdpass_c.pool.log import logger
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.worker_process import WorkerProcess

_SHORTEST_POLL, _LONGEST_POLL = 0.005, 1.0
"""Seconds after which the master reads the counters without having been woken."""

# Among workers with equally many in hand, the one that has waited longest comes first.
_rank = attrgetter("in_hand", "turn")


class Dispatcher:
    """Accepts what there is room for, and gives each connection to the worker with the least in
    hand.

    waiting: connections accepted and not given to a worker yet. begun: how many the workers have
    begun, in all. due_at: when distribute must be called if nothing happens before, as
    time.monotonic.
    """

    def __init__(
        self,
        acceptors: Acceptors,
        workers: list[WorkerProcess],
        wakeup: Wakeup,
        selector: selectors.BaseSelector,
    ) -> None:
        """workers: the living ones, a list that the supervisor keeps up to date."""
        self.waiting: deque[Connection] = deque()
        self.begun: int = 0
        self.due_at: float = 0.0
        self._acceptors = acceptors
        self._workers = workers
        self._wakeup = wakeup
        self._selector = selector
        self._done: list[int] = []
        self._turn = 0
        self._retry_at = 0.0
        self._poll_interval = _SHORTEST_POLL
        self._holds_copies = self._needs_supervisor = False

    def distribute(self) -> bool:
        """Returns whether the supervisor must check: a worker was given its last
        connection, or one that waited was given while no more are accepted."""
        self._needs_supervisor = False
        now = time.monotonic()
        is_full = self._run_round(now)
        if is_full != self._wakeup.wanted:
            self._wakeup.wanted = is_full
            if is_full:
                # A worker may have finished just before it could see the flag.
                is_full = self._run_round(now)
        self._acceptors.unwatch()
        self._set_due_at(now, is_full)
        return self._needs_supervisor

    def _run_round(self, now: float) -> bool:
        """One round; returns whether there is no room for more."""
        self._holds_copies = False
        free = []
        room = -len(self.waiting)
        for worker in self._workers:
            if worker.in_hand and (begun := worker.read_counters()):
                self._note_begun(begun)
            if worker.copies:
                self._holds_copies = True
            if worker.room > 0:
                free.append(worker)
                room += worker.room
        if now < self._retry_at:
            return True
        self._acceptors.resume(now)
        if room > 0 and self._acceptors.ready:
            room -= self._accept(room)
        if self.waiting and free:
            self._pass_on(free)
        return room <= 0

    def _note_begun(self, copies: Sequence[int]) -> None:
        self._done += copies
        self.begun += len(copies)

    def requeue(self, worker: WorkerProcess) -> None:
        """Queues what a dead worker had not begun, before all that came later."""
        self._note_begun(worker.read_counters())
        self.waiting.extendleft(reversed(worker.copies))

    def close_done(self) -> None:
        """Closes the copies that are no longer needed."""
        if self._done:
            # In ascending order neighbours are closed with one system call.
            self._done.sort()
            close_fds(self._done)
            self._done.clear()

    def drop_waiting(self) -> None:
        close_fds(fd for fd, _ in self.waiting)
        self.waiting.clear()

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        close_fds([*self._done, *(fd for fd, _ in self.waiting)])

    def _set_due_at(self, now: float, is_full: bool) -> None:
        self.due_at = float("inf") if is_full else self._acceptors.due_at
        if self._retry_at > now:
            self.due_at = self._retry_at
        elif self._acceptors.ready and not is_full:
            self.due_at = 0.0
        if self._holds_copies or is_full:
            # Usually a worker wakes the master before. Otherwise it polls more and more rarely.
            self.due_at = min(self.due_at, now + self._poll_interval)
            self._poll_interval = min(2 * self._poll_interval, _LONGEST_POLL)

    def _accept(self, room: int) -> int:
        before = len(self.waiting)
        try:
            self._acceptors.accept(room, self.waiting)
        except OSError as error:
            self._pause(f"cannot accept: {error.strerror}")
        return len(self.waiting) - before

    def _pause(self, reason: str) -> None:
        logger.warning("%s; trying again in %s s", reason, RETRY_DELAY)
        self._retry_at = time.monotonic() + RETRY_DELAY

    def _pass_on(self, free: list[WorkerProcess]) -> None:
        self._poll_interval = _SHORTEST_POLL
        self._holds_copies = True
        if not self._acceptors.is_open:
            self._needs_supervisor = True
        if len(free) == 1 or len(self.waiting) == 1:
            # The usual case, both under heavy load and without load.
            worker = free[0] if len(free) == 1 else min(free, key=_rank)
            count = min(worker.room, len(self.waiting))
            self._give(worker, [self.waiting.popleft() for _ in range(count)])
            return
        for worker, connections in self._divide(free).items():
            self._give(worker, connections)

    def _divide(self, free: list[WorkerProcess]) -> dict[WorkerProcess, list[Connection]]:
        """One connection at a time, each to the worker that then has the fewest."""
        heap = [(*_rank(worker), worker.pid, worker.room, worker) for worker in free]
        heapq.heapify(heap)
        shares: dict[WorkerProcess, list[Connection]] = {}
        while self.waiting and heap:
            in_hand, _, pid, room, worker = heap[0]
            self._turn += 1
            shares.setdefault(worker, []).append(self.waiting.popleft())
            if room > 1:
                heapq.heapreplace(heap, (in_hand + 1, self._turn, pid, room - 1, worker))
            else:
                heapq.heappop(heap)
        return shares

    def _give(self, worker: WorkerProcess, connections: list[Connection]) -> None:
        self._turn += 1
        worker.turn = self._turn
        sent, reason = worker.give(connections)
        if worker.needs_replacement:
            self._needs_supervisor = True
        if worker.channel.unsent:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(worker.channel, both, self._selector.get_key(worker.channel).data)
        if reason is not None:
            self.waiting.extendleft(reversed(connections[sent:]))
            if worker.room > 0:
                self._pause(f"cannot pass connections to worker {worker.pid}: {reason.strerror}")
