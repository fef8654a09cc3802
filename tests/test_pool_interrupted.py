"""A signal handler of the program may raise while the master starts or reaps a worker."""

import itertools
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from operator import attrgetter
from types import ModuleType

import pytest

from fdpass_c.channel import Channel
from fdpass_c.pool import connections, exits, rounds, slots, supervisor, worker_process
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.offers import Offers
from fdpass_c.pool.rounds import Rounds
from fdpass_c.pool.supervisor import Supervisor
from fdpass_c.pool.wakeup import Wakeup
from fdpass_c.pool.worker_process import WorkerProcess, WorkerSettings, fork_worker
from support.marks import linux_only
from support.signals import interrupt_call

pytestmark = [
    linux_only,
    pytest.mark.thread_unsafe,
    pytest.mark.untraced,
    pytest.mark.skipif(not hasattr(os, "waitid"), reason="PyPy has no waitid"),
    # The watchdog over every test is a thread, which Python 3.15 counts too.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


def end(_channel: Channel, counters: Counters) -> None:
    counters.fail()
    sys.exit(7)


def wait(channel: Channel, _counters: Counters) -> None:
    channel.recv()


@contextmanager
def two_workers() -> Iterator[tuple[Supervisor, list[WorkerProcess]]]:
    """A supervisor of two workers, not started yet, of which the first ends at once; none is left
    afterwards."""
    workers: list[WorkerProcess] = []

    def start(slot: int, restarts: int) -> WorkerProcess:
        settings = WorkerSettings(slot, restarts, 1, float("inf"))
        return fork_worker(settings, workers, lambda: None, wait if slot else end)

    with (
        selectors.DefaultSelector() as selector,
        closing(Wakeup()) as wakeup,
        closing(Offers()) as offers,
    ):
        loop = Rounds(selector, wakeup, offers, nonblocking=False)
        pool = Supervisor(workers, loop, selector, start, 2, 60, 60)
        yield pool, workers
        pool.kill_all()
        assert not workers
        assert not selector.get_map()


def interrupt_reaping(module: ModuleType, number: int, name: str) -> bool:
    """One of two workers has ended, then the pool ends. Returns whether there were so many
    calls."""
    with two_workers() as (pool, workers):
        pool.check()
        started = [*workers]
        os.waitid(os.P_PID, started[0].pid, os.WEXITED | os.WNOWAIT)
        arguments = started[:1] if name == "_end" else []
        came = interrupt_call(module, number, partial(attrgetter(name)(pool), *arguments))
    assert pool.counted == ((), 0, 1, 0)
    assert [worker.wait_status for worker in started] == [7 << 8, signal.SIGKILL]
    return came


@pytest.mark.parametrize("name", ["reap_exited", "_exits._wait_for_orphans", "_end"])
@pytest.mark.parametrize("module", [supervisor, slots, exits, worker_process, rounds, connections])
def test_a_handler_that_raises(module: ModuleType, name: str) -> None:
    """Wherever it does, no worker is left or counted twice, and none's exit status is lost."""
    for number in itertools.count(1):
        if not interrupt_reaping(module, number, name):
            break


def interrupt_starting(module: ModuleType, number: int) -> bool:
    """Two workers are started, then the pool ends. Returns whether there were so many calls."""
    with two_workers() as (pool, _):
        came = interrupt_call(module, number, pool.check)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    return came


# A channel that nobody has yet is closed with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("module", [supervisor, slots, exits, worker_process, rounds, connections])
def test_a_handler_that_raises_at_the_start(module: ModuleType) -> None:
    """Wherever it does, no process is left, and the child knows that it is one."""
    for number in itertools.count(1):
        if not interrupt_starting(module, number):
            break
