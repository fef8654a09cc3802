"""The commands do what their help says, fail in one line, and exit with the status it names."""

import contextlib
import json
import os
import pwd
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import fdpass_c
from fdpass_c.__main__ import build_parser, main
from fdpass_c.commands import bench
from support.c_core import ROOT
from support.marks import linux_only
from support.processes import FDPASS, Program
from support.signals import handling
from support.waiting import wait_until_blocked

pytestmark = pytest.mark.thread_unsafe

_BIG = 20 * 2**20


def fdpass(
    *arguments: object, status: int = 0, stdin: bytes = b"", cwd: Path | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Runs a command that ends with this status; a failure says why in one line."""
    done = subprocess.run(
        [*FDPASS, *map(os.fspath, map(str, arguments))],
        input=stdin,
        capture_output=True,
        timeout=60,
        cwd=cwd,
    )
    assert done.returncode == status, done.stderr.decode()
    if status != 2:
        assert b"Traceback" not in done.stderr
        assert all(line.startswith(b"fdpass: ") for line in done.stderr.splitlines())
    return done


@contextmanager
def started(*arguments: object, status: int = 0) -> Iterator["subprocess.Popen[bytes]"]:
    """A command in the background, that ends with this status before the block does."""
    with Program[bytes](
        [*FDPASS, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
            assert process.wait(60) == status
        finally:
            process.kill()


def output(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.read()


def errors(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stderr is not None
    return process.stderr.read()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_text(f"content of {path.name}\n")
    return paths


# -- cat -------------------------------------------------------------------------------------------


def test_cat(files: list[Path]) -> None:
    """Files come one after the other."""
    assert fdpass("cat", *files).stdout == b"content of one\ncontent of two\n"


def test_cat_missing(files: list[Path], tmp_path: Path) -> None:
    """What is missing, unreadable or a directory is reported in its place; the rest is printed."""
    done = fdpass("cat", files[0], "missing", tmp_path, files[1], status=1)
    assert done.stdout == b"content of one\ncontent of two\n"
    assert done.stderr.decode().splitlines() == [
        "fdpass: cat: missing: No such file or directory",
        f"fdpass: cat: {tmp_path}: Is a directory",
    ]


@pytest.mark.parametrize("names", [[], ["-"]])
def test_cat_standard_input(names: list[str]) -> None:
    """A hyphen, or nothing at all, is standard input."""
    assert fdpass("cat", *names, stdin=b"piped").stdout == b"piped"


def test_cat_big_binary(tmp_path: Path) -> None:
    """Every byte arrives, whatever it is and however many there are."""
    path = tmp_path / "big"
    data = os.urandom(2**20) * (_BIG // 2**20)
    path.write_bytes(data)
    assert fdpass("cat", path).stdout == data


def test_cat_many(files: list[Path]) -> None:
    """More files than descriptors fit into one process's table."""
    assert fdpass("cat", *files * 1000).stdout == b"content of one\ncontent of two\n" * 1000


def test_cat_odd_name() -> None:
    """A name of bytes that are no text, with a line break in it, makes one line of error."""
    name = os.fsdecode(b"line\nbreak\xff")
    done = fdpass("cat", name, status=1)
    assert done.stderr.endswith(b": No such file or directory\n")
    assert done.stderr.count(b"\n") == 1


def test_cat_into_a_closed_pipe(tmp_path: Path) -> None:
    """A reader that leaves early is no reason for a message."""
    path = tmp_path / "big"
    path.write_bytes(bytes(_BIG))
    with started("cat", path, status=141) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert errors(process) == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("line", ["cat /dev/zero", "info", "--help", "send --help"])
def test_no_room_for_the_output(line: str) -> None:
    """A write that fails is an error of the command, not of a file; a reader that has exited is
    none."""
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # With it, argparse ignores the error.
    command = [*FDPASS, *line.split()]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=environment)
    assert done.returncode == 1
    name = "help" if "--help" in line else line.split()[0]
    assert done.stderr == f"fdpass: {name}: No space left on device\n".encode()
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (141, b"")


def test_closed_standard_output(files: list[Path]) -> None:
    """Without a standard output there is nowhere to print to, and nothing else is written to."""
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *FDPASS, "cat", str(files[0])], stderr=subprocess.PIPE
    )
    assert done.returncode == 1
    assert done.stderr == b"fdpass: cat: standard output is closed\n"


