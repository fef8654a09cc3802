"""Writes the table of results in the documentation, and the chart in words. Reads only JSON."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import FLOOR, OURS, CaseResult, Results, TableResult, describe, load

# For each row: its text, and the table and the case that it shows.
_ROWS = (
    ("`send_fds`, `recv_fds`: 1 descriptor per message", "single", "1 in a message"),
    ("the same, 253 per message", "single", "253 in a message"),
    ("`send_many`, `recv_many`: 8 messages", "batches", "8 x 64 B"),
    ("the same, 64 messages", "batches", "64 x 64 B"),
    (
        "the same, 8 messages, beside a thread that runs Python code all the time",
        "batches-busy",
        "8 x 64 B",
    ),
    ("`Channel`: 1 per call", "channel", "1 a call"),
    ("the same, 8 per call", "channel", "8 a call"),
    ("the same, 32 per call", "channel", "32 a call"),
    ("the same, 253 per call", "channel", "253 a call"),
    ("`writev`: 2 buffers of 16 bytes into memory, per call", "writev-memfd", "2 x 16 B"),
    ("the same, 10 buffers", "writev-memfd", "10 x 16 B"),
    ("the same, 100 buffers", "writev-memfd", "100 x 16 B"),
    ("the same, 1,000 buffers", "writev-memfd", "1000 x 16 B"),
    ("the same, 1,000 buffers of 1,024 bytes", "writev-memfd", "1000 x 1024 B"),
    ("`broadcast` of 2 buffers to 64 sockets, per socket", "broadcast", "2 x 8 B to 64 sockets"),
)
_CHART = "channel-across"


def _find(results: Results, name: str) -> TableResult:
    return next(table for table in results.tables if table.name == name)


def _format_ratio(ratio: float | None) -> str:
    """Three digits, but at least two decimals below ten."""
    if ratio is None:
        return "-"
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}x"


def _render_row(label: str, table: TableResult, case: CaseResult) -> str:
    times = [f"{case.median_ns(name):,.0f}" for name in (OURS, table.baseline)]
    ratios = [case.ratio(table.baseline, OURS), case.ratio(OURS, FLOOR)]
    return f"| {' | '.join([label, *times, *map(_format_ratio, ratios)])} |"


def render(results: Results) -> str:
    lines = [
        "| | ns each | standard library | rate | time of the C floor |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label, table_name, case_name in _ROWS:
        table = _find(results, table_name)
        case = next(case for case in table.cases if case.name == case_name)
        lines.append(_render_row(label, table, case))
    return "\n".join(lines)


def describe_chart(results: Results) -> str:
    table = _find(results, _CHART)
    ratios = [
        f"{case.ratio(table.baseline, OURS):.1f} at {case.name.partition(' ')[0]}"
        for case in table.cases
    ]
    return (
        "Bars: descriptors per second, as a multiple of the standard library's: "
        f"{', '.join(ratios)} per call"
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks markdown",
        description="Prints the table of docs/performance.md and the words for its chart.",
    )
    parser.add_argument("results", type=Path, help="what --json kept")
    options = parser.parse_args(arguments)
    try:
        results = load(options.results)
        print(describe(results.metadata), render(results), describe_chart(results), sep="\n\n")
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        print(f"benchmarks: cannot describe {options.results}: {error}", file=sys.stderr)
        return 1
    return 0
