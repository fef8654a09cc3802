"""fdpass bench: run the benchmarks of the source tree."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]

# A file that only the source tree has: another package may have installed a folder named benchmarks
# beside this one.
IS_HERE: bool = (_ROOT / "build_ffi.py").exists()
"""Whether there are benchmarks. They are in the source tree and are not installed."""

_DESCRIPTION = """\
Run the benchmarks of this source tree. All arguments are for them: fdpass bench --help lists them.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="run the benchmarks of this source tree",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Nothing begins with it, so that no argument is an option of this parser.
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    arguments = options.arguments
    sys.argv[1:] = arguments[1:] if arguments[:1] == ["--"] else arguments
    sys.path.insert(0, str(_ROOT))
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
    return 0
