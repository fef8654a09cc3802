"""The commands take their standard streams, signals and table as cat(1), nc(1) and ssh(1) do."""

import contextlib
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

import fdpass_c
from fdpass_c.__main__ import main
from fdpass_c.commands import recv
from fdpass_c.commands.signals import ending
from fdpass_c.testing import full_table
from support.marks import linux_only, places_known
from support.processes import FDPASS, Program, become_nobody, run_in_child
from support.signals import handling, interrupt_call
from support.threads import beside
from support.waiting import wait_until_blocked

pytestmark = pytest.mark.thread_unsafe


def shell(line: str, cwd: Path) -> "subprocess.CompletedProcess[bytes]":
    """Runs a line of sh in which $FDPASS is the command."""
    environment = {**os.environ, "FDPASS": " ".join(FDPASS)}
    return subprocess.run(
        ["sh", "-c", line], cwd=cwd, env=environment, capture_output=True, timeout=60
    )


def default_signals() -> None:
    """For a program: the suite itself may run under nohup, or in the background."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def sending(path: Path, fd: int, payload: bytes = b"name", count: int = 1) -> threading.Thread:
    """A thread that listens at path and passes fd to whoever connects."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def send() -> None:
        with listener:
            sock, _ = listener.accept()
            with sock:
                for _ in range(count):
                    fdpass_c.send_fd(sock, fd, payload)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "line",
    ["$FDPASS cat f >> f", "$FDPASS cat - < f >> f", "cp f g; cat f >> g; $FDPASS cat f g >> g"],
)
def test_a_file_into_itself(line: str, tmp_path: Path) -> None:
    """A file that would grow as fast as it is read is refused, as cat(1) does."""
    (tmp_path / "f").write_bytes(b"x" * 1000)
    done = shell(line, tmp_path)
    assert done.returncode == 1
    assert b"input file is output file" in done.stderr
    assert (tmp_path / "f").stat().st_size == 1000


def test_a_received_file_into_itself(tmp_path: Path) -> None:
    """recv refuses a file that is its own output, too."""
    (tmp_path / "f").write_bytes(b"x" * 1000)
    with open(tmp_path / "f", "rb") as file:
        thread = sending(tmp_path / "s", file.fileno())
        done = shell("$FDPASS recv --connect s >> f", tmp_path)
        thread.join()
    assert done.returncode == 1
    assert b"input file is output file" in done.stderr
    assert (tmp_path / "f").stat().st_size == 1000


