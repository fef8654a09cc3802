"""Times contenders side by side: verified first, then round robin, so that drift hits all alike."""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.process import count_open_fds, measure_growth_kib
from benchmarks.results import CaseResult, Measured, TableResult


class SkipCase(Exception):
    """This system cannot run the case; the text says why."""


@dataclass(frozen=True)
class Contender:
    """One way to do what a case is about.

    run(passes) does it so many times and returns the nanoseconds that count. verify() does it
    once and raises unless what arrived is right.
    """

    name: str
    run: Callable[[int], int]
    verify: Callable[[], None]


def timed(work: Callable[[int], object]) -> Callable[[int], int]:
    """A run() that counts all the time that work(passes) takes."""

    def run(passes: int) -> int:
        start = time.perf_counter_ns()
        work(passes)
        return time.perf_counter_ns() - start

    return run


def timed_without(
    reset: Callable[[int], object], chunk: int, work: Callable[[int], object]
) -> Callable[[int], int]:
    """A run() that stops the clock after every chunk of passes for reset(passes just made)."""
    run_chunk = timed(work)

    def run(passes: int) -> int:
        spent = 0
        for start in range(0, passes, chunk):
            step = min(chunk, passes - start)
            spent += run_chunk(step)
            reset(step)
        return spent

    return run


@dataclass(frozen=True)
class Case:
    """One row of a table. units: what a pass moves. open: makes the contenders, all of whose
    resources belong to the stack; raises SkipCase where the system cannot do it."""

    name: str
    units: int
    open: Callable[[ExitStack], Sequence[Contender]]


@dataclass(frozen=True)
class Table:
    """cases(quick) gives the rows, fewer where a quick run asks for it. shows_memory: also
    measure by how much each contender makes the process grow. slices: how many times as long a
    round lasts as in other tables."""

    name: str
    title: str
    unit: str
    baseline: str
    notes: list[str]
    cases: Callable[[bool], list[Case]]
    shows_memory: bool = False
    slices: int = 1


@dataclass(frozen=True)
class Effort:
    """How long to measure. A round of a contender lasts at least slice_ns; a case has rounds
    rounds, or fewer, but not fewer than least_rounds, where they would take over budget_ns."""

    quick: bool
    rounds: int
    slice_ns: int
    least_rounds: int
    budget_ns: int


def choose_effort(quick: bool, rounds: int | None) -> Effort:
    if quick:
        return Effort(True, rounds or 3, 200_000, 2, 20_000_000)
    return Effort(False, rounds or 40, 10_000_000, 3, 10_000_000_000)


class Progress:
    """One line on standard error that is written over; nothing where that is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.show("")


@contextmanager
def garbage_untouched() -> Iterator[None]:
    """No garbage collection within: what exists is frozen."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def measure_table(table: Table, effort: Effort, progress: Progress) -> TableResult:
    effort = replace(effort, slice_ns=effort.slice_ns * table.slices)
    cases = table.cases(effort.quick)
    measured = []
    for number, case in enumerate(cases, 1):
        show = partial(_show, progress, f"{table.name} {number}/{len(cases)}: {case.name}")
        measured.append(_measure_case(case, table.shows_memory, effort, show))
    progress.clear()
    return TableResult(table.name, table.title, table.unit, table.baseline, table.notes, measured)


def _show(progress: Progress, case: str, step: str) -> None:
    progress.show(f"{case}: {step}")


def _measure_case(
    case: Case, shows_memory: bool, effort: Effort, show: Callable[[str], None]
) -> CaseResult:
    open_before = count_open_fds()
    try:
        with ExitStack() as stack:
            contenders = case.open(stack)
            for contender in contenders:
                show(f"verifying {contender.name}")
                contender.verify()
            with garbage_untouched():
                measured = _measure_rounds(contenders, shows_memory, effort, show)
    except SkipCase as reason:
        return CaseResult(case.name, case.units, skipped=str(reason))
    if (leaked := count_open_fds() - open_before) != 0:
        raise RuntimeError(f"{case.name}: {leaked} descriptors leaked")
    return CaseResult(case.name, case.units, measured)


def _measure_rounds(
    contenders: Sequence[Contender], shows_memory: bool, effort: Effort, show: Callable[[str], None]
) -> list[Measured]:
    show("calibrating")
    calibrated = [_calibrate(contender, effort.slice_ns) for contender in contenders]
    round_ns = sum(elapsed for _, elapsed in calibrated)
    rounds = max(effort.least_rounds, min(effort.rounds, effort.budget_ns // round_ns))
    measured = [
        Measured(one.name, passes, [])
        for one, (passes, _) in zip(contenders, calibrated, strict=True)
    ]
    for number in range(rounds):
        show(f"round {number + 1} of {rounds}")
        for turn in range(len(contenders)):
            # The order rotates, so that nobody always runs after the same one.
            at = (number + turn) % len(contenders)
            measured[at].rounds_ns.append(contenders[at].run(measured[at].passes))
    if not shows_memory:
        return measured
    return [
        Measured(
            one.name,
            one.passes,
            one.rounds_ns,
            measure_growth_kib(partial(contender.run, one.passes)),
        )
        for contender, one in zip(contenders, measured, strict=True)
    ]


def _calibrate(contender: Contender, slice_ns: int) -> tuple[int, int]:
    """How many passes fill the slice, and how long they take. The better of two runs says so: on
    a loaded machine one that had to wait for a CPU would make every round too short."""
    passes = 1
    while (elapsed := contender.run(passes)) < slice_ns or (
        elapsed := min(elapsed, contender.run(passes))
    ) < slice_ns:
        passes = max(passes * 2, min(passes * 10, passes * slice_ns // max(elapsed, 1) + 1))
    return passes, elapsed
