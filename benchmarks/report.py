"""Results as plain text tables."""

from collections.abc import Sequence

from benchmarks.results import FLOOR, OURS, CaseResult, TableResult

_ABSENT = "-"


def render_table(table: TableResult) -> str:
    """Returns a title, one row for each case, and notes on what the table does not show.

    The columns are each contender's median nanoseconds for a unit, then how many times as fast as
    the baseline we are, and how many times the floor's time we take.
    """
    names = table.contender_names()
    remembered = [one for one in names if _grows(table, one)]
    rows = [
        [
            "",
            *names,
            f"faster than {table.baseline}",
            f"time of the {FLOOR}",
            *(f"{name}, KiB more" for name in remembered),
        ]
    ]
    for case in table.cases:
        if case.skipped:
            rows.append([case.name, f"skipped: {case.skipped}"])
            continue
        rows.append(
            [
                case.name,
                *(_format(case.median_ns(name), ",.0f") for name in names),
                format_ratio(case.ratio(table.baseline, OURS)),
                format_ratio(case.ratio(OURS, FLOOR)),
                *(_format(_growth(case, name), ",d") for name in remembered),
            ]
        )
    title = f"{table.name}: {table.title}; median ns per {table.unit}"
    return "\n".join([render_rows(title, rows), "", *(f"  {note}" for note in table.notes)])


def render_rows(title: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([title, "", *_align(rows)])


def format_ratio(ratio: float | None) -> str:
    return _format(ratio, ".2f", "x")


def _growth(case: CaseResult, name: str) -> int | None:
    return next((one.growth_kib for one in case.contenders if one.name == name), None)


def _grows(table: TableResult, name: str) -> bool:
    return any(_growth(case, name) is not None for case in table.cases)


def _format(value: float | None, form: str, suffix: str = "") -> str:
    return _ABSENT if value is None else f"{value:{form}}{suffix}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns columns, the first to the left. A row with fewer cells does not widen them: its last
    cell is text."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    return [
        "  ".join(
            cell.rjust(width) if at and row in full else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
