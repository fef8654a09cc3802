"""Tries every fault, says what it found."""

import argparse
import contextlib
import errno
import gc
import os
import signal
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

from faults.library import Library, Step, is_loaded, start
from faults.plans import COUNTING, ERRORS, MISSING, STREAMING
from support.attempts import Attempt, Operations, Outcome
from support.tables import table_of

_PATIENCE = 20
MEMORY = "allocations failed"


class Stuck(BaseException):
    """It did not end."""


def _count_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def _forget_frames(error: BaseException | None) -> None:
    """What an error's traceback keeps alive is no leak."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__


class Attack:
    """The faults of one kind, tried on each operation, and their count."""

    def __init__(self, library: Library, quick: bool) -> None:
        self._library = library
        self._quick = quick
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []

    def attack(self, name: str, make: Callable[[], Attempt]) -> None:
        for _ in range(2):  # The first fills what is remembered.
            steps = self._watch(make)
        for step in steps:
            for what, plan, kind in self._plans(name, step):
                self._try(f"{name}: {what}", make, plan, kind)
        number = 0
        while self._try(
            f"{name}: allocation {number}",
            make,
            partial(self._library.without_memory, number),
            MEMORY,
        ):
            number += 1

    def _watch(self, make: Callable[[], Attempt]) -> list[Step]:
        attempt = make()
        act = next(attempt)
        outcome = Outcome(None, None)
        with self._library.watching() as steps:
            try:
                outcome = Outcome(act(), None)
            except BlockingIOError as error:  # Of a buffer that is full.
                outcome = Outcome(None, error)
        with contextlib.suppress(StopIteration):
            attempt.send(outcome)
        return steps

    def _plans(
        self, name: str, step: Step
    ) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager[None]], str]]:
        call, number, result = step
        library = self._library
        for error in ERRORS[call].split():
            code = getattr(errno, error)
            yield (
                f"{call} {number} gives {error}",
                partial(library.failing, call, number, code, False),
                "faults",
            )
        if number == 0:
            for error in MISSING.get(call, "").split():
                code = getattr(errno, error)
                yield (
                    f"every {call} gives {error}",
                    partial(library.failing, call, 0, code, True),
                    "faults",
                )
        packets = "seqpacket" in name or "datagram" in name or "address" in name
        lengths: range = range(0)
        if (call in STREAMING and not packets) or call in COUNTING:
            lengths = range(1, result)
        # A long transfer: the first lengths and the last ones, and some between.
        most = 4 if self._quick else 3000
        step_size = max(1, len(lengths) // most)
        for most in lengths[::step_size]:
            yield (
                f"{call} {number} moves {most} of {result}",
                partial(library.cut_short, call, number, most),
                "short transfers",
            )

    def _try(
        self,
        what: str,
        make: Callable[[], Attempt],
        plan: Callable[[], contextlib.AbstractContextManager[None]],
        kind: str,
    ) -> bool:
        """Whether the fault came to pass. What it led to is in self.found."""
        before = _count_open()
        problem = ""
        fired = False
        attempt = make()
        act = next(attempt)
        value = error = None
        signal.alarm(_PATIENCE)
        try:
            try:
                with plan():
                    value = act()
            except Exception as caught:
                _forget_frames(caught)
                error = caught
            fired = self._library.fired
            with contextlib.suppress(StopIteration):
                attempt.send(Outcome(value, error))
        except BaseException as caught:
            # With no memory for what has come already, a channel ends and says so.
            if "no memory" not in str(caught) or kind != MEMORY:
                problem = traceback.format_exc()
            _forget_frames(caught)
        finally:
            signal.alarm(0)
        attempt.close()
        del attempt, act, value, error
        if _count_open() != before:
            gc.collect()
            if _count_open() != before:
                problem += f"\n{_count_open() - before} descriptors more"
        if fired:
            self.counts[kind] += 1
        if problem:
            self.found.append(f"{what}\n{problem}")
        return fired


def _stop(_signum: int, _frame: FrameType | None) -> None:
    raise Stuck(f"not over after {_PATIENCE} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults")
    parser.add_argument("--quick", action="store_true", help="some lengths of each transfer only")
    parser.add_argument("operations", nargs="*", help="what their names begin with")
    if not is_loaded():
        parser.parse_args()
        return start(*sys.argv[1:])
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _stop)
    warnings.simplefilter("error")
    unraisable: list[str] = []
    sys.unraisablehook = lambda found: unraisable.append(repr(found.exc_value))
    attack = Attack(Library(), options.quick)
    # With so small a table a channel looks before it receives.
    for limit, wanted in ((1024, ""), (700, "Channel.recv")):
        operations = Operations()
        with contextlib.closing(operations), table_of(limit):
            for name, make in operations.all.items():
                if name.startswith(tuple(options.operations) or ("",)) and name.startswith(wanted):
                    attack.attack(name, make)
    found = attack.found + [f"in a finaliser: {what}" for what in unraisable]
    for problem in found:
        print(problem, "\n")
    counts = ", ".join(f"{count} {kind}" for kind, count in attack.counts.items())
    print(f"{counts}; {len(found)} that went wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
