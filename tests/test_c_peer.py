"""examples/c/channel_peer.c, built on csrc/ alone, exchanges messages with a Channel."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdpass_c import Channel, Listener
from support.descriptors import identity
from support.messages import take
from support.processes import Program

pytestmark = pytest.mark.thread_unsafe

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built as the README says."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    found = re.search(r"^cc .*$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    assert found is not None
    built = tmp_path_factory.mktemp("c") / "channel_peer"
    command = found[0].replace(
        "-o channel_peer", f"-Wall -Wextra -Werror -o {shlex.quote(str(built))}"
    )
    subprocess.run(command, shell=True, cwd=ROOT, check=True)
    return built


@pytest.fixture
def peer(program: Path) -> Iterator[Channel]:
    """A channel to the program over an inherited socket."""
    ours, theirs = socket.socketpair()
    with (
        Channel(ours) as channel,
        theirs,
        Program[bytes](
            [program, str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
        ) as process,
    ):
        theirs.close()
        yield channel
        channel.close()
        assert process.wait() == 0


def test_single_messages(peer: Channel, file: int) -> None:
    """Messages of every small shape come back with the same descriptors."""
    this = identity(file)
    for payload, count in [(b"", 0), (b"hello", 0), (b"", 1), (b"hi", 2), (b"x" * 65_000, 253)]:
        peer.send(payload, [file] * count)
        assert take(peer.recv()) == (b"%d descriptors: " % count + payload, [this] * count)


def test_packed_messages(peer: Channel, file: int) -> None:
    """Messages that travel packed are answered one by one, in order."""
    payloads = [b"%d" % number for number in range(100)]
    peer.send_many(payloads, [file] * 100)
    answers = [take(peer.recv()) for _ in payloads]
    assert answers == [(b"1 descriptors: " + payload, [identity(file)]) for payload in payloads]
    peer.send_many([b"none", b"two"], [[], [file, file]])
    assert [len(take(peer.recv())[1]) for _ in range(2)] == [0, 2]


def test_large_messages(peer: Channel, file: int) -> None:
    """Messages that come in pieces are answered by such."""
    for size, count in ((5, 300), (200_000, 1), (300_000, 400), (0, 254)):
        payload = bytes(range(250)) * (size // 250 + 1)
        peer.send(payload[:size], [file] * count)
        received, fds = take(peer.recv())
        assert received == b"%d descriptors: " % count + payload[:size]
        assert fds == [identity(file)] * count


def test_connecting(program: Path, tmp_path: Path, file: int) -> None:
    """The program connects to a Listener."""
    path = tmp_path / "socket"
    with Listener(path) as listener:
        process = Program[bytes]([program, path])
        with process, listener.accept() as channel:
            assert channel.peer.pid == process.pid
            channel.send(b"hi", [file])
            assert take(channel.recv()) == (b"1 descriptors: hi", [identity(file)])
        assert process.returncode == 0


def test_violation(program: Path) -> None:
    """What breaks the protocol ends the program, which says so."""
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        Program[bytes](
            [program, str(theirs.fileno())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
        ) as process,
    ):
        ours.sendall(b"rubbish")
        assert process.stderr is not None
        assert b"receiving" in process.stderr.read()
        assert process.wait() == 1


def test_readme(program: Path, tmp_path: Path) -> None:
    """The README's program, started as it says, prints what it says."""
    text = (EXAMPLE / "README.md").read_text()
    script = text.split("```")[3].replace("/tmp/peer.sock", str(tmp_path / "sock"))
    script = script.replace("python3 -c", f"{shlex.quote(sys.executable)} -c")
    done = subprocess.run(
        ["bash", "-euc", f"{script}\nwait"],
        cwd=program.parent,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"b'2 descriptors: hello' <Descriptors \[\d+, \d+\]>\n", done.stdout)
