"""The master: the loop that handles connections, workers and signals."""

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
from fdpass_c.pool.offers import Offers
from fdpass_c.pool.rounds import Rounds
from fdpass_c.pool.service_manager import ServiceManager
from fdpass_c.pool.signals import Signals
from fdpass_c.pool.status import Phase, Status
from fdpass_c.pool.supervisor import Supervisor
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.watch import Watch
from fdpass_c.pool.worker import run_worker
from fdpass_c.pool.worker_process import WorkerProcess, WorkerSettings, fork_worker

_LONGEST_WAIT = 3600.0
"""Seconds after which a wait ends: selectors refuse a timeout that is too long."""

Ready = Callable[[tuple[Any, ...]], object]
"""Called when every worker has started, with the addresses at which the pool listens."""


class Timed(Protocol):
    """A part of the master whose check() the loop calls when due_at, as time.monotonic, is
    reached."""

    due_at: float

    def check(self) -> None: ...


class Helper(Timed, Protocol):
    """A part of the master that also has descriptors. close_in_child() closes them in a worker."""

    def close_in_child(self) -> None: ...


class Master:
    """One run of a pool."""

    def __init__(
        self,
        config: Config,
        signals: Signals,
        wakeup: Wakeup,
        acceptors: Acceptors,
        offers: Offers | None,
        selector: selectors.BaseSelector,
        manager: ServiceManager,
        helpers: Sequence[Helper],
        ready: Ready | None,
    ) -> None:
        """Borrows its arguments. The manager is also one of the helpers."""
        self._config = config
        self._manager = manager
        self._ready = ready
        self._signals = signals
        self._wakeup = wakeup
        self._acceptors = acceptors
        self._offers = offers
        self._selector = selector
        self._workers: list[WorkerProcess] = []
        self._rounds = Rounds(selector, wakeup, offers, acceptors.nonblocking)
        self._dispatcher = Dispatcher(self._rounds, acceptors, self._workers, selector)
        self._supervisor = Supervisor(
            self._workers,
            self._rounds,
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

    def run(self) -> str:
        """Serves until it is stopped and all workers have ended. Returns why the pool could not
        serve any longer, or an empty string."""
        try:
            self._handle_signals()  # stop() may have been called before.
            self._check_supervisor()
            self._acceptors.log_addresses()
            while self._workers or self._rounds.waiting or not self._supervisor.stopping:
                self._run_once()
        finally:
            self._supervisor.kill_all()
            self._rounds.drop_waiting()
            self._rounds.close_done()
        return self._supervisor.failure

    def status(self) -> Status:
        counted = self._supervisor.counted
        described = [worker.describe() for worker in counted.workers]
        taken = sum(worker.count_just_taken() for worker in counted.workers)
        return Status(
            workers=tuple(sorted(described)),
            waiting=max(0, self._rounds.waiting - taken),
            handled=counted.handled + sum(worker.handled for worker in described),
            failed=counted.failed + sum(worker.failed for worker in described),
            lost=counted.lost,
        )

    def _run_once(self) -> None:
        due_at = min(self._supervisor.due_at, *[part.due_at for part in self._timed])
        if self._dispatcher.distribute(min(due_at, time.monotonic() + _LONGEST_WAIT)):
            self._supervisor.check_soon()
        for key, events in self._selector.select(0):
            key.data(events)
        self._supervisor.note_changes()
        self._handle_signals()
        now = time.monotonic()
        for part in self._timed:
            if now >= part.due_at:
                part.check()
        if not (self._acceptors.is_open or self._supervisor.stopping):
            self._supervisor.fail("no listener accepts any longer")
        if now >= self._supervisor.due_at:
            self._check_supervisor()

    def _check_supervisor(self) -> None:
        self._supervisor.check()
        if self._supervisor.stopping:
            self._acceptors.close()
        phase = self._supervisor.phase
        self._manager.follow(phase, self._supervisor.summarize())
        if phase is Phase.SERVING and self._ready is not None:
            ready, self._ready = self._ready, None
            ready(self._acceptors.addresses)

    def _handle_signals(self) -> None:
        for signum in self._signals.take():
            self._handle_signal(signum)

    def _handle_signal(self, signum: int) -> None:
        if signum == signal.SIGUSR1:
            logger.info("status\n%s", self.status().render())
        elif signum == signal.SIGHUP:
            phase = self._supervisor.phase
            self._supervisor.replace_all()
            if phase is Phase.SERVING:
                # Reported even if no worker was left to replace: the service manager waits for it.
                self._manager.follow(Phase.RELOADING, self._supervisor.summarize())
        elif signum == signal.SIGCHLD:
            self._supervisor.reap_exited()
        elif signum == signal.SIGTTIN:
            self._supervisor.resize(1)
        elif signum == signal.SIGTTOU:
            self._supervisor.resize(-1)
        else:
            self._supervisor.stop()

    def _start(self, slot: int, restarts: int) -> WorkerProcess:
        max_requests = float("inf")
        if limit := self._config.max_requests:
            # A random number, so that workers that started together are not replaced together.
            max_requests = limit - self._random.randrange(limit // 4 + 1)
        settings = WorkerSettings(slot, restarts, self._config.capacity, max_requests)
        return fork_worker(settings, self._workers, self._close_in_child, self._run_worker)

    def _run_worker(self, channel: Channel, counters: Counters) -> None:
        """Called in the worker."""
        kinds = self._acceptors.kinds
        run_worker(channel, counters, self._wakeup, self._offers, self._config, kinds)

    def _close_in_child(self) -> None:
        """In the worker: closes its copies of the master's descriptors."""
        with contextlib.suppress(OSError):  # A kqueue is not inherited.
            self._selector.close()
        self._wakeup.close_in_child()
        self._acceptors.close_in_child()
        for helper in self._helpers:
            helper.close_in_child()
        self._rounds.close_in_child()
        for worker in self._workers:
            worker.channel.close()
