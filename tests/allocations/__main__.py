"""Has every allocation of every operation fail, says what it found."""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

from support.attacks import Attacks
from support.attempts import Attempt

# CPython's own tests come with it, where they are installed.
_testcapi = import_module("_testcapi")


class Allocations:
    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self._failed = False
        # What the exception drops is closed, with a warning.
        self.attacks = Attacks(("MemoryError", "SystemError", "ResourceWarning"))

    @contextmanager
    def _at(self, number: int) -> Iterator[None]:
        _testcapi.set_nomemory(number, number + 1)
        try:
            yield
        except (MemoryError, SystemError):
            self._failed = True
            raise
        finally:
            _testcapi.remove_mem_hooks()

    def attack(self, name: str, make: Callable[[], Attempt]) -> None:
        if name.startswith(("Listener.accept", "Channel.pair")):
            return  # socket.accept() and socketpair() themselves leak what they have just made.
        step = 29 if self._quick else 1
        missed = 0
        for number in itertools.count(1, step):
            self._failed = False
            self.attacks.attack(f"{name}: allocation {number}", make, self._at(number))
            self.attacks.counts["allocations failed"] += self._failed
            # Some are made good by Python itself. After so many there are no more.
            missed = 0 if self._failed else missed + 1
            if missed > 40 // step + 1:
                break


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m allocations")
    parser.add_argument("--quick", action="store_true", help="every 29th allocation only")
    parser.add_argument("operations", nargs="*", help="what their names begin with")
    options = parser.parse_args()
    allocations = Allocations(options.quick)
    # asyncio itself forgets a task if there is no memory in the middle of its loop.
    return allocations.attacks.run(allocations.attack, options.operations, in_loops=0)


if __name__ == "__main__":
    sys.exit(main())
