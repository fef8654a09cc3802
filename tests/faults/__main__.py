"""Tries every fault, says what it found."""

import argparse
import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from faults.commands import Commands
from faults.library import Library, Step, is_loaded, start
from faults.plans import COUNTING, ERRORS, MISSING, STREAMING
from support.attacks import Attacks
from support.attempts import Attempt, Outcome

Plan = Callable[[], AbstractContextManager[None]]


def _is_told(error: BaseException) -> bool:
    """With no memory for what has come, or for the rest of a frame, a channel ends and says so."""
    return "no memory for what was received" in str(error) or isinstance(error, BrokenPipeError)


class Faults:
    def __init__(self, quick: bool) -> None:
        self._library = Library()
        self._most_lengths = 4 if quick else 3000
        self.attacks = Attacks()

    def attack(self, name: str, make: Callable[[], Attempt]) -> None:
        self._watch(make)  # The first fills what is remembered.
        for step in self._watch(make):
            # The mode of sockets that are open can be changed, and they can be waited for.
            if name.startswith("aio ") and step.call in ("ioctl", "epoll_wait"):
                continue
            for what, plan in self._fail(step):
                self._try(f"{name}: {what}", make, plan(), "faults")
            for what, plan in self._cut(name, step):
                self._try(f"{name}: {what}", make, plan(), "short transfers")
        number = 0
        while self._try(
            f"{name}: allocation {number}",
            make,
            self._library.without_memory(number),
            "allocations failed",
        ):
            number += 1

    def _try(
        self, what: str, make: Callable[[], Attempt], plan: AbstractContextManager[None], kind: str
    ) -> bool:
        is_fair = _is_told if kind == "allocations failed" else lambda _: False
        self.attacks.attack(what, make, plan, is_fair)
        fired = self._library.fired
        self.attacks.counts[kind] += fired
        return fired

    def _watch(self, make: Callable[[], Attempt]) -> list[Step]:
        """The system calls of an operation that nothing disturbs."""
        attempt = make()
        act = next(attempt)
        outcome = Outcome(None, None)
        with self._library.watching() as steps:
            try:
                outcome = Outcome(act(), None)
            except OSError as error:  # Of a buffer that is full, or empty.
                outcome = Outcome(None, error)
        with contextlib.suppress(StopIteration):
            attempt.send(outcome)
        return steps

    def _fail(self, step: Step) -> Iterator[tuple[str, Plan]]:
        call = step.call
        for error in ERRORS[call].split():
            code = getattr(errno, error)
            yield f"{step} gives {error}", partial(self._library.failing, step, code)
        if step.number == 0:
            for error in MISSING.get(call, "").split():
                code = getattr(errno, error)
                plan = partial(self._library.failing, step, code, lasting=True)
                yield f"every {call} gives {error}", plan

    def _cut(self, name: str, step: Step) -> Iterator[tuple[str, Plan]]:
        call = step.call
        packets = "seqpacket" in name or "datagram" in name or "address" in name
        if (call in STREAMING and not packets) or call in COUNTING:
            lengths = range(1, step.result)
            for most in lengths[:: max(1, len(lengths) // self._most_lengths)]:
                plan = partial(self._library.cut_short, step, most)
                yield f"{step} moves {most} of {step.result}", plan


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults")
    parser.add_argument("--quick", action="store_true", help="a sample")
    parser.add_argument("operations", nargs="*", help="what their names begin with")
    options = parser.parse_args()
    if not is_loaded():
        return start("faults", *sys.argv[1:])
    faults = Faults(options.quick)
    in_loops = 5 if options.quick else 1
    found = faults.attacks.run(faults.attack, options.operations, in_loops)
    return Commands(Library(), options.quick).run(options.operations) or found


if __name__ == "__main__":
    sys.exit(main())
