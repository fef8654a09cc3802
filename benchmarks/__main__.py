"""The command line of the benchmarks."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import (
    aio,
    batches,
    channel,
    markdown,
    mixed,
    plot,
    pool,
    report,
    single,
    soak,
    vectors,
)
from benchmarks.floor import COMPILER, load_floor
from benchmarks.results import Results, collect_metadata, describe
from benchmarks.runner import Progress, choose_effort, measure_table

TABLES = [*single.TABLES, *batches.TABLES, *vectors.TABLES, *channel.TABLES, *aio.TABLES]
COMMANDS = {
    "markdown": markdown.main,
    "mixed": mixed.main,
    "plot": plot.main,
    "pool": pool.main,
    "soak": soak.main,
}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures fdpass_c against the standard library and a C program.",
        epilog="Other commands: "
        + "; ".join(f"python -m benchmarks {name} --help" for name in COMMANDS),
    )
    parser.add_argument(
        "tables",
        nargs="*",
        metavar="NAME",
        help="a table, or several by the part of their name before the hyphen; all without: "
        + ", ".join(table.name for table in TABLES),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the raw rounds")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each case (default: 40)")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds in all, to see that everything runs"
    )
    parsed = parser.parse_args(arguments)
    if parsed.rounds is not None and parsed.rounds < 1:
        parser.error("--rounds must be at least 1")
    for name in parsed.tables:
        if not any(_is_chosen(table.name, [name]) for table in TABLES):
            parser.error(f"no table {name!r}")
    return parsed


def _is_chosen(table: str, names: Sequence[str]) -> bool:
    return not names or table in names or table.partition("-")[0] in names


def _measure(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    load_floor()
    effort = choose_effort(options.quick, options.rounds)
    results = Results({**collect_metadata(COMPILER), "quick": options.quick}, [])
    print(describe(results.metadata))
    for table in TABLES:
        if _is_chosen(table.name, options.tables):
            results.tables.append(measure_table(table, effort, Progress()))
            print(f"\n{report.render_table(results.tables[-1])}", flush=True)
            if options.json:
                results.save(options.json)
    names = {table.name for table in aio.TABLES}
    if event_loops := [table for table in results.tables if table.name in names]:
        print(f"\n{aio.render_ratios(event_loops)}", flush=True)
    return 0


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]](arguments[1:])
    return _measure(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