# -- send and recv ---------------------------------------------------------------------------------

_SIDES = pytest.mark.parametrize(
    ("sending", "receiving"), [("--listen", "--connect"), ("--connect", "--listen")]
)


@_SIDES
def test_send_and_recv(sending: str, receiving: str, files: list[Path], tmp_path: Path) -> None:
    """Either side listens; files are printed in order; the socket's file goes."""
    path = tmp_path / "socket"
    with started("send", sending, path, "--timeout", 30, *files):
        done = fdpass("recv", receiving, path, "--timeout", 30)
    assert done.stdout == b"content of one\ncontent of two\n"
    assert not path.exists()


def test_names(files: list[Path], tmp_path: Path) -> None:
    """The payloads are the names as they were given, or the text asked for."""
    path = tmp_path / "socket"
    with started("send", "--listen", path, *files):
        done = fdpass("recv", "--connect", path, "--names", "--timeout", 30)
    assert done.stdout.decode().splitlines() == [*map(str, files)]
    with started("send", "--listen", path, "--payload", "hi", *files):
        done = fdpass("recv", "--connect", path, "--names", "--timeout", 30)
    assert done.stdout == b"hi\nhi\n"


def test_send_standard_input(tmp_path: Path) -> None:
    """A hyphen passes standard input itself."""
    path = tmp_path / "socket"
    with started("recv", "--listen", path) as receiver:
        fdpass("send", "--connect", path, "--timeout", 30, "-", stdin=b"piped")
        assert output(receiver) == b"piped"


def test_send_missing(files: list[Path], tmp_path: Path) -> None:
    """What cannot be opened is reported, the others are passed; with none left nobody is met."""
    path = tmp_path / "socket"
    with started("recv", "--listen", path) as receiver:
        done = fdpass("send", "--connect", path, "--timeout", 30, "missing", files[0], status=1)
        assert output(receiver) == b"content of one\n"
    assert done.stderr == b"fdpass: send: missing: No such file or directory\n"
    fdpass("send", "--connect", path, "missing", status=1)


