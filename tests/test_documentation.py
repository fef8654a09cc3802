"""The programs of README.md and docs/ run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from support.processes import FDPASS, Program
from support.server import Server

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECONDS = 30


class Block(NamedTuple):
    page: str
    line: int
    text: str
    why_not_run: str | None


def find_blocks(language: str) -> list[Block]:
    """The blocks of code in that language; <!-- not run: why --> may stand before one."""
    fence = re.compile(
        rf"^(?:<!-- not run: (.*) -->\n)?```{language}\b.*\n((?:.*\n)*?)```$", re.MULTILINE
    )
    return [
        Block(str(page.relative_to(ROOT)), text.count("\n", 0, found.start(2)), found[2], found[1])
        for page in PAGES
        for text in [page.read_text()]
        for found in fence.finditer(text)
    ]


def is_server(block: Block) -> bool:
    return "Pool(" in block.text and ".serve(" in block.text


def named(blocks: list[Block]) -> list[object]:
    """The blocks as parameters of a test, each under its place."""
    return [
        pytest.param(
            block,
            id=f"{block.page}:{block.line}",
            marks=pytest.mark.skip(block.why_not_run) if block.why_not_run else (),
        )
        for block in blocks
    ]


PYTHON = find_blocks("python")


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("block", named([block for block in PYTHON if not is_server(block)]))
def test_programs(block: Block, tmp_path: Path) -> None:
    """Each program in Python runs to its end without a word of complaint, beside two files."""
    for name in ["README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", named([block for block in PYTHON if is_server(block)]))
def test_servers(block: Block, tmp_path: Path) -> None:
    """Each server in Python serves, at other addresses than the page's, and stops when told to."""
    addresses = ("127.0.0.1:0", str(tmp_path / "socket"))
    text = re.sub(r"\.serve\(.*\)", f".serve{addresses}", block.text)
    log = "import logging; logging.basicConfig(level=logging.INFO)\n"
    with Server(program=("-c", log + text), addresses=addresses) as server:
        assert server.ask(b"hello").endswith(b"hello")
        assert server.stop() == 0


def counterpart(line: str) -> str:
    """The other side for a command that sends or receives."""
    other = "recv --names" if "fdpass send" in line else "send"
    files = "notes.txt plan.txt" if other == "send" else ""
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
    (tmp_path / "fdpass").write_text(f'#!/bin/sh\nexec {" ".join(FDPASS)} "$@"\n')
    (tmp_path / "fdpass").chmod(0o700)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = line.replace("/tmp/s", "socket")
    if "--connect" in line:
        line = line.replace("--connect", f"--timeout {SECONDS} --connect")
    with Program[str](
        counterpart(line), shell=True, cwd=tmp_path, env=path, stdout=subprocess.DEVNULL
    ) as peer:
        subprocess.run(
            line, shell=True, cwd=tmp_path, env=path, stdout=subprocess.DEVNULL, check=True
        )
        assert peer.wait() == 0


def test_finds_them() -> None:
    """Neither a page nor a kind of block went unseen."""
    assert {block.page for block in PYTHON} >= {"README.md", "docs/asyncio.md", "docs/pool.md"}
    assert LINES
