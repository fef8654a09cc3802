"""Measures the times of contenders. They are verified first. Then their rounds take turns, so that
a change of the machine's speed affects all of them."""

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
    """One way to do the work of a case.

    run(passes) does it so many times and returns the nanoseconds that count. verify() does it
    once, and raises an exception if something wrong arrived.
    """

    name: str
    run: Callable[[int], int]
    verify: Callable[[], None]


def timed(work: Callable[[int], object]) -> Callable[[int], int]:
    """Returns a run() that counts all the time that work(passes) takes."""

    def run(passes: int) -> int:
        start = time.perf_counter_ns()
        work(passes)
        return time.perf_counter_ns() - start

    return run


def timed_without(
    reset: Callable[[int], object], chunk: int, work: Callable[[int], object]
) -> Callable[[int], int]:
    """Returns a run() that stops the clock after every chunk of passes, and then calls reset with
    the number of passes just made."""
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
    """One row of a table. units: how many things a pass moves. open: makes the contenders, whose
    resources an ExitStack owns. It raises SkipCase if the system cannot run the case."""

    name: str
    units: int
    open: Callable[[ExitStack], Sequence[Contender]]


@dataclass(frozen=True)
class Table:
    """One table. cases(quick) returns the rows, fewer of them in a quick run. shows_memory: whether
    to measure by how much each contender makes the process grow. slices: how many times as long as
    in other tables a round lasts."""

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
    """How long to measure. A round of a contender lasts at least slice_ns. A case has so many
    rounds. If they would take longer than budget_ns, it has fewer, but at least least_rounds."""

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
    """Shows one line on standard error, which the next one replaces. Shows nothing if that is no
    terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if self._shown:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        self.show("")


@contextmanager
def garbage_untouched() -> Iterator[None]:
    """Turns garbage collection off in the block. Later collections ignore the objects that exist
    now."""
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
            # The order rotates, so that no contender always runs after the same other one.
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
    """Returns how many passes fill the slice, and how long they take.

    The faster of two runs decides: on a loaded machine, a run that had to wait for a CPU would lead
    to rounds that are too short.
    """
    passes = 1
    while (elapsed := contender.run(passes)) < slice_ns or (
        elapsed := min(elapsed, contender.run(passes))
    ) < slice_ns:
        passes = max(passes * 2, min(passes * 10, passes * slice_ns // max(elapsed, 1) + 1))
    return passes, elapsed
