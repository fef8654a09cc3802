"""The programs of README.md and docs/ run as they stand."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

import fdpass_c
import fdpass_c.aio
import fdpass_c.pool
import fdpass_c.testing
from support.processes import FDPASS, Program
from support.server import Server

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECONDS = 30
# A script may compile something.
SCRIPT_SECONDS = 50
# As most readers have it: what is printed to a pipe is kept until Python exits.
BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}


class Block(NamedTuple):
    page: Path
    line: int
    title: str | None
    text: str
    why_not_run: str | None
    runs: bool
    needs: list[str]
    output: str | None


_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>.*) -->\n)?"
    r"(?:<!-- (?P<run>run)?,? ?(?:needs: (?P<needs>.*?))? ?-->\n)?"
    r"```(?P<language>\w*)(?: title=\"(?P<title>.*)\"| \w+)?\n(?P<text>(?:.*\n)*?)```$"
    r"(?:\n\n```text\n(?P<output>(?:.*\n)*?)```$)?",
    re.MULTILINE,
)


def find_blocks(language: str) -> list[Block]:
    """The blocks of code in that language, with what the comment before each says.

    <!-- not run: why -->: it cannot be. <!-- needs: numpy, os.memfd_create, cc, linux -->: modules,
    what is in them, programs, or the system without which it is skipped. <!-- run -->: a script,
    run among the files of its page, which are the blocks with a title; a block of text right after
    it is what it prints.
    """
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")),
            found["title"],
            found["text"],
            found["why"],
            found["run"] is not None,
            re.findall(r"[^, ]+", found["needs"] or ""),
            found["output"],
        )
        for page in PAGES
        for text in [page.read_text()]
        for found in _FENCE.finditer(text)
        if not language or found["language"] == language
    ]


def is_server(block: Block) -> bool:
    return "Pool(" in block.text and ".serve(" in block.text


def named(blocks: list[Block]) -> list[object]:
    """The blocks as parameters of a test, each under its place."""
    return [
        pytest.param(
            block,
            id=f"{block.page.relative_to(ROOT)}:{block.line}",
            marks=pytest.mark.skip(block.why_not_run) if block.why_not_run else (),
        )
        for block in blocks
    ]


def skip_without(needs: list[str]) -> None:
    if "linux" in needs and sys.platform != "linux":
        pytest.skip("a program for Linux")
    for name in {*needs} - {"linux"}:
        if not is_there(name):
            pytest.skip(f"{name} is not installed")


def is_there(name: str) -> bool:
    """Whether there is such a module, a thing in a module, or a program."""
    module, dot, attribute = name.partition(".")
    if dot:
        return hasattr(import_module(module), attribute)
    return find_spec(name) is not None or shutil.which(name) is not None


PYTHON = [block for block in find_blocks("python") if block.title is None]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("block", named([block for block in PYTHON if not is_server(block)]))
def test_programs(block: Block, tmp_path: Path) -> None:
    """Each program in Python runs to its end without a word of complaint, beside two files. What it
    prints is seen in a pipe too, also from a child that ends with os._exit."""
    skip_without(block.needs)
    for name in ["README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text],
        cwd=tmp_path,
        env=BUFFERED,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == ("print(" in block.text)


@pytest.mark.parametrize("block", named([block for block in PYTHON if is_server(block)]))
def test_servers(block: Block, tmp_path: Path) -> None:
    """Each server in Python serves, at other addresses than the page's, and stops when told to."""
    addresses = ("127.0.0.1:0", str(tmp_path / "socket"))
    text = re.sub(r"\.serve\(.*\)", f".serve{addresses}", block.text)
    log = "import logging; logging.basicConfig(level=logging.INFO)\n"
    with Server(program=("-c", log + text), addresses=addresses) as server:
        assert server.ask(b"hello").endswith(b"hello")
        assert server.stop() == 0


def with_commands(folder: Path) -> dict[str, str]:
    """The environment, with a folder of python3 and fdpass that are this interpreter's."""
    folder.mkdir()
    for name, command in {"python3": [sys.executable], "fdpass": FDPASS}.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        (folder / name).chmod(0o700)
    return {**BUFFERED, "PATH": f"{folder}:{os.environ['PATH']}"}


