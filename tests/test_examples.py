"""Every example runs and shows what it says; the plain wire is that of the C tutorials."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from support.processes import FDPASS, Program

pytestmark = pytest.mark.thread_unsafe

_ROOT = Path(__file__).parents[1]
_EXAMPLES = _ROOT / "examples"
_PEERS = Path(__file__).parent / "c_peers"


def example(name: str) -> list[str]:
    return [sys.executable, "-W", "error", str(_EXAMPLES / f"{name}.py")]


def run(command: list[str], *arguments: object, status: int = 0) -> str:
    """Standard output of a program that ends with this status and says nothing else."""
    done = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    assert status or not done.stderr
    return done.stdout


@contextmanager
def started(command: list[str], *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """A program that runs in the background, and ends well before the block does."""
    with Program([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
            assert process.wait(60) == 0
        finally:
            process.kill()


def wait_for_listener(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("gather_write", "21 bytes\n"),
        ("message_and_file", "the parent was here\nhello child\n"),
        ("ping_pong", "counted to 10000: "),
        ("shared_offset", "descriptor "),
        ("strange_cat", '"""The strange cat'),
    ],
)
def test_without_arguments(
    name: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example does something without arguments too."""
    monkeypatch.chdir(tmp_path)
    assert run(example(name)).startswith(output)


def test_gather_write(tmp_path: Path) -> None:
    """Several strings are one stretch of the file."""
    path = tmp_path / "file"
    assert run(example("gather_write"), path) == "21 bytes\n"
    assert path.read_text() == "gather these strings\n"


def test_message_and_file(tmp_path: Path) -> None:
    """The child writes the strings through the descriptor, and reads the file."""
    path = tmp_path / "file"
    assert run(example("message_and_file"), path) == "the parent was here\nhello child\n"
    assert path.read_text() == "the parent was here\nhello child\n"


def test_ping_pong() -> None:
    """The counter arrives."""
    assert run(example("ping_pong"), 1000).startswith("counted to 1000: ")


def test_shared_offset(tmp_path: Path) -> None:
    """The parent's text stands behind the child's, in the child's file."""
    run(example("shared_offset"), tmp_path / "file1", tmp_path / "file2")
    assert (tmp_path / "file1").read_text() == "the child began, the parent went on\n"
    assert (tmp_path / "file2").read_text() == "the parent's own file\n"
    # A child that fails is not waited for.
    run(example("shared_offset"), tmp_path / "missing" / "file1", tmp_path / "file2", status=1)


def test_strange_cat(tmp_path: Path) -> None:
    """It prints what there is, and goes on past what there is not."""
    path = tmp_path / "file"
    path.write_text("content\n")
    assert run(example("strange_cat"), path, path) == "content\ncontent\n"
    assert run(example("strange_cat"), "missing", path, status=1) == "content\n"
    odd = tmp_path / os.fsdecode(b"no UTF-8: \xff")
    path.rename(odd)
    assert run(example("strange_cat"), odd) == "content\n"
    assert run(example("strange_cat"), path.with_name(odd.name + "?"), odd, status=1) == "content\n"
    assert len((_EXAMPLES / "strange_cat.py").read_text().splitlines()) < 40


def test_sender_and_receiver(tmp_path: Path) -> None:
    """Two programs that share nothing but a path pass a file."""
    path = tmp_path / "file"
    path.write_text("content\n")
    with started(example("file_sender"), tmp_path / "socket", path) as sender:
        wait_for_listener(sender)
        assert run(example("file_receiver"), tmp_path / "socket") == "hello: content\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def test_without_the_other_program(tmp_path: Path) -> None:
    """An example whose partner was not started says so in one line."""
    for name, *arguments in (
        ("file_receiver", str(tmp_path / "socket")),
        ("pool_client", f"127.0.0.1:{free_port()}", "1"),
    ):
        done = subprocess.run([*example(name), *arguments], stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{arguments[0]}: ")


@contextmanager
def listening(name: str, *arguments: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A server example at a free port; (process, address)."""
    address = f"127.0.0.1:{free_port()}"
    command = [*example(name), address, *map(str, arguments)]
    with Program(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "listening" in line:
                    break
            yield process, address
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_process_pool() -> None:
    """Every request is answered; of connections held at once, each worker has one."""
    with listening("process_pool", 4) as (_, address):
        lines = run(example("pool_client"), address, 100).splitlines()
        counts = [int(line.split()[-1]) for line in lines]
        assert (len(counts), sum(counts)) == (4, 100)
        host, _, port = address.partition(":")
        for _ in range(25):
            with ExitStack() as stack:
                pids = set()
                for _ in range(4):
                    sock = stack.enter_context(socket.create_connection((host, int(port))))
                    sock.sendall(b"hello\n")
                    pids.add(sock.recv(100).split()[0])
            assert len(pids) == 4


def test_http_server() -> None:
    """It keeps connections alive, closes them where it is asked to, and answers a HEAD."""
    with listening("http_server") as (_, address):
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n" * 2 + b"HEAD / HTTP/1.1\r\n\r\n")
            sock.sendall(b"POST / HTTP/1.1\r\n\r\n")
            with sock.makefile("rb") as stream:
                answer = stream.read()
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert answer.count(b"hello from worker") == 3
        assert answer.count(b"405 Method Not Allowed") == 1
        for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"):
            with socket.create_connection((host, int(port))) as sock:
                sock.sendall(request)
                with sock.makefile("rb") as stream:
                    assert stream.read().count(b"Connection: close") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_http_server_leaves(signum: int) -> None:
    """Idle connections end when their worker is to leave, which does not wait to be killed."""
    with listening("http_server") as (process, address):
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))) as sock, sock.makefile("rb") as stream:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"200 OK" in stream.readline()
            process.send_signal(signum)
            assert stream.read().endswith(b"\n")
        if signum == signal.SIGTERM:
            assert process.wait(60) == 0  # A second one would kill it.


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_http_server_and_curl() -> None:
    """curl gets an answer."""
    with listening("http_server") as (_, address):
        assert run(["curl", "-sS"], f"http://{address}/").startswith("hello from worker ")


@pytest.fixture(scope="session")
def c_peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the two C programs, built."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("c_peers")
    for name in ("sender", "receiver"):
        flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
        command = [
            *compiler.split(),
            *flags,
            "-o",
            str(directory / name),
            str(_PEERS / f"{name}.c"),
        ]
        subprocess.run(command, check=True)
    return directory


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content\n")
    return path


sizes = pytest.mark.parametrize("size", [1, 10])


@sizes
def test_c_sender_listens(size: int, c_peers: Path, file: Path, tmp_path: Path) -> None:
    """Ours connects to a C sender and takes the payload and the file."""
    sender = [str(c_peers / "sender"), "listen", str(tmp_path / "s"), str(size), str(file)]
    for reading, expected in (("--names", "0123456789"[:size] + "\n"), ("--count=1", "content\n")):
        with started(sender) as process:
            wait_for_listener(process)
            assert run(FDPASS, "recv", reading, "--connect", tmp_path / "s") == expected
        (tmp_path / "s").unlink()


def test_c_sender_connects(c_peers: Path, file: Path, tmp_path: Path) -> None:
    """Ours listens for a C sender."""
    with started(FDPASS, "recv", "--listen", tmp_path / "s") as receiver:
        meet(tmp_path / "s", [str(c_peers / "sender"), "connect"], 5, file)
        assert receiver.stdout is not None
        assert receiver.stdout.read() == "content\n"


@sizes
def test_c_receiver_listens(size: int, c_peers: Path, file: Path, tmp_path: Path) -> None:
    """Ours connects to a C receiver and passes the file with so many bytes."""
    payload = "0123456789"[:size]
    receiver = [str(c_peers / "receiver"), "listen", str(tmp_path / "s"), str(size)]
    with started(receiver) as process:
        wait_for_listener(process)
        run(FDPASS, "send", "--payload", payload, "--connect", tmp_path / "s", file)
        assert process.stdout is not None
        assert process.stdout.read() == f"{payload}\ncontent\n"


def test_c_receiver_connects(c_peers: Path, file: Path, tmp_path: Path) -> None:
    """Ours listens for a C receiver."""
    payload = "01234"
    with started(FDPASS, "send", "--payload", payload, "--listen", tmp_path / "s", file):
        output = meet(tmp_path / "s", [str(c_peers / "receiver"), "connect"], 5)
        assert output == f"{payload}\ncontent\n"


def meet(path: Path, command: list[str], *arguments: object) -> str:
    """Runs a C program that connects to path, again until somebody listens there."""
    deadline = time.monotonic() + 60
    while True:
        words = [*command, str(path), *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0 or time.monotonic() > deadline:
            assert done.returncode == 0, done.stderr
            return done.stdout


def test_c_peers_and_examples(c_peers: Path, file: Path, tmp_path: Path) -> None:
    """The sender and receiver among the examples talk to the C ones."""
    with started(example("file_sender"), tmp_path / "s", file) as sender:
        wait_for_listener(sender)
        assert run([str(c_peers / "receiver"), "connect"], tmp_path / "s", 5) == "hello\ncontent\n"
    with started(
        [str(c_peers / "sender"), "listen", str(tmp_path / "t"), "5", str(file)]
    ) as sender:
        wait_for_listener(sender)
        assert run(example("file_receiver"), tmp_path / "t") == "01234: content\n"
