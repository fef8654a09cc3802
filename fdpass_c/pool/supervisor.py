"""Keeps the number of workers constant: starts, replaces and reaps them."""

import contextlib
import errno
import os
import selectors
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from fdpass_c.pool import failed_starts
from fdpass_c.pool.exits import Exits
from fdpass_c.pool.failed_starts import FailedStarts
from fdpass_c.pool.log import logger
from fdpass_c.pool.rounds import Rounds
from fdpass_c.pool.slots import Slots
from fdpass_c.pool.status import Phase
from fdpass_c.pool.worker_process import State, WorkerProcess, describe_exit

_GRACE = 1.0
"""Seconds in which a worker that is still starting, that hangs, or that was killed must end."""

_CHECK_INTERVAL = 1.0
"""Seconds between two checks at most, while a worker has a deadline."""


class Counted(NamedTuple):
    """Values that another thread must read together. Otherwise it could count the connections of a
    worker that has just ended twice, or not at all.

    workers: the living workers. handled, failed: the counts of the workers that have ended. lost:
    how many connections workers had begun when they died.
    """

    workers: tuple[WorkerProcess, ...] = ()
    handled: int = 0
    failed: int = 0
    lost: int = 0


class Supervisor:
    """Starts, replaces and ends workers.

    due_at: when check is to be called if nothing happens before, as time.monotonic. failure: why
    the pool cannot serve, or an empty string. counted: replaced whenever a worker starts or ends.
    """

    def __init__(
        self,
        workers: list[WorkerProcess],
        rounds: Rounds,
        selector: selectors.BaseSelector,
        start: Callable[[int, int], WorkerProcess],
        slots: int,
        drain: float,
        start_timeout: float,
    ) -> None:
        """workers: an empty list, which the supervisor keeps up to date. start: a function of a
        slot and the number of workers that had it before, which appends a new worker to workers. It
        raises an OSError if the system cannot start a process. drain, start_timeout: seconds that a
        worker may take to finish and to start."""
        self.due_at: float = time.monotonic()
        self.stopping: bool = False
        self._gave_up = False
        self._told_to_stop = False
        self.failure: str = ""
        self.counted: Counted = Counted()
        self._workers = workers
        self._rounds = rounds
        self._selector = selector
        self._start = start
        self._drain = drain
        self._start_timeout = start_timeout
        self._slots = Slots(workers, slots)
        self._exits = Exits(workers)
        self._stop_deadline = float("inf")
        self._failed_starts = FailedStarts()

    @property
    def phase(self) -> Phase:
        if self.stopping:
            return Phase.STOPPING
        if not self._slots.were_filled:
            return Phase.STARTING
        if self._slots.is_reloading:
            return Phase.RELOADING
        return Phase.SERVING

    def summarize(self) -> str:
        """Returns one line for people."""
        ready = sum(worker.serves for worker in self._workers)
        lost = f", {self.counted.lost} connections lost" if self.counted.lost else ""
        return f"{self.phase.value}, {ready} of {self._slots.count} workers ready{lost}"

    def check(self) -> None:
        """Ends the workers whose time is over, starts missing ones, and sets due_at."""
        now = time.monotonic()
        self._postpone_deadlines(now - self.due_at)
        self.due_at = float("inf")
        waiting = self._rounds.waiting
        no_worker_left = self._gave_up and not self._slots.active
        if waiting and (no_worker_left or now >= self._stop_deadline):
            logger.warning("dropping %d connections that no worker took", waiting)
            self._rounds.drop_waiting()
        for worker in [*self._workers]:
            if now >= self._find_deadline(worker):
                self._end_late(worker)
        for worker in self._slots.active:
            if not worker.was_killed:
                self._dismiss_if_due(worker)
        is_complete = self._start_missing(now)
        self._set_due_at(now, is_complete)

    def _end_late(self, worker: WorkerProcess) -> None:
        if not worker.was_killed:
            verb = "start" if worker.state is State.STARTING else "finish"
            logger.warning("worker %d did not %s in time", worker.pid, verb)
        self._end(worker)

    def _dismiss_if_due(self, worker: WorkerProcess) -> None:
        """Lets a worker finish, or marks it as to be replaced, if it is time for that."""
        if self.stopping and self._rounds.waiting:
            # It still gets the waiting connections. Its handlers must close each connection after
            # the current request.
            worker.counters.leave()
        elif self.stopping or worker.settings.slot >= self._slots.count:
            worker.drain(_GRACE if worker.state is State.STARTING else self._drain)
        elif worker.account.is_used_up:
            self._slots.replace(worker)

    def check_soon(self) -> None:
        """Makes the master's loop call check next."""
        self.due_at = min(self.due_at, time.monotonic())

    def _postpone_deadlines(self, late: float) -> None:
        """late: by how many seconds the check comes too late, because the master did not run. That
        time does not count, because the workers may have been suspended too."""
        if late > 0:
            self._stop_deadline += late
            for worker in self._workers:
                worker.deadline += late

    def _find_deadline(self, worker: WorkerProcess) -> float:
        """When it is to be killed, or to be looked at again after that."""
        return worker.deadline if worker.was_killed else min(worker.deadline, self._stop_deadline)

    def _start_missing(self, now: float) -> bool:
        """Returns whether all slots have workers."""
        missing = self._find_missing()
        if now >= self._failed_starts.retry_at:
            while missing and self._spawn(missing[0]):
                missing = self._find_missing()
        if not missing:
            self._slots.note_filled()
        return not missing

    def _find_missing(self) -> list[int]:
        if not self.stopping:
            return self._slots.find_missing()
        return [0] if self._rounds.waiting and not self._slots.active else []

    def _set_due_at(self, now: float, is_complete: bool) -> None:
        moments = [self._find_deadline(worker) for worker in self._workers]
        if not is_complete:
            moments.append(self._failed_starts.retry_at)
        if now < self._stop_deadline:
            moments.append(self._stop_deadline)
        if (due_at := min(moments, default=float("inf"))) < float("inf"):
            self.due_at = min(self.due_at, due_at, now + _CHECK_INTERVAL)

    def _spawn(self, slot: int) -> bool:
        try:
            worker = self._start_watched(slot)
        except OSError as error:
            reason = f"cannot start a worker: {error.strerror}"
            logger.warning("%s", reason)
            if any(worker.state is State.READY for worker in self._workers):
                # Other workers serve, and the system may have room later, so the pool goes on.
                self._failed_starts.postpone(self._list_ready_at())
            else:
                self._count_failed_start(reason)
            return False
        self._slots.note_started(slot)
        worker.deadline = time.monotonic() + self._start_timeout
        self.counted = self.counted._replace(workers=(*self._workers,))
        self._rounds.add(worker.account)
        logger.info("worker %d started", worker.pid)
        return True

    def _start_watched(self, slot: int) -> WorkerProcess:
        """Starts a worker and watches its channel. OSError: as from _start, and ENOMEM or ENOSPC if
        the selector has no room."""
        worker = self._start(slot, self._slots.count_restarts(slot))
        # If the selector already watches this number, it is that of a socket that other code has
        # closed.
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.channel.fileno())
        try:
            self._selector.register(
                worker.channel, selectors.EVENT_READ, partial(self._on_event, worker)
            )
        except OSError:
            self._workers.remove(worker)
            self._exits.wait_later(worker)
            worker.kill()
            worker.channel.close()
            raise
        return worker

    def _on_event(self, worker: WorkerProcess, events: int) -> None:
        """Called when the worker's channel is at its end, or has room for unsent bytes."""
        if worker.channel.closed:
            return  # The worker was reaped earlier in this round.
        if events & selectors.EVENT_WRITE and worker.flush():
            self._selector.modify(
                worker.channel, selectors.EVENT_READ, partial(self._on_event, worker)
            )
        if events & selectors.EVENT_READ:
            # Workers send nothing, so the channel is at its end, which would be reported again.
            self._selector.unregister(worker.channel)
            self._end(worker)

    def note_changes(self) -> None:
        """Reacts to what workers have said in their counters. A worker that is now ready gets
        connections, and its predecessor is stopped. A worker that ends gets no more, and other
        workers get those that it has not begun."""
        for worker in self._workers:
            if worker.was_killed:
                continue
            if worker.state is State.STARTING and worker.counters.has_started:
                self._mark_ready(worker)
            elif worker.counters.is_ending and (worker.serves or worker.account.has_copies):
                if worker.serves:
                    worker.end_early(self._drain)
                worker.given_back += self._rounds.take_back(worker.account)
                self.check_soon()

    def _mark_ready(self, worker: WorkerProcess) -> None:
        worker.mark_ready()
        for other in self._workers:
            if (
                other.settings.slot == worker.settings.slot
                and other.state is State.READY
                and other != worker
            ):
                other.drain(self._drain)
        self.check_soon()

    def replace_all(self) -> None:
        """Replaces the workers one by one. Each stops taking connections when its successor is
        ready."""
        logger.info(
            "replacing the workers; the new ones run the code that the master has already imported"
        )
        self._slots.replace_all()
        self.check_soon()

    def replace_hanging(self, worker: WorkerProcess) -> None:
        """Sends SIGABRT to a worker, which then writes its tracebacks and ends. A suspended worker
        cannot do that, and is killed after _GRACE seconds."""
        logger.warning("worker %d makes no progress", worker.pid)
        worker.abort(_GRACE)
        self.check_soon()

    def resize(self, change: int) -> None:
        """Adds change to the number of workers. At least one stays."""
        self._slots.resize(change)
        self.check_soon()

    def stop(self) -> None:
        """Lets all workers finish. The second call kills them."""
        if self._told_to_stop:
            self._stop_deadline = 0.0
        self._told_to_stop = True
        self._begin_to_stop()

    def _begin_to_stop(self) -> None:
        if not self.stopping:
            logger.info("stopping")
            self.stopping = True
            self._stop_deadline = time.monotonic() + self._drain
            self._slots.replace_none()
        self.check_soon()

    def fail(self, reason: str) -> None:
        """Stops the pool, because no worker or no listener is left."""
        self.failure = reason
        self._begin_to_stop()

    def reap_exited(self) -> None:
        """Finds workers that have ended although a child process keeps their channel open."""
        for worker in self._exits.find():
            self.reap(worker)

    def _end(self, worker: WorkerProcess) -> None:
        """Kills a worker. It is reaped as soon as it has ended, or else after a second."""
        worker.kill()
        self.due_at = min(self.due_at, worker.deadline)
        if worker.has_exited():
            self.reap(worker)
        elif time.monotonic() >= worker.killed_at + _GRACE:
            if worker.is_ours or self.stopping:
                # After SIGKILL, a process runs no more of its program, even if it ends late.
                self._exits.wait_later(worker)
                self.reap(worker)
            else:
                self._spare(worker)

    def _spare(self, worker: WorkerProcess) -> None:
        """Lets a worker finish that the system does not let the master kill. It keeps the
        connections that it has not begun."""
        reason = f"worker {worker.pid} cannot be killed: {os.strerror(errno.EPERM)}"
        logger.warning("%s", reason)
        was_starting = worker.state is State.STARTING
        worker.spare()
        self.check_soon()
        if was_starting:
            self._count_failed_start(reason)

    def reap(self, worker: WorkerProcess) -> None:
        """Removes a worker that has ended, or will do nothing more, and gives the connections that
        it had not begun to other workers. May be repeated if a signal handler has raised an
        exception in it."""
        status = worker.wait_status
        worker.given_back += self._rounds.remove(worker.account)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(worker.channel)
        worker.channel.close()
        lost = worker.account.begun - worker.account.handled
        if worker in self.counted.workers:
            self.counted = Counted(
                tuple(other for other in self._workers if other is not worker),
                self.counted.handled + worker.account.handled,
                self.counted.failed + worker.counters.failed,
                self.counted.lost + lost,
            )
        self._workers.remove(worker)
        self._slots.remove(worker)
        self.check_soon()
        ended = f"worker {worker.pid} {describe_exit(status)}"
        if worker.state is State.LEAVING and status == 0 and not lost and not worker.given_back:
            logger.info("%s", ended)
            return
        others = "%s: %d connections lost, %d go to other workers"
        logger.warning(others, ended, lost, worker.given_back)
        if worker.state is State.LEAVING or worker.account.begun:
            return
        if worker.given_back or time.monotonic() < worker.ready_at + failed_starts.STABLE_AFTER:
            self._count_failed_start(ended)

    def _list_ready_at(self) -> list[float]:
        return [worker.ready_at for worker in self._workers]

    def _count_failed_start(self, reason: str) -> None:
        ready_at = self._list_ready_at()
        if not self._failed_starts.add(self._rounds.begun, ready_at) or self.stopping:
            return
        failure = (
            f"{failed_starts.LIMIT} workers in a row died before they began a connection, "
            f"or could not be started; the last one: {reason}"
        )
        if what_stays := self._slots.undo_change():
            logger.error("%s; %s", failure, what_stays)
            self._failed_starts.reset()
        else:
            self._gave_up = True
            self.fail(failure)

    def kill_all(self) -> None:
        """Kills all workers, and waits a second from then on for those that end late."""
        self._exits.note_found()
        for worker in self._workers:
            worker.kill()
        self._exits.wait(_GRACE)
        for worker in [*self._workers]:
            self.reap(worker)