def test_save(files: list[Path], tmp_path: Path) -> None:
    """Files are saved under the last part of their names; one that is there is not replaced."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "one").write_text("precious")
    path = tmp_path / "socket"
    with started("send", "--listen", path, *files):
        done = fdpass("recv", "--connect", path, "--save", target, "--timeout", 30, status=1)
    assert done.stderr == f"fdpass: recv: {target}/one: File exists\n".encode()
    assert (target / "one").read_text() == "precious"
    assert (target / "two").read_text() == "content of two\n"


@pytest.mark.untraced
def test_save_without_room(files: list[Path], tmp_path: Path) -> None:
    """A file that cannot be saved whole is named, and goes; the others are saved."""
    files[0].write_bytes(bytes(100_000))

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    command = [*FDPASS, "recv", "--connect", "socket", "--save", "target", "--timeout", "30"]
    with started("send", "--listen", tmp_path / "socket", *files):
        done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=lower)
    assert done.returncode == 1
    assert done.stderr == b"fdpass: recv: target/one: File too large\n"
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["two"]


@pytest.mark.parametrize("name", ["..", "/", "nested/.."])
def test_save_stays_inside(name: str, files: list[Path], tmp_path: Path) -> None:
    """A peer cannot choose a name that leads out of the directory."""
    path = tmp_path / "socket"
    (tmp_path / "target").mkdir()
    with started("send", "--listen", path, "--payload", name, files[0]):
        done = fdpass(
            "recv", "--connect", path, "--save", tmp_path / "target", "--timeout", 30, status=1
        )
    assert b"cannot be the name of a file" in done.stderr
    assert not [*(tmp_path / "target").iterdir()]


def test_recv_a_directory(tmp_path: Path) -> None:
    """What cannot be read is reported by its name."""
    path = tmp_path / "socket"
    with started("send", "--listen", path, tmp_path):
        done = fdpass("recv", "--connect", path, "--timeout", 30, status=1)
    assert done.stderr == f"fdpass: recv: {tmp_path}: Is a directory\n".encode()


def test_count(files: list[Path], tmp_path: Path) -> None:
    """No more than so many are taken, and fewer are an error."""
    path = tmp_path / "socket"
    with started("send", "--listen", path, files[0]):
        done = fdpass("recv", "--connect", path, "--count", 1, "--timeout", 30)
    assert done.stdout == b"content of one\n"
    with started("send", "--listen", path, *files):
        done = fdpass("recv", "--connect", path, "--count", 3, "--timeout", 30, status=1)
    assert done.stderr == b"fdpass: recv: the peer closed too early: 1 of 3 files did not come\n"


def test_program(files: list[Path], tmp_path: Path) -> None:
    """A program finds the descriptor as its standard input, and its exit status is the result."""
    path = tmp_path / "socket"
    with started("send", "--listen", path, files[0]):
        done = fdpass("recv", "--connect", path, "--timeout", 30, "--", "cat", "-")
    assert done.stdout == b"content of one\n"
    with started("send", "--listen", path, files[0]):
        fdpass("recv", "--connect", path, "--timeout", 30, "--", "sh", "-c", "exit 7", status=7)


@pytest.mark.parametrize("from_the_end", [False, True])
def test_program_at_numbers(from_the_end: bool, files: list[Path], tmp_path: Path) -> None:
    """A program finds descriptors where it was said, also at numbers that were taken and at the
    last ones that its table has."""
    path = tmp_path / "socket"
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = limit - 2 if from_the_end else 3
    command = ["recv", "--connect", path, "--timeout", 30, "--at"]
    show = f"cat /dev/fd/{first + 1} /dev/fd/{first}"
    show += f"; ls /dev/fd/{first + 2} 2>/dev/null || echo nothing else"
    with started("send", "--listen", path, *files):
        done = fdpass(*command, f"{first},{first + 1}", "--", "bash", "-c", show)
    assert done.stdout == b"content of two\ncontent of one\nnothing else\n"
    with started("send", "--listen", path, files[0]):
        done = fdpass(*command, limit, "--", "true", status=1)
    assert done.stderr == f"fdpass: recv: --at {limit}: Bad file descriptor\n".encode()


def test_missing_program(files: list[Path], tmp_path: Path) -> None:
    """A program that is not there is an error that names it."""
    path = tmp_path / "socket"
    with started("send", "--listen", path, files[0]):
        done = fdpass("recv", "--connect", path, "--timeout", 30, "--", "no-such-program", status=1)
    assert done.stderr == b"fdpass: recv: no-such-program: No such file or directory\n"


def test_too_few_for_a_program(files: list[Path], tmp_path: Path) -> None:
    """A program is not run with less than it needs."""
    path = tmp_path / "socket"
    with started("send", "--listen", path, files[0]):
        done = fdpass(
            "recv", "--connect", path, "--timeout", 30, "--at", "3,4", "--", "true", status=1
        )
    assert done.stderr == b"fdpass: recv: the peer closed too early: 1 of 2 files did not come\n"


@pytest.mark.parametrize(
    ("side", "line"),
    [
        ("--listen", ["send", "/dev/null"]),
        ("--connect", ["recv"]),
        ("--listen", ["recv", "--save", "made"]),
    ],
)
def test_empty_path(side: str, line: list[str], tmp_path: Path) -> None:
    """An empty path, as of a variable that was not set, is no file."""
    done = fdpass(line[0], side, "", *line[1:], status=1, cwd=tmp_path)
    assert done.stderr.endswith(b": No such file or directory\n")


def test_save_nowhere(tmp_path: Path) -> None:
    """An empty DIRECTORY is none, and not the request to print."""
    done = fdpass("recv", "--listen", "socket", "--save", "", status=1, cwd=tmp_path)
    assert done.stderr.endswith(b": No such file or directory\n")


def test_wrong_kind_of_file(tmp_path: Path) -> None:
    """A path that is no socket, or no directory, is named with what it is not, at once."""
    (tmp_path / "file").touch()
    for line, text in (
        (["recv", "--connect", "."], ".: Connection refused: it is not a socket"),
        (["send", "--connect", "file", "file"], "file: Connection refused: it is not a socket"),
        (
            ["recv", "--connect", ".", "--timeout", "99"],
            ".: Connection refused: it is not a socket",
        ),
        (["recv", "--listen", "file"], "file: exists and is not a socket"),
        (["recv", "--listen", "socket", "--save", "file"], "file: Not a directory"),
        (["cat", "file/file"], "file/file: Not a directory"),
    ):
        done = fdpass(*line, status=1, cwd=tmp_path)
        assert done.stderr == f"fdpass: {line[0]}: {text}\n".encode()


def test_nobody_there(tmp_path: Path) -> None:
    """Whom nobody meets is told so, with the path, at once or when time is up."""
    path = tmp_path / "socket"
    expected = f"fdpass: recv: {path}: No such file or directory\n".encode()
    assert fdpass("recv", "--connect", path, status=1).stderr == expected
    assert fdpass("recv", "--connect", path, "--timeout", "0.1", status=1).stderr == expected
    expected = f"fdpass: recv: {path}: timed out\n".encode()
    assert fdpass("recv", "--listen", path, "--timeout", "0.1", status=1).stderr == expected
    assert not path.exists()


def test_a_silent_peer(tmp_path: Path) -> None:
    """The timeout is for the message too."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        done = fdpass("recv", "--connect", path, "--timeout", "0.1", status=1)
    assert done.stderr == b"fdpass: recv: timed out\n"


