"""share/ has completions and a manual page that know the command line as it is."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from fdpass_c.__main__ import build_parser, find_commands, list_commands
from support.c_core import ROOT

SHARE = ROOT / "share"
BASH = SHARE / "bash-completion" / "completions" / "fdpass"
FILES = [path for path in sorted(SHARE.rglob("*")) if path.is_file()]

# As it is installed.
PARSER = build_parser(with_bench=False)
COMMANDS = list_commands(PARSER)

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def list_options(parser: argparse.ArgumentParser) -> set[str]:
    return {text for action in parser._actions for text in action.option_strings if len(text) > 2}


def find(path: Path, word: str) -> bool:
    """Whether the file has the word; in a manual page a hyphen can be escaped, and in the
    completions of fish a long option has none."""
    text = path.read_text().replace("\\-", "-")
    return (word if path.suffix != ".fish" else word.lstrip("-")) in text


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_knows_every_option(path: Path) -> None:
    """Each file names each command and all of its options; nox -s shell_files writes them anew."""
    wanted = {name.partition(" ")[2] for name in COMMANDS}
    wanted |= set().union(*map(list_options, COMMANDS.values())) - {"--help"}
    assert {word for word in wanted if not find(path, word)} == set()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_menu_of_commands(shell: str) -> None:
    """A menu says in whole what each command does: its help, and not a line of its description."""
    (path,) = (path for path in FILES if shell in path.parts)
    text = path.read_text().replace("'\"'\"'", "'")
    helps = [action.help for action in find_commands(PARSER)._choices_actions]
    assert [help for help in helps if str(help) not in text] == []


def complete(line: str, cwd: Path) -> list[str]:
    """What bash offers at the end of the line."""
    *words, last = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in [*words, last])
    script = (
        f"source '{BASH}'; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
        "_shtab_fdpass; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=cwd, capture_output=True, text=True, timeout=60, check=True
    )
    assert not done.stderr
    return sorted(done.stdout.split())


@needs_bash
@pytest.mark.thread_unsafe
def test_bash(tmp_path: Path) -> None:
    """bash completes commands, options and the names of files."""
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    offered = {
        "fdpass ": sorted(name.partition(" ")[2] for name in COMMANDS),
        "fdpass re": ["recv"],
        "fdpass recv --sa": ["--save"],
        "fdpass pool --": sorted(list_options(COMMANDS["fdpass pool"])),
        "fdpass cat no": ["notes.txt"],
        "fdpass send --listen no": ["notes.txt"],
        "fdpass recv --save ": ["folder"],
    }
    assert {line: complete(line, tmp_path) for line in offered} == offered


@pytest.mark.thread_unsafe
@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_manual_page() -> None:
    """groff reads the page without a warning."""
    page = SHARE / "man" / "man1" / "fdpass.1"
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(page)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
