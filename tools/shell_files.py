"""Writes the files in share/ again: completions for bash, zsh and fish, and the manual page.

    python tools/shell_files.py

They are generated from the parsers of the command line. Run this when those change.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import shtab
from argparse_manpage.manpage import Manpage
from workshop import ROOT

from fdpass_c.__main__ import build_parser, find_commands, list_commands

_COMPLETIONS = {
    "bash": "bash-completion/completions/fdpass",
    "zsh": "zsh/site-functions/_fdpass",
    "fish": "fish/vendor_completions.d/fdpass.fish",
}
_FILES = {"FILE", "PATH", "ADDRESS"}


def complete_files(parser: argparse.ArgumentParser) -> None:
    """Tells shtab which arguments are files."""
    for action in parser._actions:
        marked: Any = action  # shtab reads an attribute that argparse's type does not have.
        if action.metavar in _FILES:
            marked.complete = shtab.FILE
        elif action.metavar == "DIRECTORY":
            marked.complete = shtab.DIRECTORY


def make_page(parser: argparse.ArgumentParser) -> str:
    parser.man_short_description = "pass open file descriptors"  # type: ignore[attr-defined]
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    page = Manpage(
        parser,
        {
            "project_name": "fdpass_c",
            "manual_title": "fdpass_c",
            "url": "https://github.com/fdpass/fdpass_c",
        },
        format="single-commands-section",
    )
    # Without filling, so that the lines of a usage stay as they are.
    return re.sub(r"^usage: .+?$(?=\n\n)", ".nf\n\\g<0>\n.fi", str(page), flags=re.M | re.S)


def main() -> int:
    os.environ["COLUMNS"] = "90"
    share = ROOT / "share"
    parser = build_parser(with_bench=False)  # What is installed has no benchmarks.
    written = {"man/man1/fdpass.1": make_page(parser)}
    for each in list_commands(parser).values():
        complete_files(each)
    commands = find_commands(parser)
    for action in commands._choices_actions:
        # shtab shows only the first line of a description, which can end inside of a sentence. So
        # the short help replaces it.
        commands.choices[action.dest].description = action.help
    written |= {path: shtab.complete(parser, shell) for shell, path in _COMPLETIONS.items()}
    for name, text in written.items():
        path: Path = share / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.rstrip() for line in text.rstrip().splitlines()) + "\n")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
