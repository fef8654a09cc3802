"""Functions that the tools in this folder share: build folders, commands, progress and tables."""

import shlex
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


class Failure(Exception):
    """A step failed. The text says why, for people."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Runs a command and returns its output. Failure, with the whole output: it failed."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            env=env,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired as error:
        output = error.output or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        raise Failure(f"{shlex.join(words)}\nno end after {timeout:.0f} s\n{text}") from None
    except OSError as error:
        raise Failure(f"{shlex.join(words)}\n{error}") from None
    if done.returncode != 0:
        raise Failure(f"{shlex.join(words)}\nexit status {done.returncode}\n{done.stdout}")
    return done.stdout


def make_environment(
    name: str, requirements: Iterable[str | Path], python: str | Path = sys.executable
) -> Path:
    """Makes a virtual environment under build/ with these packages. Returns its interpreter."""
    home = BUILD / "environments" / name
    interpreter = home / "bin" / "python"
    if Path(python) == Path(sys.executable):
        venv.create(home, clear=True, with_pip=True)
    else:
        run([python, "-m", "venv", "--clear", home])
    install(interpreter, requirements)
    return interpreter


def install(python: Path, requirements: Iterable[str | Path]) -> None:
    wanted = [str(requirement) for requirement in requirements]
    if wanted:
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])


def show_progress(text: str) -> None:
    """Shows one line on a terminal, which the next one replaces. '' clears it. Shows nothing if
    standard error is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text[:100]}")
        sys.stderr.flush()


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown with aligned columns."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