@pytest.mark.parametrize("end", ["closed", "closed after all", "full", "TERM"])
def test_cat_ends_while_its_child_opens(end: str, tmp_path: Path) -> None:
    """A FIFO that nobody opens keeps neither cat nor its child once there is nobody to print to."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    if end == "closed":
        done = shell("$FDPASS cat file fifo | head -c 1", tmp_path)
        assert done.stdout == b"x"
    elif end == "closed after all":
        (tmp_path / "file").write_bytes(b"the line\n")
        done = shell("$FDPASS cat file fifo | head -n 1", tmp_path)
        assert done.stdout == b"the line\n"
    elif end == "full":
        done = shell("$FDPASS cat file fifo > /dev/full", tmp_path)
        assert done.returncode == 1
    else:
        command = [*FDPASS, "cat", "file", "fifo"]
        with Program[bytes](command, cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert len(process.stdout.read(100_000)) == 100_000
            process.terminate()
            assert process.wait(60) == -signal.SIGTERM


def test_complaints_stay_out_of_the_data(tmp_path: Path) -> None:
    """With standard error closed, what goes wrong is not printed among the data."""
    (tmp_path / "f").write_bytes(b"data")
    done = shell("$FDPASS cat missing f 2>&-", tmp_path)
    assert (done.returncode, done.stdout) == (1, b"data")


def test_closed_standard_input(tmp_path: Path) -> None:
    """A closed standard input is one file that cannot be read; the others are printed."""
    (tmp_path / "f").write_bytes(b"data")
    done = shell("$FDPASS cat - f <&-", tmp_path)
    assert (done.returncode, done.stdout) == (1, b"data")
    assert done.stderr == b"fdpass: cat: -: Bad file descriptor\n"


def test_closed_standard_output_of_what_needs_none(tmp_path: Path) -> None:
    """send works without a standard output."""
    (tmp_path / "f").write_bytes(b"data")
    with Program[bytes]([*FDPASS, "recv", "--listen", "s"], cwd=tmp_path, stdout=-1) as receiver:
        done = shell("$FDPASS send --connect s --timeout 30 f >&-", tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert receiver.communicate(timeout=60)[0] == b"data"


def test_signals_of_a_program(tmp_path: Path) -> None:
    """What recv executes dies of SIGPIPE, as it would from a shell."""
    with open(os.devnull, "rb") as file:
        thread = sending(tmp_path / "s", file.fileno())
        line = "$FDPASS recv --connect s --at 0 -- sh -c 'yes | head -1'"
        done = shell(line, tmp_path)
        thread.join()
    assert (done.stdout, done.stderr) == (b"y\n", b"")


def test_caller_that_ignores_its_children(tmp_path: Path) -> None:
    """cat waits for its child also where the caller has SIGCHLD ignored."""
    (tmp_path / "f").write_bytes(b"data")
    code = "import os,signal,sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    code += "os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", code, *FDPASS, "cat", "f"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"data", b"")


@pytest.mark.untraced
@pytest.mark.skipif("--coverage" in os.environ.get("CFLAGS", ""), reason="nobody cannot write that")
@pytest.mark.parametrize(
    ("limit", "files", "status", "text"),
    [
        ("RLIMIT_NPROC, (0, 0)", 1, 1, b"fdpass: cat: Resource temporarily unavailable\n"),
        ("RLIMIT_NOFILE, (40, 40)", 500, 0, b""),
    ],
    ids=["processes", "descriptors in flight"],
)
def test_cat_with_the_limits_of_a_user(limit: str, files: int, status: int, text: bytes) -> None:
    """A user who may have no more processes reads that in one line; one who may have few
    descriptors in flight can print many files."""
    path = "/etc/passwd"  # Which nobody may read, too.
    # With what argparse imports late: nobody may not read what is root's.
    code = (
        "import locale, resource, shutil, sys; from fdpass_c.__main__ import main; "
        "from support.processes import become_nobody; become_nobody(); "
        f"resource.setrlimit(resource.{limit}); sys.exit(main(['cat', *['{path}'] * {files}]))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, text)
    assert done.stdout == (b"" if status else Path(path).read_bytes() * files)


@pytest.mark.parametrize("save", [False, True])
def test_sources_in_non_blocking_mode(save: bool, tmp_path: Path) -> None:
    """A pipe that a peer reads without waiting is waited for, and copied whole."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    data = os.urandom(300_000)

    def feed() -> None:
        with open(writer, "wb", buffering=0) as pipe:
            for start in range(0, len(data), 10_000):
                pipe.write(data[start : start + 10_000])

    thread = sending(tmp_path / "s", reader)
    feeder = threading.Thread(target=feed)
    feeder.start()
    option = "--save made/for/it" if save else ""
    done = shell(f"$FDPASS recv --connect s {option}", tmp_path)
    thread.join()
    os.close(reader)
    feeder.join()
    assert (done.returncode, done.stderr) == (0, b"")
    found = (tmp_path / "made/for/it/name").read_bytes() if save else done.stdout
    assert found in (data,)


def test_output_in_non_blocking_mode(tmp_path: Path) -> None:
    """An output that is full is waited for."""
    (tmp_path / "f").write_bytes(b"x" * 300_000)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with Program[bytes]([*FDPASS, "cat", "f"], cwd=tmp_path, stdout=writer) as process:
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert len(pipe.read()) == 300_000
        assert process.wait(60) == 0


