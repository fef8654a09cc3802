"""Checks that the version, the changelog and the tag of a release agree.

    python tools/release.py          # checks that the changelog has a section for the current code
    python tools/release.py v0.1.0   # checks that this commit can be released as that version

A release is made by pushing the tag: then the workflow "Wheels" runs this check, builds all files
and publishes them. CONTRIBUTING.md says what to do before.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
_SECTION = re.compile(r"^## (?P<version>\S+) \((?P<date>unreleased|\d{4}-\d\d-\d\d)\)$")


def find_problems(version: str, changelog: str, tag: str | None, has_changed: bool) -> list[str]:
    """Returns what prevents a release with this tag. Without a tag, returns what would prevent a
    later release.

    has_changed: whether the code differs from the code at the tag of version.
    """
    headings = [line for line in changelog.splitlines() if line.startswith("## ")]
    sections = [*map(_SECTION.match, headings)]
    problems = [
        f"{heading!r} is not '## VERSION (YYYY-MM-DD)' or '(unreleased)'"
        for heading, section in zip(headings, sections, strict=True)
        if section is None
    ]
    found = [(section["version"], section["date"]) for section in sections if section]
    if not found:
        return [*problems, "CHANGELOG.md has no section"]
    latest, date = found[0]
    if latest != version:
        problems.append(f"__version__ is {version}, the first section of the changelog {latest}")
    numbers = [[int(number) for number in re.findall(r"\d+", name)] for name, _ in found]
    if any(newer <= older for newer, older in pairwise(numbers)):
        problems.append("the sections of the changelog are not in order, the newest first")
    if any(date == "unreleased" for _, date in found[1:]):
        problems.append("only the first section of the changelog can be unreleased")
    if re.search(r"^## .*\n\s*(?=## |\Z)", changelog, re.MULTILINE):
        problems.append("a section of the changelog is empty")
    if tag is not None and tag != f"v{version}":
        problems.append(f"the tag is {tag}, and __version__ {version}")
    if tag is not None and date == "unreleased":
        problems.append("the first section of the changelog has no date yet")
    if tag is None and has_changed and date != "unreleased":
        problems.append(f"the code has changed since {version}, and the changelog says nothing")
    return problems


def has_changed_since(tag: str) -> bool:
    """Whether the code differs from the code at the tag. False if there is no such tag."""
    code = ["fdpass_c", "fdpass_c_pytest.py", "csrc"]
    command = ["git", "diff", "--quiet", tag, "--", *code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1


def main(arguments: Sequence[str]) -> int:
    tag = arguments[0] if arguments else None
    (version,) = _VERSION.findall((ROOT / "fdpass_c" / "__init__.py").read_text())
    changelog = (ROOT / "CHANGELOG.md").read_text()
    problems = find_problems(version, changelog, tag, has_changed_since(f"v{version}"))
    for problem in problems:
        print(f"release: {problem}", file=sys.stderr)
    if not problems:
        print(f"release: {version} can be tagged" if tag else f"release: {version} is described")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
