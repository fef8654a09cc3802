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
from fdpass_c.pool.config import Config
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.dispatch import Dispatcher
from fdpass_c.pool.log import logger
from fdpass_c.pool.service_manager import ServiceManager
from fdpass_c.pool.signals import Signals
from fdpass_c.pool.status import Phase, Status
from fdpass_c.pool.supervisor import Supervisor
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.watch import Watch
from fdpass_c.pool.worker import run_worker
from fdpass_c.pool.worker_process import WorkerProcess, WorkerSettings, fork_worker

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
        config: Config,
        signals: Signals,
        wakeup: Wakeup,
        acceptors: Acceptors,
        selector: selectors.BaseSelector,
        manager: ServiceManager,
        helpers: Sequence[Helper],
        ready: Ready | None,
    ) -> None:
        """Borrows all of them; the manager is one of the helpers."""
        self._config = config
        self._manager = manager
        self._ready = ready
        self._signals = signals
        self._wakeup = wakeup
        self._acceptors = acceptors
        self._selector = selector
        self._workers: list[WorkerProcess] = []
        self._dispatcher = Dispatcher(acceptors, self._workers, wakeup, selector)
        self._supervisor = Supervisor(
            self._workers,
            self._dispatcher,
            selector,
            self._start,
            config.workers,
            config.drain,
            config.start_timeout,
        )
        watch = Watch(self._workers, config, self._supervisor.replace_hanging)
        self._helpers = helpers
        self._timed: tuple[Timed, ...] = (*helpers, watch)
        self._random = random.Random()
        selector.register(wakeup, selectors.EVENT_READ, self._answer)

    def run(self) -> str:
        """Serves until it is to stop and all are done; returns why there could be no workers, or
        nothing."""
        try:
            self._obey_all()  # A stop may have come before.
            self._check_supervisor()
            self._acceptors.announce()
            while self._workers or self._dispatcher.waiting or not self._supervisor.stopping:
                self._take_turn()
        finally:
            self._supervisor.end_all()
            self._dispatcher.drop_waiting()
            self._dispatcher.close_done()
        return self._supervisor.failure

    def status(self) -> Status:
        described = [worker.describe() for worker in [*self._workers]]
        return Status(
            workers=tuple(sorted(described)),
            waiting=len(self._dispatcher.waiting),
            handled=self._supervisor.handled_before + sum(worker.handled for worker in described),
            failed=self._supervisor.failed_before + sum(worker.failed for worker in described),
            lost=self._supervisor.lost,
        )

    def _take_turn(self) -> None:
        alarm = min(self._supervisor.alarm, self._dispatcher.alarm, *(p.alarm for p in self._timed))
        wait = None if alarm == float("inf") else max(0.0, alarm - time.monotonic())
        for key, events in self._selector.select(wait):
            key.data(events)
        self._obey_all()
        now = time.monotonic()
        for part in self._timed:
            if now >= part.alarm:
                part.check()
        if now >= self._supervisor.alarm:
            self._check_supervisor()
        if self._dispatcher.distribute():
            self._supervisor.alarm = 0.0
        if not (self._acceptors.is_open or self._supervisor.stopping):
            self._supervisor.fail("no listener is left that accepts")
        self._dispatcher.close_done()

    def _check_supervisor(self) -> None:
        self._supervisor.check()
        if self._supervisor.stopping:
            self._acceptors.close()
        phase = self._supervisor.phase
        self._manager.follow(phase, self._supervisor.summarize())
        if phase is Phase.SERVING and self._ready is not None:
            ready, self._ready = self._ready, None
            ready(self._acceptors.addresses)

    def _answer(self, _events: int) -> None:
        self._wakeup.clear()
        self._supervisor.welcome()

    def _obey_all(self) -> None:
        for signum in self._signals.take():
            self._obey(signum)

    def _obey(self, signum: int) -> None:
        if signum == signal.SIGUSR1:
            logger.info("status\n%s", self.status().render())
        elif signum == signal.SIGHUP:
            self._supervisor.replace_all()
        elif signum == signal.SIGCHLD:
            self._supervisor.reap()
        elif signum == signal.SIGTTIN:
            self._supervisor.resize(1)
        elif signum == signal.SIGTTOU:
            self._supervisor.resize(-1)
        else:
            self._supervisor.stop()
            self._acceptors.close()

    def _start(self, slot: int, restarts: int) -> WorkerProcess:
        enough = float("inf")
        if most := self._config.max_requests:
            # Those that started together, and share evenly, are not all used up together.
            enough = most - self._random.randrange(most // 4 + 1)
        settings = WorkerSettings(slot, restarts, self._config.capacity, enough)
        return fork_worker(settings, self._forget, self._work)

    def _work(self, channel: Channel, counters: Counters) -> None:
        """In the worker."""
        run_worker(channel, counters, self._wakeup, self._config)

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