@pytest.mark.parametrize("blocked", [False, True])
def test_timeout_bounds_the_copying(blocked: bool, tmp_path: Path) -> None:
    """A peer whose pipe never ends keeps recv no longer than --timeout, whatever signals the parent
    process has blocked; nothing half is saved."""
    reader, writer = os.pipe()
    os.write(writer, b"begun")
    thread = sending(tmp_path / "s", reader)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM} if blocked else ())
    try:
        command = [*FDPASS, "recv", "--connect", "s", "--timeout", "0.2", "--save", "d"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    thread.join()
    os.close(reader)
    os.close(writer)
    assert done.returncode == 1
    assert b"timed out" in done.stderr
    assert not [*(tmp_path / "d").iterdir()]


@places_known
def test_an_interrupted_save(tmp_path: Path) -> None:
    """Wherever a signal ends recv --save, the file is whole or gone."""
    path = tmp_path / "saved"
    number = 0
    going = True
    while going:
        number += 1
        with open(__file__, "rb") as file:
            save = partial(recv._save, os.fsencode(path), file.fileno(), None)
            going = interrupt_call(recv, number, save)
        if path.exists():
            assert path.read_bytes() == Path(__file__).read_bytes(), f"call {number}"
            path.unlink()
    assert number > 2


@linux_only
@pytest.mark.parametrize("reset", [False, True])
def test_a_save_whose_file_was_removed(reset: bool, tmp_path: Path) -> None:
    """Somebody else may remove an incomplete file first. A signal then still ends the command, and
    an error still says what went wrong."""
    source, writer = socket.socketpair()
    with source, writer:
        source.send(b"unread, so that closing resets the connection")
        thread = sending(tmp_path / "s", source.fileno())
        command = [*FDPASS, "recv", "--connect", "s", "--save", "d"]
        with Program[bytes](
            command, cwd=tmp_path, preexec_fn=default_signals, stderr=subprocess.PIPE
        ) as process:
            while not (tmp_path / "d/name").exists():
                assert process.poll() is None
            (tmp_path / "d/name").unlink()
            wait_until_blocked(process.pid)
            if reset:
                writer.close()
            else:
                process.send_signal(signal.SIGINT)
            errors = process.communicate(timeout=60)[1]
        thread.join()
    expected = (1, b"fdpass: recv: name: Connection reset by peer\n") if reset else (130, b"")
    assert (process.returncode, errors) == expected


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_socket(signum: signal.Signals, tmp_path: Path) -> None:
    """TERM and HUP leave no file of --listen behind, and end the command as they would."""
    path = tmp_path / "s"

    def heed() -> None:
        # The suite itself may run under nohup.
        signal.signal(signum, signal.SIG_DFL)

    with Program[bytes]([*FDPASS, "recv", "--listen", str(path)], preexec_fn=heed) as process:
        while not path.exists():
            assert process.poll() is None
        process.send_signal(signum)
        assert process.wait(60) == -signum
    assert not path.exists()


def test_more_files_than_the_table_holds(tmp_path: Path) -> None:
    """send passes any number of files, in parts."""
    names = [f"{number:03}" for number in range(200)]
    for name in names:
        (tmp_path / name).write_text(name)

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    with Program[bytes](
        [*FDPASS, "recv", "--listen", "s", "--names"], cwd=tmp_path, stdout=subprocess.PIPE
    ) as receiver:
        command = [*FDPASS, "send", "--connect", "s", "--timeout", "30", *names, "missing"]
        done = subprocess.run(
            command, cwd=tmp_path, preexec_fn=lower, stderr=subprocess.PIPE, timeout=60
        )
        assert done.returncode == 1
        assert done.stderr == b"fdpass: send: missing: No such file or directory\n"
        assert receiver.communicate(timeout=60)[0].decode().split() == names


def test_names_are_escaped(tmp_path: Path) -> None:
    """What a terminal would obey in a peer's name is shown, not sent to it."""
    with open(os.devnull, "rb") as file:
        thread = sending(tmp_path / "s", file.fileno(), b"\x1b[31m\\ \xff\n")
        done = shell("$FDPASS recv --connect s --names", tmp_path)
        thread.join()
    assert done.stdout == b"\\x1b[31m\\\\ \\xff\\n\n"


def test_connect_looks_at_its_output_first(tmp_path: Path) -> None:
    """Without a socket to hand over to, nobody is connected to."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        done = shell(f"$FDPASS connect 127.0.0.1 {server.getsockname()[1]}", tmp_path)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert done.returncode == 1
    assert b"standard output is not a Unix socket" in done.stderr


def test_version(tmp_path: Path) -> None:
    """--version says what fdpass_c.__version__ and pyproject.toml do."""
    done = shell("$FDPASS --version", tmp_path)
    assert done.stdout == f"fdpass {fdpass_c.__version__}\n".encode()
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert re.search(r"version = .*__version__", text) or fdpass_c.__version__ in text


@pytest.mark.parametrize(
    ("signums", "status"),
    [
        ([signal.SIGINT, signal.SIGTERM], 130),
        ([signal.SIGTERM, signal.SIGHUP], -signal.SIGHUP),
        ([signal.SIGHUP, signal.SIGINT], -signal.SIGHUP),
    ],
)
def test_signals_at_once(signums: list[signal.Signals], status: int, tmp_path: Path) -> None:
    """Of signals that come together the first one ends the command. The others do not keep it from
    removing its files, and nothing is printed."""
    path = tmp_path / "s"
    command = [*FDPASS, "recv", "--listen", str(path)]
    with Program[bytes](command, preexec_fn=default_signals, stderr=subprocess.PIPE) as process:
        while not path.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        for signum in (*signums, signal.SIGCONT):
            process.send_signal(signum)
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == status
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_signal_during_a_complaint(signum: signal.Signals, status: int, tmp_path: Path) -> None:
    """A signal ends a command whose error nobody reads, without a traceback."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(select.PIPE_BUF))
    os.set_blocking(writer, True)
    command = [*FDPASS, "recv", "--connect", "missing"]
    with (
        open(reader, "rb") as pipe,
        open(writer, "wb") as stderr,
        Program[bytes](command, cwd=tmp_path, preexec_fn=default_signals, stderr=stderr) as process,
    ):
        stderr.close()
        wait_until_blocked(process.pid)
        process.send_signal(signum)
        assert b"Traceback" not in pipe.read()
        assert process.wait(60) == status


def test_only_the_user_can_connect(tmp_path: Path) -> None:
    """Other users cannot connect to the socket of --listen, whatever the umask is."""
    path = tmp_path / "s"
    command = [*FDPASS, "recv", "--listen", str(path)]
    with Program[bytes](command, preexec_fn=partial(os.umask, 0)) as process:
        wait_until_blocked(process.pid)
        mode = path.stat().st_mode
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
        assert process.wait(60) == 0
    assert mode & 0o777 == 0o600


@pytest.mark.parametrize("name", [b".", b"folder/.", b"ends\0here"])
def test_what_cannot_be_a_name(
    name: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A peer's payload that cannot be the name of a file is refused. The status is 1, although as
    many files as were asked for have come."""
    with open(os.devnull, "rb") as file:
        thread = sending(tmp_path / "s", file.fileno(), name)
        status = main(
            ["recv", "--connect", f"{tmp_path}/s", "--save", f"{tmp_path}/d", "--count", "1"]
        )
        thread.join()
    assert status == 1
    assert "cannot be the name of a file" in capfd.readouterr().err
    assert not [*(tmp_path / "d").iterdir()]


def test_timeout_bounds_all_reads(tmp_path: Path) -> None:
    """A peer's device that never ends keeps recv no longer than --timeout in all."""
    with open("/dev/zero", "rb") as file:
        thread = sending(tmp_path / "s", file.fileno())
        done = shell("$FDPASS recv --connect s --timeout 0.2 > /dev/null", tmp_path)
        thread.join()
    assert (done.returncode, done.stderr) == (1, b"fdpass: recv: name: timed out\n")


def test_a_receiver_that_stops_reading(tmp_path: Path) -> None:
    """A sender whose peer takes no more says so."""

    def stop() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.shutdown(socket.SHUT_RD)
            sock.recv(1)  # Returns when the sender has ended.

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with beside(stop):
            # More than a socket's buffer holds.
            done = shell("$FDPASS send --connect s $(yes /dev/null | head -n 900)", tmp_path)
    error = b"fdpass: send: the peer closed before it had received all\n"
    assert (done.returncode, done.stderr) == (1, error)


@pytest.mark.untraced
@pytest.mark.skipif("--coverage" in os.environ.get("CFLAGS", ""), reason="nobody cannot write that")
def test_send_in_time_with_too_many_in_flight(tmp_path: Path) -> None:
    """A user whose descriptors in flight stay as many as are allowed waits no longer than
    --timeout."""
    tmp_path.chmod(0o755)

    def send() -> None:
        os.chdir(tmp_path)
        become_nobody()
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        assert main(["send", "--connect", "s", "--timeout", "0.1", *[os.devnull] * 100]) == 1
        assert os.read(reader, 1000).startswith(b"fdpass: send: Too many references")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        (tmp_path / "s").chmod(0o666)
        listener.listen()
        run_in_child(send)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ignored_signals(signum: signal.Signals, tmp_path: Path) -> None:
    """A signal that is ignored, as under nohup, does not end a command."""
    path = tmp_path / "s"

    def ignore() -> None:
        default_signals()
        signal.signal(signum, signal.SIG_IGN)

    with Program[bytes]([*FDPASS, "recv", "--listen", str(path)], preexec_fn=ignore) as process:
        while not path.exists():
            assert process.poll() is None
        process.send_signal(signum)
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


def test_signals_after_the_first() -> None:
    """Once a signal has ended a command, further ones do nothing, also when it has cleaned up."""

    def child() -> None:
        default_signals()
        with pytest.raises(KeyboardInterrupt), ending():
            signal.raise_signal(signal.SIGINT)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(signum)

    run_in_child(child)


def test_handlers_are_restored(tmp_path: Path) -> None:
    """After a command, signals are handled as before it."""
    with handling(signal.SIGHUP, lambda: None):
        before = [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))]
        assert main(["recv", "--connect", str(tmp_path / "missing")]) == 1
        after = [*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))]
    assert after == before


