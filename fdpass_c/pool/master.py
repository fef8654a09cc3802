"""The master: one loop, in which connections, workers and signals come."""

import contextlib
import random
import selectors
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fdpass_c.channel import Channel
from fdpass_c.pool.accepting import Acceptors
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.crew import Place, Worker, fork_worker
from fdpass_c.pool.dispatch import Dispatcher
from fdpass_c.pool.log import logger
from fdpass_c.pool.plan import Plan
from fdpass_c.pool.service_manager import ServiceManager
from fdpass_c.pool.signals import Signals
from fdpass_c.pool.staff import Staff
from fdpass_c.pool.status import Phase, Status
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.watch import Watch
from fdpass_c.pool.worker import run_worker

Ready = Callable[[tuple[Any, ...]], object]
"""What is told, once every worker has started, where the pool listens."""


class Timed(Protocol):
    """What has its turn in the loop: check is called at its alarm, as time.monotonic."""

    alarm: float

    def check(self) -> None: ...


class Helper(Timed, Protocol):
    """What holds descriptors too; forget is called in a worker, to close them."""

    def forget(self) -> None: ...


class Master:
    """One run of a pool."""

    def __init__(
        self,
        plan: Plan,
        signals: Signals,
        wakeup: Wakeup,
        acceptors: Acceptors,
        selector: selectors.BaseSelector,
        manager: ServiceManager,
        helpers: Sequence[Helper],
        ready: Ready | None,
    ) -> None:
        """Borrows all of them; the manager is one of the helpers."""
        self._plan = plan
        self._manager = manager
        self._ready = ready
        self._signals = signals
        self._wakeup = wakeup
        self._acceptors = acceptors
        self._selector = selector
        self._workers: list[Worker] = []
        self._dispatcher = Dispatcher(acceptors, self._workers, wakeup, selector)
        self._staff = Staff(
            self._workers,
            self._dispatcher,
            selector,
            self._start,
            plan.workers,
            plan.drain,
            plan.start_timeout,
        )
        watch = Watch(self._workers, plan, self._staff.replace_hanging)
        self._helpers = helpers
        self._timed: tuple[Timed, ...] = (*helpers, watch)
        self._random = random.Random()
        selector.register(wakeup, selectors.EVENT_READ, self._answer)

    def run(self) -> str:
        """Serves until it is to stop and all are done; returns why there could be no workers, or
        nothing."""
        try:
            self._obey_all()  # A stop may have come before.
            self._check_staff()
            self._acceptors.announce()
            while self._workers or self._dispatcher.waiting or not self._staff.stopping:
                self._take_turn()
        finally:
            self._staff.end_all()
            self._dispatcher.drop_waiting()
            self._dispatcher.close_done()
        return self._staff.failure

    def status(self) -> Status:
        described = [worker.describe() for worker in [*self._workers]]
        return Status(
            workers=tuple(sorted(described)),
            waiting=len(self._dispatcher.waiting),
            handled=self._staff.handled_before + sum(worker.handled for worker in described),
            failed=self._staff.failed_before + sum(worker.failed for worker in described),
            lost=self._staff.lost,
        )

    def _take_turn(self) -> None:
        alarm = min(self._staff.alarm, self._dispatcher.alarm, *(p.alarm for p in self._timed))
        wait = None if alarm == float("inf") else max(0.0, alarm - time.monotonic())
        for key, events in self._selector.select(wait):
            key.data(events)
        self._obey_all()
        now = time.monotonic()
        for part in self._timed:
            if now >= part.alarm:
                part.check()
        if now >= self._staff.alarm:
            self._check_staff()
        if self._dispatcher.distribute():
            self._staff.alarm = 0.0
        if not (self._acceptors.is_open or self._staff.stopping):
            self._staff.fail("no listener is left that accepts")
        self._dispatcher.close_done()

    def _check_staff(self) -> None:
        self._staff.check()
        if self._staff.stopping:
            self._acceptors.close()
        phase = self._staff.phase
        self._manager.follow(phase, self._staff.summarize())
        if phase is Phase.SERVING and self._ready is not None:
            ready, self._ready = self._ready, None
            ready(self._acceptors.addresses)

    def _answer(self, _events: int) -> None:
        self._wakeup.clear()
        self._staff.welcome()

    def _obey_all(self) -> None:
        for signum in self._signals.take():
            self._obey(signum)

    def _obey(self, signum: int) -> None:
        if signum == signal.SIGUSR1:
            logger.info("status\n%s", self.status().render())
        elif signum == signal.SIGHUP:
            self._staff.replace_all()
        elif signum == signal.SIGCHLD:
            self._staff.reap()
        elif signum == signal.SIGTTIN:
            self._staff.resize(1)
        elif signum == signal.SIGTTOU:
            self._staff.resize(-1)
        else:
            self._staff.stop()
            self._acceptors.close()

    def _start(self, slot: int, restarts: int) -> Worker:
        enough = float("inf")
        if most := self._plan.max_requests:
            # Those that started together, and share evenly, are not all used up together.
            enough = most - self._random.randrange(most // 4 + 1)
        place = Place(slot, restarts, self._plan.capacity, enough)
        return fork_worker(place, self._forget, self._work)

    def _work(self, channel: Channel, counters: Counters) -> None:
        """In the worker."""
        run_worker(channel, counters, self._wakeup, self._plan)

    def _forget(self) -> None:
        """In the worker: closes its copies of what is the master's."""
        with contextlib.suppress(OSError):  # A kqueue is not inherited.
            self._selector.close()
        self._wakeup.forget()
        self._acceptors.forget()
        for helper in self._helpers:
            helper.forget()
        self._dispatcher.forget()
        for worker in self._workers:
            worker.forget()
