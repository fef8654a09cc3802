"""Runs as many examples as are asked for; says what they tried."""

import argparse
import sys
import warnings

from stateful import LOOPS, run_blocking, run_loop
from stateful.model import tried
from support.loops import pause, run
from support.processes import become_nobody


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stateful")
    parser.add_argument("--examples", type=int, default=2000, help="of each (%(default)s)")
    parser.add_argument("--nobody", action="store_true", help="as an ordinary user, if root")
    options = parser.parse_args()
    warnings.simplefilter("error", ResourceWarning)
    if options.nobody:
        become_nobody()
    run_blocking(options.examples)
    for loop in LOOPS:
        run(loop, pause, loop)  # uvloop keeps a pipe for the next loop.
        run_loop(loop, options.examples)
    print(", ".join(f"{count} {kind}" for kind, count in tried.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