def test_a_received_file_that_only_names_the_output(tmp_path: Path) -> None:
    """A descriptor of the output file that cannot be read is one file that failed; the next one is
    printed."""
    (tmp_path / "f").touch()
    handle = os.open(tmp_path / "f", getattr(os, "O_PATH", os.O_WRONLY))
    thread = sending(tmp_path / "s", handle, count=2)
    done = shell("$FDPASS recv --connect s >> f", tmp_path)
    thread.join()
    os.close(handle)
    assert (done.returncode, done.stderr) == (1, b"fdpass: recv: name: Bad file descriptor\n" * 2)


@pytest.mark.parametrize("program", ["no-such-program", "true"])
def test_received_files_get_no_complaints(program: str, tmp_path: Path) -> None:
    """If a program cannot be executed, that is written to fdpass's own standard error, and not into
    the file that was to be the program's."""
    numbers = "2,3" if program == "no-such-program" else "2,999999999"
    with open(tmp_path / "f", "w+b") as file:
        thread = sending(tmp_path / "s", file.fileno(), count=2)
        done = shell(f"$FDPASS recv --connect s --at {numbers} -- {program}", tmp_path)
        thread.join()
    assert (tmp_path / "f").read_bytes() == b""
    assert done.returncode == 1
    assert done.stderr.startswith(b"fdpass: recv: ")


