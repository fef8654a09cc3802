"""Results as data: everything that the report and the plots need, written to and read from JSON."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

STANDARD = "standard library"
OURS = "fdpass_c"
FLOOR = "C floor"


@dataclass(frozen=True)
class Measured:
    """One contender in one case: how long each round of so many passes took."""

    name: str
    passes: int
    rounds_ns: list[int]
    growth_kib: int | None = None


@dataclass(frozen=True)
class CaseResult:
    """One row: the contenders of a case. units: how many things one pass moves."""

    name: str
    units: int
    contenders: list[Measured] = field(default_factory=list)
    skipped: str = ""

    def median_ns(self, name: str) -> float | None:
        """The median time of one unit; None for a contender that is not in this row."""
        for contender in self.contenders:
            if contender.name == name:
                return median(contender.rounds_ns) / contender.passes / self.units
        return None

    def ratio(self, over: str, under: str) -> float | None:
        """How many times as long one contender takes as another."""
        dividend, divisor = self.median_ns(over), self.median_ns(under)
        return dividend / divisor if dividend and divisor else None


@dataclass(frozen=True)
class TableResult:
    """One table. baseline: the contender that others are compared with."""

    name: str
    title: str
    unit: str
    baseline: str
    notes: list[str]
    cases: list[CaseResult]

    def contender_names(self) -> list[str]:
        """Every contender of any row, in order of appearance, the floor last."""
        names = dict.fromkeys(one.name for case in self.cases for one in case.contenders)
        return sorted(names, key=FLOOR.__eq__)


@dataclass(frozen=True)
class Results:
    metadata: dict[str, Any]
    tables: list[TableResult]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load(path: Path) -> Results:
    """Results as save() wrote them."""
    raw = json.loads(path.read_text())
    return Results(raw["metadata"], [_load_table(table) for table in raw["tables"]])


def _load_table(raw: dict[str, Any]) -> TableResult:
    cases = [
        CaseResult(**{**case, "contenders": [Measured(**one) for one in case["contenders"]]})
        for case in raw["cases"]
    ]
    return TableResult(**{**raw, "cases": cases})


def collect_metadata(compiler: str) -> dict[str, Any]:
    """Returns where and with what the numbers were measured. compiler: the command that compiled
    the C floor."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": _read_cpu_model(),
        "cpus": sorted(affinity(0)) if affinity else list(range(os.cpu_count() or 1)),
        "load": round(os.getloadavg()[0], 2),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cffi": version("cffi"),
        "fdpass_c": version("fdpass-c"),
        "libc": " ".join(platform.libc_ver()).strip(),
        "compiler": subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, check=True
        ).stdout.split("\n")[0],
    }


def _read_cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def describe(metadata: dict[str, Any]) -> str:
    """Returns the metadata as one line, to be shown with the numbers."""
    return (
        "{system} {kernel}, {cpu}, {count} CPUs, load {load}, {python}, cffi {cffi}, "
        "fdpass_c {fdpass_c}, {compiler}, {date}"
    ).format(count=len(metadata["cpus"]), **metadata)
