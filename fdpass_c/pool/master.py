"""The master: accepts, passes on, and keeps the number of workers what was asked."""

import contextlib
import errno
import heapq
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from fdpass_c.descriptors import close_fds
from fdpass_c.errors import FdpassError
from fdpass_c.pool.crew import Connection, State, Worker, describe_exit, fork_worker
from fdpass_c.pool.listeners import Address, Intake, describe_listener, open_listener
from fdpass_c.pool.status import Status
from fdpass_c.pool.tally import Tally
from fdpass_c.pool.worker import Handler, logger, run_worker

_FAILED_STARTS = 5
"""Workers in a row that may die at start, or before they begin any of what they were given; the
next attempt waits twice as long each time."""

_FIRST_DELAY = 0.05

_REST = 0.05
"""Seconds until the next attempt where a limit of the system is reached."""

_LEAST_PATIENCE, _MOST_PATIENCE = 0.005, 1.0
"""Seconds after which the master sees for itself whether a worker has begun."""

_SHORT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class PoolError(FdpassError):
    """Workers die at start again and again. Those that ran have finished what they had."""


class Pool:
    """Workers, each a forked process, that get connections while they are free.

    handler(sock, address) runs in a worker. sock: a connected socket.socket, blocking, closed
    when the handler returns or raises; detach() it to keep the descriptor. address: the peer's,
    as from socket.accept. A coroutine function gets a non-blocking socket, and runs in an event
    loop beside others of the same worker. An exception is logged, and the worker goes on.

    A connection is begun when a worker has taken it from its queue. One that is given to a worker
    but not begun when that dies goes to another worker; one that is begun is lost with it.
    """

    def __init__(
        self,
        handler: Handler,
        workers: int,
        capacity: int = 1,
        *,
        max_requests: int | None = None,
        drain: float = 30.0,
        setup: Callable[[], object] | None = None,
    ) -> None:
        """workers: how many processes. capacity: how many connections a worker has in hand at most.

        With a plain function a capacity over 1 is a queue in the worker: fewer system calls a
        connection, but a short one waits behind a long one. max_requests: a worker is replaced
        after so many connections; None for never. drain: seconds that a worker has to finish
        when it is to stop or to be replaced; then it is killed. setup: called in each worker
        before its first connection; one that raises is a worker that died at start.

        ValueError: workers, capacity or max_requests below 1, or a negative drain.
        """
        if workers < 1 or capacity < 1 or (max_requests is not None and max_requests < 1):
            raise ValueError(
                "workers, capacity and max_requests are at least 1, "
                f"got {workers}, {capacity} and {max_requests}"
            )
        if drain < 0:
            raise ValueError(f"drain is a number of seconds, not negative, got {drain}")
        self._handler = handler
        self._slots = workers
        self._capacity = capacity
        self._max_requests = max_requests
        self._drain = drain
        self._setup = setup
        self._workers: list[Worker] = []
        self._waiting: deque[Connection] = deque()
        self._close_soon: list[int] = []
        self._handled_before = self._lost = 0
        self._signals: deque[int] = deque()
        self._wake_fds: tuple[int, ...] = ()

    # -- from outside ----------------------------------------------------------------------------

    def serve(self, *listeners: socket.socket | Address) -> None:
        """Accepts and passes on until SIGTERM, SIGINT or stop(); then drains and returns.

        listeners: at least one. A socket.socket that listens is borrowed, and non-blocking while
        the pool serves; an Address is opened, and closed at the end.

        Call it in the main thread. It handles signals and puts the handlers back when it returns:
        SIGTERM and SIGINT stop accepting and let workers finish, a second one kills them; SIGHUP
        is reload(); SIGUSR1 logs the status table.

        PoolError: workers die at start again and again. ValueError: no listener, an address of no
        known form, or another thread than the main one. OSError: as for socket.bind.
        """
        if not listeners:
            raise ValueError("a pool needs at least one listener")
        self._own: list[socket.socket] = []
        self._intakes: deque[Intake] = deque()
        with ExitStack() as stack:
            self._selector = stack.enter_context(selectors.DefaultSelector())
            stack.callback(self._stop_accepting)
            opened = [self._open(listener) for listener in listeners]
            stack.enter_context(self._handling_signals())
            self._intakes.extend(Intake(sock, self._selector) for sock in opened)
            self._start()
            for sock in opened:
                logger.info("listening at %s", describe_listener(sock))
            try:
                while self._workers or self._waiting or not self._stopping:
                    self._take_turn()
            finally:
                self._end_all()
        if self._failure:
            raise PoolError(self._failure)

    def stop(self) -> None:
        """Has serve() drain and return, as SIGTERM does. From any thread or signal handler."""
        self._signal(signal.SIGTERM)

    def reload(self) -> None:
        """Replaces the workers one by one while the pool serves on, as SIGHUP does.

        A worker's successor is ready before it stops taking connections. From any thread or
        signal handler.
        """
        self._signal(signal.SIGHUP)

    def status(self) -> Status:
        """What the pool is doing. From any thread of the master or a signal handler."""
        workers = [*self._workers]
        described = [worker.describe(self._capacity) for worker in workers]
        return Status(
            workers=tuple(sorted(described)),
            waiting=len(self._waiting),
            handled=self._handled_before + sum(worker.handled for worker in described),
            lost=self._lost,
        )

    # -- one turn --------------------------------------------------------------------------------

    def _start(self) -> None:
        self._stopping = False
        self._stop_by = float("inf")
        self._failure = ""
        self._failed_starts = 0
        self._start_at = self._rest_until = 0.0
        self._turn = 0
        self._restarts = [-1] * self._slots
        self._outdated: deque[Worker] = deque()
        self._may_accept = self._copies_out = False
        self._patience = _LEAST_PATIENCE
        self._staff()

    def _take_turn(self) -> None:
        for key, events in self._selector.select(self._find_timeout()):
            if type(key.data) is Worker:
                if key.data.channel.closed:
                    continue  # Found dead earlier in this turn.
                if events & selectors.EVENT_WRITE and key.data.flush():
                    self._selector.modify(key.fd, selectors.EVENT_READ, key.data)
                if events & selectors.EVENT_READ:
                    self._hear(key.data)
            elif type(key.data) is Intake:
                key.data.ready = True
            else:
                os.read(key.fd, 4096)
                self._reap()
        self._look()
        while self._signals:
            self._obey(self._signals.popleft())
        if self._changed or time.monotonic() >= self._alarm:
            self._staff()
        self._distribute()
        if self._close_soon:
            # In ascending order neighbours are closed with one system call.
            self._close_soon.sort()
            close_fds(self._close_soon)
            self._close_soon.clear()

    def _find_timeout(self) -> float | None:
        if self._changed or (self._may_accept and any(intake.ready for intake in self._intakes)):
            return 0
        first = min(self._alarm, self._rest_until or self._alarm)
        wait = None if first == float("inf") else max(0.0, first - time.monotonic())
        if self._copies_out:
            # Usually somebody is done before; else these looks become rare.
            wait = self._patience if wait is None else min(wait, self._patience)
            self._patience = min(2 * self._patience, _MOST_PATIENCE)
        return wait

    def _look(self) -> None:
        """Sees how far the workers are, those that said nothing too."""
        self._copies_out = False
        for worker in self._workers:
            if worker.in_hand:
                if done := worker.look():
                    self._close_soon += done
                    self._failed_starts = 0
                if worker.copies:
                    self._copies_out = True

    def _obey(self, signum: int) -> None:
        if signum == signal.SIGUSR1:
            logger.info("status\n%s", self.status().render())
        elif signum == signal.SIGHUP:
            logger.info("replacing the workers")
            self._outdated = deque(w for w in self._workers if w.state is not State.LEAVING)
        elif self._stopping:
            self._stop_by = 0.0
        else:
            self._drain_all()
        self._changed = True

    def _drain_all(self) -> None:
        logger.info("stopping")
        self._stopping = True
        self._stop_by = time.monotonic() + self._drain
        self._outdated.clear()
        self._stop_accepting()

    def _stop_accepting(self) -> None:
        for intake in self._intakes:
            intake.close()
        self._intakes.clear()
        for sock in self._own:
            if sock.family == socket.AF_UNIX:
                # While it listens, nobody else can have put a socket of theirs there.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(sock.getsockname())
            sock.close()
        self._own.clear()

    # -- connections -----------------------------------------------------------------------------

    def _distribute(self) -> None:
        """Accepts what there is room for, and gives each to the worker with the least in hand."""
        if self._rest_until:
            if time.monotonic() < self._rest_until:
                return
            self._rest_until = 0.0
        takers = []
        room = -len(self._waiting)
        for worker in self._workers:
            if worker.in_hand < self._capacity and worker.state is State.READY:
                free = self._capacity - worker.in_hand
                if self._max_requests is not None:
                    free = min(free, self._max_requests - worker.given)
                room += free
                # Among equals comes first who has waited longest.
                takers.append((worker.in_hand, worker.turn, worker.pid, free, worker))
        if room > 0:
            room -= self._accept(room)
        self._may_accept = room > 0 and not self._rest_until
        for intake in self._intakes:
            intake.watch(self._may_accept and not intake.ready)
        if self._waiting and takers:
            self._pass_on(takers)
            self._changed |= self._stopping

    def _accept(self, room: int) -> int:
        ready = [intake for intake in self._intakes if intake.ready]
        if not ready:
            return 0
        # Each listener gets its share of the room, and the first of the turn what is left over.
        self._intakes.rotate()
        accepted = 0
        for number, intake in enumerate(ready):
            share = -(-(room - accepted) // (len(ready) - number))
            try:
                connections = intake.accept(share)
            except OSError as error:
                if error.errno not in _SHORT_OF:
                    raise
                connections = error.accepted  # type: ignore[attr-defined]
                self._rest(f"cannot accept: {error.strerror}")
            self._waiting.extend(connections)
            accepted += len(connections)
        return accepted

    def _rest(self, reason: str) -> None:
        logger.warning("%s; trying again in %s s", reason, _REST)
        self._rest_until = time.monotonic() + _REST
        self._may_accept = False

    def _pass_on(self, takers: list[tuple[int, int, int, int, Worker]]) -> None:
        if len(takers) == 1 or len(self._waiting) == 1:
            # Nothing to weigh, which is usual both under a flood and without one.
            _, _, _, free, worker = min(takers)
            self._turn += 1
            worker.turn = self._turn
            count = min(free, len(self._waiting))
            self._give(worker, [self._waiting.popleft() for _ in range(count)])
            return
        heapq.heapify(takers)
        shares: dict[Worker, list[Connection]] = {}
        while self._waiting and takers:
            in_hand, _, pid, room, worker = takers[0]
            self._turn += 1
            worker.turn = self._turn
            shares.setdefault(worker, []).append(self._waiting.popleft())
            if room > 1:
                heapq.heapreplace(takers, (in_hand + 1, self._turn, pid, room - 1, worker))
            else:
                heapq.heappop(takers)
        for worker, connections in shares.items():
            self._give(worker, connections)

    def _give(self, worker: Worker, connections: list[Connection]) -> None:
        self._patience = _LEAST_PATIENCE
        self._copies_out = True
        given = worker.given
        reason = worker.give(connections)
        if worker.channel.unsent:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(worker.channel, both, worker)
        if reason is not None:
            self._waiting.extendleft(reversed(connections[worker.given - given :]))
            # One that has gone is about to be noticed.
            if not isinstance(reason, (BrokenPipeError, ConnectionResetError)):
                self._rest(f"cannot pass connections to worker {worker.pid}: {reason.strerror}")
        if self._max_requests is not None and worker.given >= self._max_requests:
            worker.retire(self._drain)
            self._changed = True

    # -- workers ---------------------------------------------------------------------------------

    def _staff(self) -> None:
        """Ends those whose time is over, starts those that are missing, and sets the alarm."""
        self._changed = False
        now = time.monotonic()
        hopeless = self._failure and all(w.state is State.LEAVING for w in self._workers)
        if self._waiting and (hopeless or now >= self._stop_by):
            logger.warning("dropping %d connections that nobody took", len(self._waiting))
            self._drop_waiting()
        for worker in [*self._workers]:
            if now >= min(worker.leave_by, self._stop_by):
                logger.warning("worker %d did not finish in time", worker.pid)
                self._bury(worker)
        if self._stopping and not self._waiting:
            for worker in self._workers:
                if worker.state is not State.LEAVING:
                    worker.retire(self._stop_by - now)
        missing = self._find_missing()
        if now >= self._start_at:
            for slot in missing:
                self._spawn(slot)
            missing = []
        moments = [worker.leave_by for worker in self._workers]
        self._alarm = min([*moments, self._stop_by, *([self._start_at] if missing else [])])

    def _find_missing(self) -> list[int]:
        """The slots that need a worker: nobody's, and that of the next one to be replaced."""
        active = [worker for worker in self._workers if worker.state is not State.LEAVING]
        if self._stopping:
            return [0] if self._waiting and not active else []
        missing = [*({*range(self._slots)} - {worker.slot for worker in active})]
        while self._outdated and self._outdated[0] not in active:
            self._outdated.popleft()
        if self._outdated and not missing and all(w.state is State.READY for w in active):
            missing = [self._outdated[0].slot]
        return missing

    def _spawn(self, slot: int) -> None:
        self._restarts[slot] += 1
        try:
            worker = fork_worker(slot, self._restarts[slot], self._forget, self._work)
        except OSError as error:
            self._count_failed_start(f"cannot start a worker: {error.strerror}")
            return
        self._workers.append(worker)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        logger.info("worker %d started", worker.pid)

    def _work(self, sock: socket.socket, tally: Tally) -> None:
        """In the worker."""
        if self._setup is not None:
            self._setup()
        run_worker(sock, tally, self._handler, self._capacity)

    def _forget(self) -> None:
        """In the worker: closes its copies of what is the master's."""
        with contextlib.suppress(OSError):  # A kqueue is not inherited.
            self._selector.close()
        close_fds([*self._wake_fds, *self._close_soon])
        for intake in self._intakes:
            intake.forget()
        for worker in self._workers:
            worker.channel.close()
            close_fds(fd for fd, _ in worker.copies)
        close_fds(fd for fd, _ in self._waiting)

    def _hear(self, worker: Worker) -> None:
        try:
            alive = worker.hear()
        except BlockingIOError:
            return
        if not alive:
            self._bury(worker)
            return
        if worker.state is State.STARTING:
            worker.state = State.READY
            if not self._waiting:
                self._failed_starts = 0
            for other in self._workers:
                if other.slot == worker.slot and other.state is State.READY and other != worker:
                    other.retire(self._drain)
            self._changed = True

    def _reap(self) -> None:
        """Finds the workers whose end nobody hears of, because a child of theirs lives on."""
        for worker in [*self._workers]:
            if worker.has_exited():
                self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        """Ends a worker; what it had not begun waits for another, before all that came later."""
        status = worker.end()
        self._close_soon += worker.look()
        self._selector.unregister(worker.channel)
        worker.channel.close()
        self._workers.remove(worker)
        self._changed = True
        lost = worker.tally.begun - worker.tally.handled
        self._handled_before += worker.tally.handled
        self._lost += lost
        self._waiting.extendleft(reversed(worker.copies))
        ended = f"worker {worker.pid} {describe_exit(status)}"
        if worker.state is State.LEAVING and status == 0 and not lost and not worker.copies:
            logger.info("%s", ended)
            return
        logger.warning("%s: %d connections lost, %d go to others", ended, lost, len(worker.copies))
        if worker.state is State.STARTING or (worker.copies and not worker.tally.begun):
            self._count_failed_start(ended)

    def _count_failed_start(self, reason: str) -> None:
        self._changed = True
        self._failed_starts += 1
        self._start_at = time.monotonic() + _FIRST_DELAY * 2 ** (self._failed_starts - 1)
        if self._failed_starts < _FAILED_STARTS or self._stopping:
            return
        failure = (
            f"{_FAILED_STARTS} workers in a row died before they began anything, the last: {reason}"
        )
        if self._outdated:
            logger.error("%s; the old workers stay", failure)
            self._outdated.clear()
            self._failed_starts = 0
        else:
            self._failure = failure
            self._drain_all()

    # -- resources -------------------------------------------------------------------------------

    def _open(self, listener: socket.socket | Address) -> socket.socket:
        if isinstance(listener, socket.socket):
            return listener
        self._own.append(open_listener(listener))
        return self._own[-1]

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        self._wake_fds = reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._selector.register(reader, selectors.EVENT_READ)
        self._signals.clear()
        handlers = {}
        wakeup = -1
        try:
            wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                handlers[signum] = signal.signal(signum, lambda n, _: self._signals.append(n))
            # Written to the pipe, which is all that is wanted.
            handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _n, _frame: None)
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            if handlers:
                signal.set_wakeup_fd(wakeup)
            self._wake_fds = ()
            os.close(reader)
            os.close(writer)

    def _signal(self, signum: int) -> None:
        self._signals.append(signum)
        with contextlib.suppress(BlockingIOError):
            for fd in self._wake_fds[1:]:
                os.write(fd, b"\0")

    def _drop_waiting(self) -> None:
        close_fds(fd for fd, _ in self._waiting)
        self._waiting.clear()

    def _end_all(self) -> None:
        for worker in [*self._workers]:
            self._bury(worker)
        self._drop_waiting()
        close_fds(self._close_soon)
        self._close_soon.clear()