def test_the_time_of_a_file_ends_with_it(tmp_path: Path) -> None:
    """What was left of the time for a file does not end the command later."""
    with socket.socket(socket.AF_UNIX) as listener, open(os.devnull, "rb") as file:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        command = [*FDPASS, "recv", "--connect", "s", "--timeout", "0.2"]
        with Program[bytes](command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            sock, _ = listener.accept()
            with sock:
                fdpass_c.send_fd(sock, file.fileno())
                errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors) == (1, b"fdpass: recv: timed out\n")


def test_a_wrong_line_without_standard_error(tmp_path: Path) -> None:
    """What is wrong with the command line is not printed to standard output."""
    done = shell("$FDPASS no-such-command 2>&-", tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")


def test_no_room_for_one_file(tmp_path: Path) -> None:
    """Where not even one file can be opened, send says so."""

    def send() -> None:
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        with full_table(4):
            assert main(["send", "--connect", str(tmp_path / "s"), os.devnull]) == 1
        assert os.read(reader, 1000) == b"fdpass: send: /dev/null: Too many open files\n"

    run_in_child(send)


@linux_only
def test_cat_prints_what_has_come(tmp_path: Path) -> None:
    """cat prints what its child has passed while that waits in open. If the child is killed there,
    the status is 1."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"line\n")
    command = [*FDPASS, "cat", *["file"] * 100, *["missing"] * 100, "fifo"]
    with Program[bytes](
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(500) == b"line\n" * 100
        complaint = b"fdpass: cat: missing: No such file or directory\n"
        assert [process.stderr.readline() for _ in range(100)] == [complaint] * 100
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        errors = process.communicate(timeout=60)[1]
    expected = b"fdpass: cat: the child that opens the files failed\n"
    assert (process.returncode, errors) == (1, expected)
