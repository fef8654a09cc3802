"""Draws results: the tables as bars that show the ratio to the baseline at 1x, with a mark for the
C floor; for the pool, which share of short requests is answered within which time; for the mixed
soak, what grew. Reads only JSON."""

import argparse
import importlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import FLOOR, OURS, TableResult, describe, load

_FORMATS = ("svg", "png")


def _import_pyplot() -> Any:
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise SystemExit("benchmarks: plots need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    # Text stays text in the SVG file. The fixed salt makes the same file from the same results.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fdpass_c"})
    return importlib.import_module("matplotlib.pyplot")


def draw_table(pyplot: Any, table: TableResult, caption: str) -> Any:
    """Draws a group of bars for each case: each shows how many times as fast as the baseline a
    contender is."""
    cases = [case for case in table.cases if not case.skipped]
    rivals = [name for name in table.contender_names() if name not in (table.baseline, FLOOR)]
    rivals.sort(key=OURS.__ne__)  # Ours first, so that it has the same colour everywhere.
    height = 0.8 / len(rivals)
    size = 1.8 + len(cases) * (0.1 + 0.25 * len(rivals))
    figure, axes = pyplot.subplots(figsize=(8, size), layout="constrained")
    for at, name in enumerate(rivals):
        places = [row + (at + 0.5) * height for row in range(len(cases))]
        ratios = [case.ratio(table.baseline, name) for case in cases]
        axes.barh(places, [ratio or 0 for ratio in ratios], height * 0.9, label=name)
        for place, ratio in zip(places, ratios, strict=True):
            if ratio is not None:
                axes.annotate(
                    f"{ratio:.2f}x",
                    (1.01, place),
                    xycoords=("axes fraction", "data"),
                    va="center",
                    fontsize="small",
                    color=f"C{at}",
                )
    middles = [row + 0.4 for row in range(len(cases))]
    floors = [case.ratio(table.baseline, FLOOR) for case in cases]
    if any(floors):
        axes.plot(floors, middles, "|", color="black", markersize=18, label=FLOOR)
    axes.axvline(1, color="gray", linewidth=1, label=table.baseline)
    axes.set_yticks(middles, [case.name for case in cases])
    axes.set_ylim(len(cases) - 0.1, -0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel(
        f"{table.unit}s per second, {table.baseline} = 1x; longer is better\n{caption}",
        fontsize="small",
    )
    axes.set_title(f"{table.name}: {table.title}", fontsize="medium", loc="left", wrap=True)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def draw_latency(pyplot: Any, took: dict[str, list[int]], caption: str) -> Any:
    """Draws a curve for each server: which share of the requests still waits after which time. The
    axis of the share is logarithmic, because the slowest requests matter."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, values in took.items():
        milliseconds = [value / 1e6 for value in sorted(values)]
        left = [1 - rank / len(values) for rank in range(len(values))]
        axes.plot(milliseconds, left, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yscale("log")
    axes.set_ylim(0.002, 1)
    axes.set_yticks([1, 0.5, 0.1, 0.01], ["all", "p50", "p90", "p99"])
    axes.grid(alpha=0.3)
    axes.set_xlabel(
        f"ms until a short request is answered; left is better\n{caption}", fontsize="small"
    )
    axes.set_title("pool: short requests beside long ones", fontsize="medium", loc="left")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def draw_samples(pyplot: Any, samples: list[dict[str, float]], caption: str) -> Any:
    """Draws what the process holds, and how fast it is, over time, one graph below the other."""
    figure, axes = pyplot.subplots(3, sharex=True, figsize=(8, 6), layout="constrained")
    seconds = [sample["seconds"] for sample in samples]
    rates = [
        (after["messages"] - before["messages"]) / (after["seconds"] - before["seconds"])
        for before, after in itertools.pairwise(samples)
    ]
    curves = {
        "open descriptors": [sample["descriptors"] for sample in samples],
        "resident memory, MiB": [sample["rss_kib"] / 1024 for sample in samples],
        "messages per second": [0, *rates],
    }
    for each, (name, values) in zip(axes, curves.items(), strict=True):
        each.plot(seconds, values, linewidth=0.8)
        each.set_ylim(bottom=0)
        each.set_ylabel(name, fontsize="small")
        each.grid(alpha=0.3)
    axes[-1].set_xlabel(f"seconds\n{caption}", fontsize="small")
    axes[0].set_title(
        "mixed: the servers' process, while clients are killed and suspended",
        fontsize="medium",
        loc="left",
    )
    return figure


def _draw_all(pyplot: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the name and the figure of each table in a file that --json wrote."""
    raw = json.loads(path.read_text())
    caption = describe(raw["metadata"]).replace(", cffi", ",\ncffi")
    if "latency_ns" in raw:
        yield "pool-latency", draw_latency(pyplot, raw["latency_ns"], caption)
        return
    if "samples" in raw:
        yield "mixed", draw_samples(pyplot, raw["samples"], caption)
        return
    results = load(path)
    for table in results.tables:
        if not all(case.skipped for case in table.cases):
            yield table.name, draw_table(pyplot, table, caption)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks plot", description="Draws each table as SVG and PNG."
    )
    parser.add_argument("results", type=Path, help="what --json kept")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where to")
    options = parser.parse_args(arguments)
    pyplot = _import_pyplot()
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        for name, figure in _draw_all(pyplot, options.results):
            for form in _FORMATS:
                path = options.output / f"{name}.{form}"
                # Without a date, the same results give the same file.
                metadata = {"Date": None} if form == "svg" else None
                figure.savefig(path, dpi=150, metadata=metadata)
                print(path)
            pyplot.close(figure)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"benchmarks: cannot draw {options.results}: {error}", file=sys.stderr)
        return 1
    return 0
