"""The commands of the command line, each run in a child of which one call fails or does less."""

import errno
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

import fdpass_c
from faults.library import Library, Step
from faults.plans import ERRORS, MISSING, STREAMING
from fdpass_c.__main__ import main
from fdpass_c.info import collect
from fdpass_c.unix import bind_unix, connect_unix
from support.descriptors import identity
from support.processes import adopt_orphans, fork, no_process_left

_PATIENCE = 20

# What the files hold, by their names. No two have a byte in common; nor have the names.
_FILES = {"ABC": b"".join(b"%03d\n" % number for number in range(50)), "xyz": b"abcdefgh" * 20}
_NAMES = [*_FILES]
_CONTENTS = [*_FILES.values()]
_PIPED = b"STUVWXYZ" * 20

# Left out: what argparse asks for each argument, the terminal's width and translations. It does
# without them.
_ENVIRONMENT = {"COLUMNS": "80", "LINES": "25", "LANGUAGE": "C"}

# Left out: imports. Python cannot go on without its modules. This one, socket.getaddrinfo would
# import, and info, above, its command.
"localhost".encode("idna")


class Fault(NamedTuple):
    """What happens to one call of a command."""

    step: Step
    error: str
    """The name of an errno; empty where the call moves less."""
    lasting: bool = False
    most: int = 0

    def __str__(self) -> str:
        if not self.error:
            return f"{self.step} moves {self.most} of {self.step.result}"
        return f"{self.step}{', and each later one,' * self.lasting} gives {self.error}"


