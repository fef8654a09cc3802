"""One worker, as the master sees it: its connections, its state, its exit status."""

import contextlib
import enum
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from itertools import repeat, starmap, takewhile
from typing import NamedTuple

from fdpass_c.channel import Channel
from fdpass_c.pool import leaving
from fdpass_c.pool.connections import Account
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.ending import end_process, flush_streams
from fdpass_c.pool.log import logger
from fdpass_c.pool.multiprocess import begin_multiprocessing
from fdpass_c.pool.status import WorkerStatus
from fdpass_c.pool.worker import leave_signals_to_master

Work = Callable[[Channel, Counters], None]
"""What a worker runs, with its end of the channel."""


TAKEN = -1
"""Stands for a wait status that other code in this process has taken, with waitpid(-1)."""


class State(enum.Enum):
    STARTING = enum.auto()
    READY = enum.auto()
    LEAVING = enum.auto()


class WorkerSettings(NamedTuple):
    """What a worker is started with.

    slot: the number of its place, which its successor gets too. restarts: how many workers had the
    slot before. capacity: the most connections in hand. max_requests: it is replaced after that
    many connections.
    """

    slot: int
    restarts: int
    capacity: int
    max_requests: float


class WorkerProcess:
    """A forked process, as the master sees it.

    deadline: when it must have started or finished. ready_at: when it had started. Both as
    time.monotonic. given_back: how many connections others got because it ended.
    """

    def __init__(self, settings: WorkerSettings, sock: socket.socket, counters: Counters) -> None:
        """Must be made before the fork, after which nothing may fail. Takes ownership of sock, the
        master's side of the connection to the worker."""
        self.settings = settings
        self._pids: list[int] = []
        self.state: State = State.STARTING
        self.counters = counters
        self._started_at = time.monotonic()
        self._busy = 0.0
        self.deadline: float = float("inf")
        self.ready_at: float = float("inf")
        self.given_back: int = 0
        self._waited: list[tuple[int, int]] = []
        self._sock = sock
        self.channel: Channel = Channel(sock)
        self.channel.setblocking(False)
        self.account: Account = Account(counters, self.channel, settings.max_requests)

    @property
    def pid(self) -> int:
        """0 before the fork, and in the child."""
        return sum(self._pids)

    def fork(self) -> None:
        # No bytecode is between the call and the list, where a signal handler could raise.
        self._pids.extend(starmap(os.fork, [()]))

    @property
    def needs_replacement(self) -> bool:
        """Whether it must be replaced. It serves until its successor is ready."""
        return self.account.is_used_up

    def postpone_replacement(self) -> None:
        """There is no successor: it will be replaced after as many connections again."""
        given = self.account.given + self.account.taken
        self.account.set_most(given + self.settings.max_requests)

    @property
    def serves(self) -> bool:
        """Whether it has started and gets connections."""
        return self.state is State.READY and self.account.is_open

    def mark_ready(self) -> None:
        """The worker has started."""
        self.deadline = float("inf")
        self.ready_at = time.monotonic()
        self.account.set_capacity(self.settings.capacity)
        self.state = State.READY

    def end_early(self, timeout: float) -> None:
        """It ends although it was not told to: a handler called sys.exit. It must have ended within
        timeout seconds, and keeps its slot until then: else many could be ending if every handler
        does that."""
        self.account.set_capacity(0)
        self.deadline = time.monotonic() + timeout

    def drain(self, timeout: float) -> None:
        """Makes it finish what it was given and exit, within timeout seconds."""
        self.state = State.LEAVING
        self.account.set_capacity(0)
        self.deadline = time.monotonic() + timeout
        self.counters.leave()
        self.flush()

    def abort(self, grace: float) -> None:
        """Sends SIGABRT. If the worker still runs after grace seconds, it is killed."""
        self.drain(min(grace, self.deadline - time.monotonic()))
        self._send_signal(signal.SIGABRT)

    def flush(self) -> bool:
        """Sends what did not fit into the buffer before. Returns whether nothing is left to
        send."""
        try:
            self.channel.flush()
            if self.state is State.LEAVING:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_WR)
        except (BlockingIOError, ConnectionError):
            pass
        except OSError as error:
            # No event would report when to try again. Others get what it has not begun.
            logger.warning("cannot send to worker %d: %s", self.pid, error.strerror)
            self._send_signal(signal.SIGKILL)
        return not self.channel.unsent

    def has_exited(self) -> bool:
        if not self._waited:
            self._wait(os.WNOHANG)
        return self._waited != []

    def note_exit(self, status: int) -> None:
        """Another has waited for it, and got this wait status."""
        self._waited = [(self.pid, status)]

    def kill(self) -> int:
        """Kills it if it still runs, and waits for it. Returns its wait status, or TAKEN."""
        self._send_signal(signal.SIGKILL)
        if not self._waited:
            self._wait(0)
        return self._waited[0][1]

    def _send_signal(self, signum: int) -> None:
        if not self.has_exited():
            with contextlib.suppress(ProcessLookupError):  # Other code has just waited for it.
                os.kill(self.pid, signum)

    def _wait(self, options: int) -> None:
        try:
            collect_exits(self._waited, [self.pid], options)
        except ChildProcessError:
            self._waited = self._waited or [(self.pid, TAKEN)]

    def close_in_child(self) -> None:
        """In a forked child: closes its copies."""
        self.channel.close()

    def count_in_hand(self) -> int:
        """How many it has in hand at this moment. In any thread of the master."""
        # In this order: what it does between the two does not seem to be in its hand.
        got = self.account.given + self.counters.count_taken(self.account.taken)
        return max(0, got - self._count_handled())

    def count_just_taken(self) -> int:
        """How many it has taken of those that are offered since the master has last read that. In
        any thread of the master."""
        taken = self.account.taken
        return self.counters.count_taken(taken) - taken

    def _count_handled(self) -> int:
        return self.counters.count_handled(self.account.handled)

    def describe(self) -> WorkerStatus:
        in_hand = self.count_in_hand()
        state = self.state.name  # Read once: the master may change it meanwhile.
        if state == State.READY.name:
            is_busy = in_hand >= self.settings.capacity
            state = "LEAVING" if not self.account.is_open else "BUSY" if is_busy else "FREE"
        self._busy = max(self._busy, self.counters.count_busy())
        return WorkerStatus(
            slot=self.settings.slot,
            pid=self.pid,
            state=state,
            in_hand=in_hand,
            handled=self._count_handled(),
            failed=self.counters.failed,
            restarts=self.settings.restarts,
            age=time.monotonic() - self._started_at,
            busy=self._busy,
        )