def test_a_peer_without_descriptors(tmp_path: Path) -> None:
    """A peer that sends plain bytes is an error, not a file."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with started("recv", "--connect", path, status=1) as receiver:
            with listener.accept()[0] as sock:
                sock.sendall(b"hello")
            assert b"has none" in errors(receiver)


# -- connect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--timeout", "60"]])
def test_connect_hands_over(options: list[str]) -> None:
    """The connected socket comes over standard output, with one byte, and in blocking mode."""
    ours, theirs = socket.socketpair()
    with ours, socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with theirs:
            command = [*FDPASS, "connect", *options, "127.0.0.1", port]
            subprocess.run(command, stdout=theirs.fileno(), check=True)
        data, fds, _, _ = socket.recv_fds(ours, 10, 2)
        assert data == b"\0"
        with socket.socket(fileno=fds[0]) as client, server.accept()[0] as accepted:
            client.sendall(b"straight through")
            assert accepted.recv(100) == b"straight through"
            assert os.get_blocking(client.fileno())


def test_connect_into_a_full_socket() -> None:
    """A standard output in non-blocking mode, that has no room, is waited for."""
    ours, theirs = socket.socketpair()
    with ours, socket.create_server(("127.0.0.1", 0)) as server:
        with theirs:
            theirs.setblocking(False)
            sent = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    sent += theirs.send(bytes(1000))
            command = [*FDPASS, "connect", "127.0.0.1", str(server.getsockname()[1])]
            process = Program[bytes](command, stdout=theirs.fileno())
        with process:
            server.accept()[0].close()
            wait_until_blocked(process.pid)
            while sent:
                sent -= len(ours.recv(sent))
            _, fds, _, _ = socket.recv_fds(ours, 10, 2)
            fdpass_c.close_fds(fds)
            assert process.wait(60) == 0


@linux_only
def test_connect_in_time() -> None:
    """A server that does not answer keeps connect no longer than --timeout."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):  # Which takes the only place.
            command = [*FDPASS, "connect", "--timeout", "0.1", "127.0.0.1", str(port)]
            done = subprocess.run(command, stdout=theirs.fileno(), stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == f"fdpass: connect: 127.0.0.1 port {port}: timed out\n".encode()


def test_connect_refused() -> None:
    """A refused connection names the host and the port."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [*FDPASS, "connect", "127.0.0.1", str(port)]
            done = subprocess.run(command, stdout=theirs.fileno(), stderr=subprocess.PIPE)
    assert done.returncode == 1
    expected = f"fdpass: connect: 127.0.0.1 port {port}: Connection refused\n"
    assert done.stderr == expected.encode()


@pytest.mark.parametrize("host", ["a..b", "x" * 64, os.fsdecode(b"\xff")])
def test_connect_to_no_name(host: str) -> None:
    """What cannot be the name of a host is an error in one line, as one that nobody has is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*FDPASS, "connect", host, "22"]
        done = subprocess.run(command, stdout=theirs.fileno(), stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert re.fullmatch(rb"fdpass: connect: \S+ port 22: [^\n]+\n", done.stderr)


def test_connect_into_a_pipe() -> None:
    """Descriptors travel over Unix sockets only, and the message says so."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = fdpass("connect", "127.0.0.1", server.getsockname()[1], status=1)
    assert b"standard output is not a Unix socket" in done.stderr


_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@linux_only
@pytest.mark.skipif(_SSHD is None, reason="sshd is not installed")
@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
@pytest.mark.parametrize("page", [False, True], ids=["fdpass connect", "the page's"])
def test_ssh(page: bool, tmp_path: Path) -> None:
    """ssh with ProxyUseFdpass runs a command through the socket that connect hands it, and through
    the one of the program in docs/how-to/ssh.md."""
    program = [*FDPASS, "connect"]
    if page:
        text = (ROOT / "docs" / "how-to" / "ssh.md").read_text()
        (code,) = re.findall(r'title="proxy.py"\n(.*?)```', text, re.DOTALL)
        (tmp_path / "proxy.py").write_text(code)
        program = [sys.executable, str(tmp_path / "proxy.py")]
    assert _SSHD is not None
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True
        )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    (tmp_path / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host_key\n"
        f"AuthorizedKeysFile {tmp_path}/user_key.pub\nPidFile none\nStrictModes no\n"
        "UsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # Where root's sshd shuts its other half in.
    command = [_SSHD, "-D", "-e", "-f", str(tmp_path / "sshd_config")]
    with Program(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            log = []
            for line in server.stderr:
                log.append(line)
                if "Server listening" in line:
                    break
            assert server.poll() is None, "".join(log)
            proxy = " ".join([*program, "%h", "%p"])
            options = [
                f"ProxyCommand={proxy}",
                "ProxyUseFdpass=yes",
                "StrictHostKeyChecking=no",
                f"UserKnownHostsFile={tmp_path}/known_hosts",
                f"IdentityFile={tmp_path}/user_key",
                "IdentitiesOnly=yes",
                "BatchMode=yes",
            ]
            user = pwd.getpwuid(os.geteuid()).pw_name
            done = subprocess.run(
                [
                    *["ssh", "-F", "none", "-p", port, *(f"-o{option}" for option in options)],
                    *[f"{user}@127.0.0.1", "echo through the passed socket"],
                ],
                capture_output=True,
                text=True,
                timeout=60,
            )
        finally:
            server.terminate()
        assert done.stdout == "through the passed socket\n", done.stderr


# -- everything else -------------------------------------------------------------------------------


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself."""
    for command in ("", "cat", "send", "recv", "connect", "pool", "info"):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([*command.split(), "--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        assert text.startswith("usage: fdpass")
        assert command in ("", "info") or "\n  fdpass " in text or command == "connect"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no-such-command",
        "send file",
        "send --listen a --connect b file",
        "send --listen a --payload= file",
        pytest.param(f"send --listen a --payload {'x' * 4097} file", id="a long payload"),
        "connect localhost 65536",
        "connect localhost +65537",
        "connect localhost -4294967295",
        "send --listen a --timeout nan file",
        "send --listen a --timeout 3e6 file",
        "recv --connect a --timeout 1e300",
        "recv --listen a --count 0",
        "recv --listen a --at 3",
        "recv --listen a --at 3,3 -- true",
        "recv --listen a --at 3,03 -- true",
        "recv --listen a --at 99999999999 -- true",
        "recv --listen a --at x -- true",
        "recv --listen a --names -- true",
        "recv --listen a --save b -- true",
        "recv --listen a --count 1 -- true",
        "recv --listen a -- ''",
        "pool",
        "pool echo 127.0.0.1:0",
        "pool :handler 127.0.0.1:0",
        "pool echo: 127.0.0.1:0",
        "pool .echo:handler 127.0.0.1:0",
        "pool no_such_module:handler 127.0.0.1:0",
        "pool no.such.module:handler 127.0.0.1:0",
        "pool os:no_such_handler 127.0.0.1:0",
        "pool os:name 127.0.0.1:0",
        "pool os:getpid",
        "pool os:getpid nonsense",
        "pool --workers 0 os:getpid 127.0.0.1:0",
        "pool --workers 9999999999999999999 os:getpid 127.0.0.1:0",
        "pool --drain -1 os:getpid 127.0.0.1:0",
    ],
)
def test_wrong_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant is status 2, with the usage and a reason."""
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("usage: fdpass")
    assert "error: " in text


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("connect localhost +-5", "a port is a number from 0 to 65535, not +-5"),
        (f"connect localhost {'9' * 5000}", "a port is a number from 0 to 65535, not 999"),
        (f"recv --listen s --count {'9' * 5000}", "not a whole number from 1 to 1000000000: '999"),
    ],
    ids=["signs", "a long port", "a long count"],
)
def test_what_is_wrong_with_a_number(
    line: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that Python cannot read is refused with what is allowed, too."""
    with pytest.raises(SystemExit):
        main(line.split())
    assert text in capsys.readouterr().err


def test_addresses_of_a_pool_are_optional(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the handler is missing, the error asks for no address, which may be passed."""
    with pytest.raises(SystemExit):
        main(["pool"])
    assert capsys.readouterr().err.endswith("arguments are required: MODULE:HANDLER\n")


def test_wrong_line_of_the_program() -> None:
    """The program ends with that status, too."""
    assert b"error: " in fdpass("no-such-command", status=2).stderr


def test_pool_that_cannot_listen() -> None:
    """An address in use is an error in one line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = fdpass("pool", "os:getpid", address, status=1)
    assert b"Address already in use" in done.stderr


@pytest.mark.parametrize("line", ["recv --listen socket", "cat -"])
def test_interrupt(line: str, tmp_path: Path) -> None:
    """Ctrl-C is status 130 without a word, and leaves no socket behind."""
    reader, writer = os.pipe()
    with (
        open(reader, "rb") as stdin,
        open(writer, "wb"),
        # A program starts with what its parent ignores, as a shell's background job does, ignored.
        handling(signal.SIGINT, lambda: None),
        Program[bytes](
            [*FDPASS, *line.split()], stdin=stdin, stderr=subprocess.PIPE, cwd=tmp_path
        ) as process,
    ):
        wait_until_blocked(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert not [*tmp_path.iterdir()]


def test_info() -> None:
    """The same facts for people and as JSON."""
    facts = json.loads(fdpass("info", "--json").stdout)
    text = fdpass("info").stdout.decode()
    assert all(f"{section}:" in text for section in facts)


def test_info_has_the_version_that_runs(tmp_path: Path) -> None:
    """The version is that of the code, whatever is told of an installed one."""
    (tmp_path / "fdpass_c-9.dist-info").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*FDPASS, "info", "--json"], env=environment, stdout=subprocess.PIPE, check=True
    )
    assert json.loads(done.stdout)["fdpass_c"]["version"] == fdpass_c.__version__


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--help"], b"--rounds N"),
        (["--", "--help"], b"--rounds N"),
        (["--rounds", "0", "single"], b"--rounds must be at least 1"),
        (["single", "--rounds", "0"], b"--rounds must be at least 1"),
        (["--quick", "no-such-table"], b"no table 'no-such-table'"),
    ],
)
def test_bench(arguments: list[str], text: bytes) -> None:
    """The benchmarks of the source tree run from the command, with their flags anywhere."""
    if not bench.IS_HERE:
        pytest.skip("tests what is installed, without a source tree around it")
    done = fdpass("bench", *arguments, status=0 if "--help" in arguments else 2)
    assert b"python -m benchmarks" in done.stdout + done.stderr
    assert text in done.stdout + done.stderr


def test_bench_without_a_source_tree(tmp_path: Path) -> None:
    """An installed package has no such command, and does not run the benchmarks of another one."""
    shutil.copytree(Path(fdpass_c.__file__).parent, tmp_path / "fdpass_c")
    others = tmp_path / "benchmarks" / "__main__.py"
    others.parent.mkdir()
    others.write_text("print('those of another package')")
    done = fdpass("bench", status=2, cwd=tmp_path)
    assert b"invalid choice: 'bench'" in done.stderr
    assert b"bench" not in fdpass("--help", cwd=tmp_path).stdout