class Command:
    """One run of a command, in a folder with files, and what came of it."""

    def __init__(self, library: Library, folder: Path, fault: Fault | None) -> None:
        self._library = library
        self.folder = folder
        self.fault = fault
        self.words: Sequence[str] = ()
        for name, content in _FILES.items():
            (folder / name).write_bytes(content)

    @property
    def _failing(self) -> str:
        """The name of the call that fails or does less."""
        return self.fault.step.call if self.fault is not None else ""

    def _plan(self) -> AbstractContextManager[object]:
        if self.fault is None:
            return self._library.watching()
        step, error, lasting, most = self.fault
        if error:
            return self._library.failing(step, getattr(errno, error), lasting)
        return self._library.cut_short(step, most)

    @contextmanager
    def running(self, *words: str, output: int | None = None) -> Iterator[None]:
        """Runs it, its calls watched or failing, beside the block, which is its peer.

        output: its standard output, where that is no pipe.
        """
        self.words = words
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        os.write(stdin[1], _PIPED)
        sys.stdout.flush()
        pid = fork()
        if pid == 0:
            self._become([stdin[0], stdout[1] if output is None else output, stderr[1]])
        for fd in (*stdin, stdout[1], stderr[1]):
            os.close(fd)
        self._stderr = stderr[0]
        try:
            yield
            assert self.is_over(_PATIENCE), f"not over after {_PATIENCE} s"
        finally:
            if not self.is_over(0):
                os.killpg(pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with open(stdout[0], "rb") as out, open(stderr[0], "rb") as err:
                with no_process_left():
                    pass
                self.output, self.errors = out.read(), err.read()

    def _become(self, streams: Sequence[int]) -> NoReturn:
        status = 99
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            sys.unraisablehook = sys.__unraisablehook__
            os.environ.update(_ENVIRONMENT, PATH="/nowhere:/usr/bin:/bin")
            if self._failing in ("close", "ioctl"):
                # Left out: a socket that stays open until the exit since another was not closed, or
                # since its own mode was not set. Linux fails in neither.
                warnings.simplefilter("ignore", ResourceWarning)
            os.chdir(self.folder)
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
            os.closerange(3, 1000)
            with self._plan():
                status = main(self.words)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def is_over(self, seconds: float, *others: socket.socket) -> bool:
        """Waits until the command is over, or there is something for one of others.

        It is over when nobody can write to its standard error: its child has it, too.
        """
        poller = select.poll()
        poller.register(self._stderr, 0)  # POLLHUP is always reported.
        for sock in others:
            poller.register(sock, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    # -- the peer ----------------------------------------------------------------------------------

    @contextmanager
    def listening(self) -> Iterator[Callable[[], "socket.socket | None"]]:
        """Listens at the path peer. Gives what accepts; that returns None where nobody comes."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "peer"))
            listener.listen()
            listener.setblocking(False)
            yield partial(self._accept, listener)
        os.unlink(self.folder / "peer")

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        assert self.is_over(_PATIENCE, listener), f"does not connect in {_PATIENCE} s"
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return None
        sock.settimeout(_PATIENCE)
        return sock

    def connect(self) -> socket.socket | None:
        """Connects to where the command listens, the path s; None where it ended."""
        while not self.is_over(0.001):
            try:
                return connect_unix(str(self.folder / "s"), _PATIENCE)
            except (FileNotFoundError, ConnectionRefusedError):
                pass
        return None

    # -- what came of it ---------------------------------------------------------------------------

    def check(self, *pieces: bytes, status: int = 0) -> None:
        """It did all, or said in lines what it did not. pieces: the whole output."""
        lines = self.errors.splitlines()
        assert all(line.startswith(b"fdpass: ") for line in lines), self.errors.decode()
        assert is_begun(self.output, pieces), f"{self.output!r} is not of {pieces}"
        if self.status == 0 or self.fault is None or self._is_retried():
            assert self.status == status, self.errors.decode()
            whole = b"".join(pieces)
            assert self.output == whole, f"{self.output!r} is not {whole!r}"
        elif self.status == 141:
            assert self.fault.error == "EPIPE"
        else:
            assert self.status == 1, f"status {self.status}"
        # Left out: a line that could not be written itself.
        if status == 0 or self._failing != "write":
            assert bool(lines) == (self.status == 1), self.errors.decode() or "does not say why"

    def _is_retried(self) -> bool:
        """Whether this is no error by convention."""
        assert self.fault is not None
        call, error = self.fault.step.call, self.fault.error
        if not error:
            return True
        if error == "EINTR":
            # Left out: close, for Linux has closed all the same; dup2, and a connect that does not
            # wait, which Linux does not interrupt.
            limited = call == "connect" and "--timeout" in self.words
            return call not in ("close", "dup2") and not limited
        if error != "EAGAIN":
            return False
        # Left out: a socket in blocking mode, as all are without a time limit: EAGAIN there is the
        # end of SO_RCVTIMEO; and connecting to HOST, where it means that all ports are taken.
        calls = {"sendmsg", "recvmsg", "accept4", "connect"} if "--timeout" in self.words else {""}
        if self.words[0] == "connect":
            calls = {"sendmsg"}
        return call in calls | {"read", "write"}

    def check_folder(self, saved: bool = False) -> None:
        """No socket or lock is left, and nothing half."""
        left = {*os.listdir(self.folder)} - {*_NAMES}
        if saved and "saved" in left:
            left.remove("saved")
            for path in (self.folder / "saved").iterdir():
                if self._failing != "unlink":
                    assert path.read_bytes() == _FILES[path.name], f"{path.name} is half saved"
                    assert path.name not in self.errors.decode(), f"{path.name} is kept"
        if left <= {"s", "s.lock"} and self._failing in ("unlink", "flock", "fstat", "lstat"):
            # Left out: a file that could not be removed, or not be known to be the command's own.
            # It is not in the way of the next who listens.
            bind_unix(self.folder / "s", backlog=1).close()
            left.clear()
        assert not left, f"left behind: {left}"


def is_begun(got: bytes, pieces: Sequence[bytes]) -> bool:
    """Whether got is the beginning, or all, or nothing of each piece, one after the other.

    One that could not be opened, or read to its end, does not keep the commands from the others.
    """
    for piece in pieces:
        while got and piece and got[0] == piece[0]:
            got, piece = got[1:], piece[1:]
    return not got


# -- cases -----------------------------------------------------------------------------------------

Case = Callable[[Command], None]


def _cat(names: list[str], pieces: list[bytes], status: int, command: Command) -> None:
    with command.running("cat", *names):
        pass
    command.check(*pieces, status=status)
    command.check_folder()


def _send(options: list[str], names: list[str], command: Command) -> None:
    words = ["send", "--connect", "peer", *options, *names]
    with command.listening() as accept, command.running(*words):
        sent = _receive(accept())
    _check_sent(command, names, sent)


def _send_listening(options: list[str], names: list[str], command: Command) -> None:
    with command.running("send", "--listen", "s", *options, *names):
        sent = _receive(command.connect())
    _check_sent(command, names, sent)


class Sent(NamedTuple):
    """All that came over a connection: the bytes, and which files."""

    data: bytes
    files: list[tuple[int, int]]


def _receive(sock: socket.socket | None) -> Sent:
    got = Sent(b"", [])
    if sock is None:
        return got
    with sock:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(sock, 100, 10)
            except ConnectionResetError:  # It was not accepted.
                return got
            if not data:
                return got
            got = Sent(got.data + data, [*got.files, *map(identity, fds)])
            fdpass_c.close_fds(fds)


def _check_sent(command: Command, names: list[str], sent: Sent) -> None:
    command.check()
    assert is_begun(sent.data, [name.encode() for name in names])
    if command.status == 0:
        assert sent.data == "".join(names).encode()
    # A file comes with the first byte of its name.
    passed = [name for name in names if name[:1].encode() in sent.data]
    for name, file in zip(passed, sent.files, strict=True):
        status = os.stat(command.folder / name) if name != "-" else None
        assert status is None or file == (status.st_dev, status.st_ino)
    command.check_folder()


def _recv(options: list[str], pieces: list[bytes], command: Command) -> None:
    with command.listening() as accept, command.running("recv", "--connect", "peer", *options):
        _give(command, accept())
    _check_received(command, pieces)


def _recv_listening(options: list[str], pieces: list[bytes], command: Command) -> None:
    with command.running("recv", "--listen", "s", *options):
        _give(command, command.connect())
    _check_received(command, pieces)


def _give(command: Command, sock: socket.socket | None) -> None:
    if sock is None:
        return
    with sock:
        for name in _NAMES:
            with open(command.folder / name, "rb") as file:
                try:
                    fdpass_c.send_fd(sock, file, name.encode())
                except (BrokenPipeError, ConnectionResetError):
                    return


def _check_received(command: Command, pieces: list[bytes]) -> None:
    command.check(*pieces)
    if "--save" in command.words and command.status == 0:
        assert sorted(os.listdir(command.folder / "saved")) == _NAMES
    command.check_folder(saved=True)


def _connect(options: list[str], command: Command) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(_PATIENCE)
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        with command.running("connect", *options, "127.0.0.1", port, output=theirs.fileno()):
            pass
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, 10, 10)
        for fd in fds:
            with socket.socket(fileno=fd) as connected:
                assert connected.getpeername() == server.getsockname()
                assert connected.getblocking()
        assert len(fds) == len(data)
        # Where it fails, it may have been in closing its own.
        assert len(fds) == 1 or command.status
    command.check()
    command.check_folder()


def _info(command: Command) -> None:
    right = collect()
    with command.running("info", "--json"):
        pass
    whole = command.output
    if command.status == 0:
        # What a probe finds missing is told as missing.
        found = json.loads(whole)
        assert found["kernel"].keys() == right["kernel"].keys()
        assert {*found["kernel"].values()} <= {True, False}
        assert {**found, "kernel": 0} == {**right, "kernel": 0}
    command.check(whole)
    command.check_folder()


_LIMITED = ["--timeout", "3"]

CASES: dict[str, Case] = {
    "cat two files": partial(_cat, _NAMES, _CONTENTS, 0),
    "cat a file and a pipe": partial(_cat, ["ABC", "-"], [_CONTENTS[0], _PIPED], 0),
    "cat a missing file and another": partial(_cat, ["missing", "xyz"], _CONTENTS[1:], 1),
    "send --connect": partial(_send, [], _NAMES),
    "send --connect --timeout": partial(_send, _LIMITED, ["ABC", "-"]),
    "send --listen": partial(_send_listening, [], _NAMES),
    "send --listen --timeout": partial(_send_listening, _LIMITED, _NAMES),
    "recv --connect": partial(_recv, [], _CONTENTS),
    "recv --connect --timeout": partial(_recv, _LIMITED, _CONTENTS),
    "recv --listen": partial(_recv_listening, [], _CONTENTS),
    "recv --listen --timeout": partial(_recv_listening, _LIMITED, _CONTENTS),
    "recv --names": partial(_recv, ["--names"], [b"ABC\n", b"xyz\n"]),
    "recv --count": partial(_recv, ["--count", "1"], _CONTENTS[:1]),
    "recv --save": partial(_recv, ["--save", "saved"], []),
    "recv --save --timeout": partial(_recv, ["--save", "saved", *_LIMITED], []),
    "recv -- program": partial(_recv, ["--", "cat"], _CONTENTS[:1]),
    "recv --at -- program": partial(
        _recv, ["--at", "4,3", "--", "cat", "/dev/fd/4", "/dev/fd/3"], _CONTENTS
    ),
    "connect": partial(_connect, []),
    "connect --timeout": partial(_connect, _LIMITED),
    "info --json": _info,
}


# -- all of them -----------------------------------------------------------------------------------


class Commands:
    """Runs the cases with each fault, and notes what came of it."""

    def __init__(self, library: Library, quick: bool) -> None:
        self._library = library
        self._stride = 11 if quick else 1
        self._at = 0
        self.found: list[str] = []
        adopt_orphans()

    def run(self, names: Sequence[str]) -> int:
        """Tries those whose name begins with one of names; says what was found."""
        total: Counter[str] = Counter()
        for name, case in CASES.items():
            if not f"fdpass {name}".startswith(tuple(names) or ""):
                continue
            counts: Counter[str] = Counter()
            for fault in self._find_faults(name, case):
                self._try(name, case, fault)
                kind = "faults" if fault.error else "short transfers"
                counts[kind] += self._library.fired
            print(f"fdpass {name}: {_say(counts)}")
            total += counts
        print(f"all commands: {_say(total)}; {len(self.found)} that went wrong")
        return 1 if self.found else 0

    def _find_faults(self, name: str, case: Case) -> Iterator[Fault]:
        """All of them, or a sample that takes turns."""
        self._try(name, case, None)
        for step in self._library.list_steps():
            for fault in _find_faults(step, name):
                self._at += 1
                if self._at % self._stride == 0:
                    yield fault

    def _try(self, name: str, case: Case, fault: Fault | None) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                case(Command(self._library, Path(folder), fault))
        except Exception:
            self.found.append(f"fdpass {name}: {fault}\n{traceback.format_exc()}")
            print(self.found[-1], "\n", flush=True)


def _say(counts: Counter[str]) -> str:
    return f"{counts['faults']} faults, {counts['short transfers']} short transfers"


def _find_faults(step: Step, name: str) -> Iterator[Fault]:
    for error in ERRORS[step.call].split():
        yield Fault(step, error)
    if step.number == 0:
        for error in MISSING.get(step.call, "").split():
            yield Fault(step, error, lasting=True)
    # Left out: less of a plain message, which the kernel hands over as a whole.
    is_plain = step.call == "recvmsg" and name.startswith("recv")
    if step.call in STREAMING and step.result > 1 and not is_plain:
        for most in sorted({1, step.result // 2, step.result - 1}):
            yield Fault(step, "", most=most)