def fork_worker(
    settings: WorkerSettings,
    workers: list[WorkerProcess],
    close_in_child: Callable[[], None],
    work: Work,
) -> WorkerProcess:
    """Starts a process that calls work, and appends it to workers, even if a signal handler raises.

    close_in_child closes, in the child, what only the master needs. OSError: EAGAIN or ENOMEM: the
    system cannot start another process. EMFILE.
    """
    counters = Counters()
    master = os.getpid()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            worker = WorkerProcess(settings, ours, counters)
        except BaseException:
            ours.close()
            raise
        try:
            flush_streams()  # Or the child would print it again.
            workers.append(worker)
            worker.fork()
            if worker.pid == 0:
                worker.close_in_child()
                leaving.become_worker(counters, master)
                _run_child(theirs, counters, close_in_child, work)
            return worker
        except BaseException as error:
            if os.getpid() != master:
                end_process(error)
            if worker.pid == 0:
                worker.channel.close()
                workers[:] = [other for other in workers if other is not worker]
            raise


def _run_child(
    sock: socket.socket,
    counters: Counters,
    close_in_child: Callable[[], None],
    work: Work,
) -> None:
    """Never returns."""
    failure: BaseException | None = None
    try:
        leave_signals_to_master()
        close_in_child()
        begin_multiprocessing()
        # It stays open until the process ends: the master reads that from its closing.
        channel = Channel(sock)
        work(channel, counters)
    except BaseException as error:
        failure = error
    finally:
        end_process(failure)


def collect_exits(found: list[tuple[int, int]], pids: Iterable[int], options: int) -> None:
    """Appends what os.waitpid returns for each of pids, until there is nothing.

    No bytecode is between the call and the list, where a signal handler could raise. What was
    appended before a ChildProcessError stays.
    """
    found.extend(takewhile(any, map(os.waitpid, pids, repeat(options))))


def describe_exit(status: int) -> str:
    """A wait status in words."""
    if status == TAKEN:
        return "ended, and other code in this process took its exit status"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
