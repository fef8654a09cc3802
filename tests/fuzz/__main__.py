"""Compiles each target with clang, runs it, says how often."""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from support.c_core import CORE, ROOT, SANITIZE, SOURCES, STRICT

FOLDER = ROOT / "tests" / "c"
TARGETS = sorted(path.stem.removeprefix("fuzz_") for path in FOLDER.glob("fuzz_*.c"))


def fuzz(target: str, seconds: int, corpus: Path) -> bool:
    """Whether all went well. corpus: where new inputs go, and are taken from the next time."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program")
        options = [*STRICT, *SANITIZE, "-O1", "-fsanitize=fuzzer", "-DFUZZ_GUIDED", "-pthread"]
        source = FOLDER / f"fuzz_{target}.c"
        command: list[str | Path] = [
            "clang",
            *options,
            f"-I{CORE}",
            *SOURCES,
            source,
            "-o",
            program,
        ]
        subprocess.run(command, check=True)
        found = corpus / target
        found.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={seconds}", "-max_len=1500", "-print_final_stats=1"]
        # An input that takes more seconds, or more MB in one piece, is a finding.
        limits += ["-timeout=5", "-malloc_limit_mb=20"]
        artifacts = f"-artifact_prefix={corpus}/{target}-"
        done = subprocess.run(
            [program, *limits, artifacts, found, FOLDER / "corpus" / target],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    print(f"{target}: {runs[1] if runs else 'no'} inputs, status {done.returncode}", flush=True)
    if done.returncode != 0 or runs is None:
        print(done.stderr[-10_000:])
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument("--corpus", type=Path, help="keep what is found there, to go on from it")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder)
        all_well = [fuzz(target, options.seconds, corpus) for target in options.targets or TARGETS]
    return 0 if all(all_well) else 1


if __name__ == "__main__":
    sys.exit(main())
