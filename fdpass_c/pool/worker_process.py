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
"""The function that a worker runs. Its first argument is the worker's end of the channel."""


UNKNOWN_STATUS = -1
"""Stands for a wait status that other code in this process has got, for instance with
waitpid(-1)."""

NO_STATUS = -2
"""Stands for the wait status of a process that has not ended yet."""

KILL_INTERVAL = 0.01
"""Seconds until the master looks again at a worker that it has killed. Usually SIGCHLD comes
first."""


class State(enum.Enum):
    STARTING = enum.auto()
    READY = enum.auto()
    LEAVING = enum.auto()


class WorkerSettings(NamedTuple):
    """The settings of one worker.

    slot: the number of its place, which its successor gets too. restarts: how many workers had the
    slot before. capacity: the most connections that it may have in hand. max_requests: after so
    many connections it is replaced.
    """

    slot: int
    restarts: int
    capacity: int
    max_requests: float


class WorkerProcess:
    """A forked process, as the master sees it.

    deadline: when it must have started or finished, or is to be looked at again after it was
    killed. ready_at: when it had started. killed_at: when the master first tried to kill it. All
    are times of time.monotonic. is_ours: whether the system lets the master kill it. given_back:
    how many connections other workers got because it ended.
    """

    def __init__(self, settings: WorkerSettings, sock: socket.socket, counters: Counters) -> None:
        """Takes ownership of sock, the master's side of the connection to the worker.

        The master must call this before the fork, because after the fork nothing may fail.
        """
        self.settings = settings
        self._pids: list[int] = []
        self.state: State = State.STARTING
        self.counters = counters
        self._started_at = time.monotonic()
        self._busy = 0.0
        self.deadline: float = float("inf")
        self.ready_at: float = float("inf")
        self.killed_at: float = float("inf")
        self.is_ours: bool = True
        self.given_back: int = 0
        self._waited: list[tuple[int, int]] = []
        self._sock = sock
        self.channel: Channel = Channel(sock)
        self.channel.setblocking(False)
        self.account: Account = Account(counters, self.channel, settings.max_requests)

    @property
    def pid(self) -> int:
        """The process id, or 0 before the fork and in the child."""
        return sum(self._pids)

    def fork(self) -> None:
        # Between fork and the storing of the pid there is no bytecode, so no signal handler can
        # raise an exception there.
        self._pids.extend(starmap(os.fork, [()]))

    def postpone_replacement(self) -> None:
        """Called if no successor could be started: it will be replaced after as many connections
        again."""
        given = self.account.given + self.account.taken
        self.account.set_most(given + self.settings.max_requests)

    @property
    def serves(self) -> bool:
        """Whether it has started and gets connections."""
        return self.state is State.READY and self.account.is_open

    def mark_ready(self) -> None:
        """Called when the worker has started."""
        self.deadline = float("inf")
        self.ready_at = time.monotonic()
        self.account.set_capacity(self.settings.capacity)
        self.state = State.READY

    def end_early(self, timeout: float) -> None:
        """Called if a worker ends that was not told to, because a handler has called sys.exit.

        It gets no more connections, and must have ended within timeout seconds. It keeps its slot
        until then. Otherwise, if every handler calls sys.exit, there would be many workers that
        are ending.
        """
        self.account.set_capacity(0)
        self.deadline = time.monotonic() + timeout

    def drain(self, timeout: float) -> None:
        """Makes it finish the connections that it was given and exit, within timeout seconds."""
        self.state = State.LEAVING
        self.account.set_capacity(0)
        if not self.was_killed:
            self.deadline = time.monotonic() + timeout
        self.counters.leave()
        self.flush()

    def abort(self, grace: float) -> None:
        """Sends SIGABRT. If the worker still runs after grace seconds, it is killed."""
        self.drain(min(grace, self.deadline - time.monotonic()))
        self._send_signal(signal.SIGABRT)

    def flush(self) -> bool:
        """Sends bytes that did not fit into the socket's buffer before. Returns whether all are
        sent."""
        try:
            self.channel.flush()
            if self.state is State.LEAVING:
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_WR)
        except (BlockingIOError, ConnectionError):
            pass
        except OSError as error:
            # No event would report when to try again. Other workers get what it has not begun.
            logger.warning("cannot send to worker %d: %s", self.pid, error.strerror)
            self.kill()
        return not self.channel.unsent

    def has_exited(self) -> bool:
        if not self._waited:
            try:
                collect_exits(self._waited, [self.pid], os.WNOHANG)
            except ChildProcessError:
                self._waited = self._waited or [(self.pid, UNKNOWN_STATUS)]
        return self._waited != []

    def note_exit(self, status: int) -> None:
        """Called with its wait status if this process has waited for it by other means."""
        self._waited = [(self.pid, status)]

    @property
    def wait_status(self) -> int:
        """Its wait status, or UNKNOWN_STATUS, or NO_STATUS."""
        return self._waited[0][1] if self._waited else NO_STATUS

    def kill(self) -> None:
        """Kills it if it still runs, and does not wait for its end, which may come late: a debugger
        can hold it, or a disk that does not answer."""
        now = time.monotonic()
        self.killed_at = min(self.killed_at, now)
        self.deadline = now + KILL_INTERVAL
        self.account.set_capacity(0)
        self._send_signal(signal.SIGKILL)

    @property
    def was_killed(self) -> bool:
        return self.killed_at < float("inf")

    def spare(self) -> None:
        """Called if the system does not let the master kill it: it may finish without a time
        limit."""
        self.killed_at = float("inf")
        self.drain(float("inf"))

    def _send_signal(self, signum: int) -> None:
        if not self.has_exited():
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:
                pass  # Other code in this process has just waited for the worker.
            except PermissionError:  # One of the two has changed its user.
                self.is_ours = False

    def count_in_hand(self) -> int:
        """In any thread of the master: how many connections it has in hand at this moment."""
        # The finished ones are read last. So a connection that it finishes between the two reads
        # does not count as in hand.
        got = self.account.given + self.counters.count_taken(self.account.taken)
        return max(0, got - self._count_handled())

    def count_just_taken(self) -> int:
        """In any thread of the master: how many of the offered connections it has taken since the
        master last read its counters."""
        taken = self.account.taken
        return self.counters.count_taken(taken) - taken

    def _count_handled(self) -> int:
        return self.counters.count_handled(self.account.handled)

    def describe(self) -> WorkerStatus:
        in_hand = self.count_in_hand()
        state = self.state.name  # Read once, because the master's thread may change it meanwhile.
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
    """Starts a process that calls work, and appends it to workers. If a process was started, it is
    in workers even if a signal handler raises an exception.

    close_in_child: called in the child, closes the descriptors that only the master needs. OSError:
    EAGAIN or ENOMEM: the system cannot start another process. EMFILE: the descriptor table is full.
    """
    counters = Counters()
    master = os.getpid()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            theirs.setblocking(True)  # As socket.setdefaulttimeout may not have made it.
            worker = WorkerProcess(settings, ours, counters)
        except BaseException:
            ours.close()
            raise
        try:
            flush_streams()  # Otherwise the child would print buffered text again.
            workers.append(worker)
            worker.fork()
            if worker.pid == 0:
                worker.channel.close()
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
    """Does what a new worker does. Never returns."""
    failure: BaseException | None = None
    try:
        leave_signals_to_master()
        close_in_child()
        begin_multiprocessing()
        # Nothing closes the channel before the process ends: its end tells the master that the
        # process has ended.
        channel = Channel(sock)
        work(channel, counters)
    except BaseException as error:
        failure = error
    finally:
        end_process(failure)


def collect_exits(found: list[tuple[int, int]], pids: Iterable[int], options: int) -> None:
    """Calls os.waitpid for each of pids, until no process has exited, and appends the results.

    Between waitpid and the appending there is no bytecode, so no signal handler can raise an
    exception there. Results from before a ChildProcessError stay in the list.
    """
    found.extend(takewhile(any, map(os.waitpid, pids, repeat(options))))


def describe_exit(status: int) -> str:
    """Returns a wait status in words."""
    if status == UNKNOWN_STATUS:
        return "ended, and other code in this process took its exit status"
    if status == NO_STATUS:
        return "has not ended yet"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
