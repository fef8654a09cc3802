"""fdpass bench: run the benchmarks of the source tree."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

from fdpass_c.commands.errors import complain

_DESCRIPTION = """\
Run the benchmarks. They are in the source tree and are not installed.
Arguments after -- are for them; fdpass bench -- --help lists those.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="run the benchmarks, from a source tree",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    root = Path(__file__).parents[2]
    # A file that only the source tree has: another package may have installed a folder named
    # benchmarks beside this one.
    if not (root / "build_ffi.py").exists():
        complain(
            "bench", "the benchmarks are not installed; run python -m benchmarks in a source tree"
        )
        return 1
    arguments = options.arguments
    sys.argv[1:] = arguments[1:] if arguments[:1] == ["--"] else arguments
    sys.path.insert(0, str(root))
    runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
    return 0