class FreePorts(dict[str, str]):
    """A free port for each port that the pages name, at which another program may listen."""

    def __missing__(self, port: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self[port] = free = str(probe.getsockname()[1])
        return free

    def replace(self, text: str) -> str:
        where = r'(?<=127\.0\.0\.1)(:|", )(8\d\d\d)\b'
        return re.sub(where, lambda found: found[1] + self[found[2]], text)


SCRIPTS = [block for block in find_blocks("sh") if block.runs]
FILES = [block for block in find_blocks("") if block.title]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("block", named(SCRIPTS))
def test_scripts(block: Block, tmp_path: Path) -> None:
    """Each script, among the files of its page, prints what the page says, and nothing else."""
    skip_without(block.needs)
    environment = with_commands(tmp_path / "commands")
    folder = tmp_path / "files"
    folder.mkdir()
    ports = FreePorts()
    for file in FILES:
        if file.page == block.page and file.title:
            (folder / file.title).write_text(ports.replace(file.text))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ports.replace(block.text)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SCRIPT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (block.output or "")


@pytest.mark.parametrize("block", named(SCRIPTS + FILES))
def test_no_fixed_port(block: Block) -> None:
    """No script or file uses a port that another program may have."""
    assert not re.search(r"\b8\d\d\d\b", FreePorts().replace(block.text))


def test_every_file_is_run() -> None:
    """A page with files has a script that uses them, or a test of its own."""
    elsewhere = {ROOT / "docs" / "how-to" / "ssh.md"}
    assert {file.page for file in FILES} == {block.page for block in SCRIPTS} | elsewhere


def counterpart(line: str) -> str:
    """The other side for a command that sends or receives."""
    other = "recv --names" if "fdpass send" in line else "send"
    files = "notes.txt plan.txt" if other == "send" else ""
    if " -- " in line and "--at" not in line:
        files = "notes.txt"  # The program takes one, and a second could come too late.
    if "--listen" in line:
        return f"fdpass {other} --connect socket --timeout {SECONDS} {files}"
    return f"fdpass {other} --listen socket {files}"


LINES = [
    pytest.param(line, id=line.partition("#")[0].strip())
    for block in find_blocks("sh")
    for line in block.text.splitlines()
    if re.match("fdpass (send|recv) ", line)
]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("line", LINES)
def test_commands(line: str, tmp_path: Path) -> None:
    """Each command that passes files does so, with a peer that does the opposite."""
    for name in ["notes.txt", "plan.txt"]:
        (tmp_path / name).write_text("the same\n")
    (tmp_path / "incoming").mkdir()
    environment = with_commands(tmp_path / "commands")
    line = line.replace("/tmp/s", "socket")
    if "--connect" in line:
        line = line.replace("--connect", f"--timeout {SECONDS} --connect")
    with Program[str](
        counterpart(line), shell=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    ) as peer:
        subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, check=True
        )
        assert peer.wait() == 0


def test_finds_them() -> None:
    """Neither a page nor a kind of block went unseen."""
    names = {str(block.page.relative_to(ROOT)) for block in PYTHON}
    assert names >= {
        "README.md",
        "docs/asyncio.md",
        "docs/pool.md",
        "docs/why.md",
        "docs/how-to/memory.md",
    }
    assert LINES
    text = "".join(page.read_text() for page in PAGES)
    assert text.count("\n```") == 2 * len(find_blocks("")) + 2 * count_outputs()


def count_outputs() -> int:
    return sum(block.output is not None for block in find_blocks(""))


MODULES = [fdpass_c, fdpass_c.aio, fdpass_c.pool, fdpass_c.testing]


def test_reference_is_complete() -> None:
    """The reference has every public name, once."""
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").iterdir())
    for module in MODULES:
        listed = re.findall(rf"^::: {re.escape(module.__name__)}\.(\w+)$", pages, re.MULTILINE)
        assert sorted(listed) == sorted(module.__all__)


RUN = [block.text for block in PYTHON + FILES if not block.why_not_run]
RUN += [path.read_text() for path in (ROOT / "examples").glob("*.py")]


def test_every_name_is_in_a_program() -> None:
    """Every public name is in a program that a test runs, and that uses its module."""
    for module in MODULES:
        own = module.__name__.rpartition(".")[2]
        used = {word for text in RUN if own in text for word in re.findall(r"\w+", text)}
        assert {*module.__all__} - used == set()


_IN_REPOSITORY = re.compile(
    r"https://(?:raw\.githubusercontent\.com/fdpass/fdpass_c/main"
    r"|github\.com/fdpass/fdpass_c/(?:blob|tree)/main)/([^#\s)]*)"
)


def test_links_of_the_readme() -> None:
    """They work on a package index too: all are whole addresses."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((.*?)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)


def test_links_into_the_repository() -> None:
    """Where a page names a file by the repository's address, there is one."""
    named_files = [name for page in PAGES for name in _IN_REPOSITORY.findall(page.read_text())]
    assert named_files
    assert [name for name in named_files if not (ROOT / name).exists()] == []
    # Wheels are tested without the rest of the repository.
    (beside_wheels,) = re.findall(
        r"^test-sources = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert {Path(name).parts[0] for name in named_files} <= {*re.findall('"(.*?)"', beside_wheels)}


def test_figures() -> None:
    """The table of the performance, and the words for its chart, are those of what was measured."""
    if not (ROOT / "benchmarks").exists():
        pytest.skip("tests what is installed, without a source tree around it")
    # Not "-m benchmarks", which needs the package: in the source tree it may not be compiled.
    program = "from benchmarks import markdown; markdown.main(['docs/performance.json'])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    _, table, words = done.stdout.strip().split("\n\n")
    assert table in (ROOT / "docs/performance.md").read_text()
    for page in ("README.md", "docs/index.md", "docs/performance.md"):
        assert f"![{words}]" in (ROOT / page).read_text(), page
    chart = (ROOT / "docs/images/channel-across.svg").read_text()
    ours = re.findall(r">([0-9.]+)x<", chart)[:5]
    # Both are rounded, the chart's to two decimals: at most half of the last digits apart.
    told = re.findall(r"([0-9.]+) at", words)
    for ratio, word in zip(ours, told, strict=True):
        assert abs(float(ratio) - float(word)) < 0.0551
