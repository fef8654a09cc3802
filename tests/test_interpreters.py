"""The library in other processes and in other interpreters of this one."""

import importlib.util
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

import fdpass_c
from support.descriptors import MakeFiles, identity
from support.marks import linux_only
from support.processes import run_in_child
from support.sockets import Pair
from support.waiting import once_blocked

pytestmark = pytest.mark.thread_unsafe

# multiprocessing starts processes of its own that stay, and an interpreter that ended may leave
# things behind: so each of these is a program.
PROCESSES = """
import multiprocessing, os, socket, sys
import fdpass_c

def work(sock):
    data, fds = fdpass_c.recv_fd(sock)
    with fds:
        os.write(fds[0], b"the child got " + data)
    fdpass_c.send_fd(sock, 0, b"back")

if __name__ == "__main__":
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    # Leaves buffers to be used again in the parent, which a forked child shares.
    fdpass_c.send_fd(left, 0, b"warm")
    fdpass_c.recv_fd(right)[1].close()
    process = multiprocessing.get_context(sys.argv[1]).Process(target=work, args=(right,))
    process.start()
    fdpass_c.send_fd(left, writer, b"it")
    os.close(writer)
    data, fds = fdpass_c.recv_fd(left)
    fds.close()
    process.join()
    assert process.exitcode == 0, process.exitcode
    assert data == b"back"
    assert os.read(reader, 100) == b"the child got it"
"""

INTERPRETERS = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

import fdpass_c

CODE = '''
import socket, fdpass_c
left, right = socket.socketpair()
fdpass_c.send_many(left, [b"x"] * 10, [0] * 10)
with fdpass_c.recv_many(right) as batch:
    assert len(batch) == 10
print("worked")
'''

own_gil = sys.argv[1] == "own"
if sys.version_info >= (3, 13):
    interpreter = interpreters.create("isolated" if own_gil else "legacy")
    error = interpreters.exec(interpreter, CODE)
    if error is not None:
        print(error.formatted)
else:
    isolated = {"isolated": own_gil} if sys.version_info >= (3, 12) else {}
    interpreter = interpreters.create(**isolated)
    try:
        interpreters.run_string(interpreter, CODE)
    except interpreters.RunFailedError as error:
        print(error)
interpreters.destroy(interpreter)
exec(CODE.replace("worked", "worked after it"))
"""

needs_interpreters = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, ["_interpreters", "_xxsubinterpreters"])),
    reason="this Python has no sub-interpreters",
)


def run_program(folder: Path, text: str, argument: str) -> list[str]:
    """The lines that the program printed; fails unless it ends well."""
    program = folder / "program.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", program, argument], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    """A process passes a descriptor to a child and gets one back, however the child started."""
    run_program(tmp_path, PROCESSES, method)


@linux_only
def test_fork_during_receive(stream: Pair, make_files: MakeFiles) -> None:
    """A child forked while another thread receives has the whole library to itself."""
    left, right = stream
    file, waiting = make_files(2)
    received: list[int] = []

    def receive() -> None:
        received.extend(fdpass_c.recv_fds(right, 16, 1)[1])

    def act() -> None:
        mine, yours = socket.socketpair()
        fdpass_c.send_fd(mine, file, b"child")
        data, fds = fdpass_c.recv_fd(yours)
        assert (data, identity(fds[0])) == (b"child", identity(file))
        fdpass_c.send_many(mine, [b"x"] * 5, [file] * 5)
        assert len(fdpass_c.recv_many(yours)) == 5

    forking = threading.Thread(target=lambda: run_in_child(act))

    def fork_then_send() -> None:
        forking.start()
        forking.join()
        fdpass_c.send_fd(left, waiting, b"parent")

    with once_blocked(right.fileno(), fork_then_send):
        receive()
    assert identity(received[0]) == identity(waiting)
    fdpass_c.close_fds(received)


@needs_interpreters
@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="there is no GIL to share"
)
def test_interpreter_sharing_the_gil(tmp_path: Path) -> None:
    """A sub-interpreter that shares the GIL uses the library, and so does the main one after."""
    assert run_program(tmp_path, INTERPRETERS, "shared") == ["worked", "worked after it"]


@needs_interpreters
@pytest.mark.skipif(sys.version_info < (3, 12), reason="a GIL of its own came with Python 3.12")
def test_interpreter_with_its_own_gil(tmp_path: Path) -> None:
    """One with a GIL of its own is refused by a clear ImportError, as cffi supports none."""
    lines = run_program(tmp_path, INTERPRETERS, "own")
    assert "does not support loading in subinterpreters" in lines[0]
    assert lines[-1] == "worked after it"
