"""Attempts under attack: tried, checked, and counted."""

import contextlib
import gc
import os
import resource
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import fdpass_c
from support import looped
from support.attempts import Attempt, Operations, Outcome
from support.tables import table_of

MOST_MEMORY = 20_000
"""KiB more that the process may use after any number of attempts."""

_PATIENCE = 20
_NOTHING = object()


class Stuck(BaseException):
    """It did not end."""


def _stop(_signum: int, _frame: FrameType | None) -> None:
    raise Stuck(f"not over after {_PATIENCE} s")


def _count_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def measure_memory() -> int:
    """The most KiB that this process has used at any time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_frames(error: BaseException | None) -> None:
    """What an error's traceback keeps alive is no leak."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


class Attacks:
    """Tries attempts while something goes wrong, and notes what came of it."""

    def __init__(self, fair_in_finalisers: tuple[str, ...] = ()) -> None:
        """fair_in_finalisers: types of exceptions that may be seen there."""
        self._fair = fair_in_finalisers
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []
        signal.signal(signal.SIGALRM, _stop)
        warnings.simplefilter("error")
        self._unraisable: list[str] = []
        sys.unraisablehook = lambda found: self._unraisable.append(repr(found.exc_value))

    def attack(
        self,
        what: str,
        make: Callable[[], Attempt],
        plan: AbstractContextManager[None],
        is_fair: Callable[[BaseException], bool] = lambda _: False,
    ) -> None:
        """Attacks by plan what the attempt yields. is_fair: what may come of it all the same."""
        before = _count_open()
        problem = ""
        attempt = make()
        act = next(attempt)
        value: Any = _NOTHING
        error: BaseException | None = None
        signal.alarm(_PATIENCE)
        try:
            try:
                with plan:
                    value = act()
            except Exception as caught:
                _forget_frames(caught)
                error = caught
            # A handler may have run when it was over.
            outcome = Outcome(None, error) if value is _NOTHING else Outcome(value, None)
            with contextlib.suppress(StopIteration):
                attempt.send(outcome)
        except BaseException as caught:
            if not is_fair(caught):
                problem = traceback.format_exc()
            _forget_frames(caught)
        finally:
            signal.alarm(0)
        attempt.close()
        outcome = attempt = act = value = error = None  # type: ignore[assignment]
        if _count_open() != before:
            gc.collect()
            if _count_open() != before:
                problem += f"\n{_count_open() - before} descriptors more"
        unraisable = [text for text in self._unraisable if not text.startswith(self._fair)]
        self._unraisable.clear()
        if problem or unraisable:
            self.found.append("\n".join([what, problem, *unraisable]))
            print(self.found[-1], "\n", flush=True)

    def run(
        self,
        attack: Callable[[str, Callable[[], Attempt]], None],
        names: Sequence[str],
        in_loops: int,
    ) -> int:
        """Attacks every operation whose name begins with one of names; says what was found.

        in_loops: every so many-th of those of event loops, too; 0 for none.
        """
        looped.start()
        memory = measure_memory()
        # With the smaller table a channel looks before it receives.
        plans: list[tuple[int, Any, str]] = [(1024, fdpass_c, ""), (700, fdpass_c, "Channel.recv")]
        if in_loops:
            plans.append((1024, looped, ""))
        for limit, api, wanted in plans:
            operations = Operations(api)
            prefix = "aio " if api is looped else ""
            with contextlib.closing(operations), table_of(limit):
                step = in_loops if api is looped else 1
                for name, make in [*operations.all.items()][::step]:
                    full = prefix + name
                    if full.startswith(tuple(names) or "") and name.startswith(wanted):
                        attack(full, make)
        looped.stop()
        grown = measure_memory() - memory
        if grown > MOST_MEMORY:
            self.found.append(f"{grown} KiB of memory more")
            print(self.found[-1])
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        print(f"{counts}; {grown} KiB of memory more; {len(self.found)} that went wrong")
        return 1 if self.found else 0
