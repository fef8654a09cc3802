"""Under gevent, which makes descriptors non-blocking below, calls wait as greenlets do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import Program
from support.server import Server

PATCH = "from gevent import monkey; monkey.patch_all()\n"
IMPORTS = """
import gevent
import os
import socket
import tempfile
import fdpass_c
from fdpass_c import Channel
"""

# Whoever waits lets the other run, or it waits for ever.
PRELUDE = """
def run(*functions):
    greenlets = [gevent.spawn(function) for function in functions]
    gevent.joinall(greenlets, raise_error=True)
    return [greenlet.value for greenlet in greenlets]

def identity(fd):
    status = os.fstat(fd)
    return status.st_dev, status.st_ino

def pair(kind=socket.SOCK_STREAM, size=None):
    made = socket.socketpair(socket.AF_UNIX, kind)
    for each in made:
        if size:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        each.settimeout(TIMEOUT)
    return made

def take(message):
    payload, fds = message
    with fds:
        return payload, [identity(fd) for fd in fds]

file = tempfile.TemporaryFile()
fd = file.fileno()
here = [identity(fd)]
left, right = pair(size=5000)
"""

BODIES = {
    "plain": """
def send():
    gevent.sleep(0.01)
    fdpass_c.send_fds(left, [b"one"], [fd])
    gevent.sleep(0.01)
    fdpass_c.send_fd(left, fd, b"two")
    gevent.sleep(0.01)
    fdpass_c.send_many(left, [b"3"] * 300, [fd] * 300)

def receive():
    data, fds, _, _ = fdpass_c.recv_fds(right, 3, 1)
    assert (data, [identity(fds[0])]) == (b"one", here)
    fdpass_c.close_fds(fds)
    assert take(fdpass_c.recv_fd(right)) == (b"two", here)
    count = 0
    while count < 300:
        with fdpass_c.recv_many(right) as batch:
            assert {*batch.payloads} == {b"3"}
            count += len(batch)

run(receive, send)
""",
    "full sends": """
large = bytes(200_000)

def fill():
    fdpass_c.send_fd(left, fd, large)
    assert fdpass_c.writev(left, [large, b"tail"]) == len(large) + 4
    fdpass_c.send_many(left, [bytes(50_000)] * 4, [fd] * 4)
    for _ in range(300):
        fdpass_c.send_fds(left, [b"x" * 100], [fd])
    left.close()

def drain():
    gevent.sleep(0.01)
    size = 0
    while data := right.recv(10_000):
        size += len(data)
        gevent.sleep(0)
    return size

assert run(fill, drain)[1] == 2 * len(large) + 4 + 200_000 + 30_000
""",
    "channel": """
one, other = Channel(left), Channel(right)
large = os.urandom(300_000)

def talk():
    gevent.sleep(0.01)
    one.send(b"first", [fd])
    assert take(one.recv()) == (b"answer", here)
    one.send(large, [fd] * 300)
    assert one.recv_many().payloads == [b"a", b"b"]
    one.close()

def answer():
    assert take(other.recv()) == (b"first", here)
    gevent.sleep(0.01)
    other.send(b"answer", [fd])
    payload, fds = take(other.recv())
    assert payload == large
    assert fds == here * 300
    gevent.sleep(0.01)
    other.send_many([b"a", b"b"])
    try:
        other.recv()
    except fdpass_c.PeerClosedError:
        other.close()

run(answer, talk)
""",
    "several": """
one, other = Channel(left), Channel(right)
received = []

def receive():
    while (payload := take(other.recv())[0]) != b"end":
        received.append(payload)

def send(number):
    for count in range(50):
        one.send(b"%d %d" % (number, count), [fd])
        one.send(b"%d" % number * 20_000)

def send_all():
    run(*[lambda number=number: send(number) for number in range(3)])
    one.send(b"end")
    one.send(b"end")

run(receive, receive, send_all)
assert len(received) == 300
assert len([payload for payload in received if len(payload) == 20_000]) == 150
one.close()
other.close()
""",
}


def run_program(text: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(text + "\nprint('done')\n")
    command = [sys.executable, "-W", "error::ResourceWarning", str(path)]
    with Program(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.communicate(timeout=50)[0] == "done\n"
    assert program.returncode == 0


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000])
@pytest.mark.parametrize("order", ["patched first", "imported first"])
def test_greenlets(order: str, timeout: float | None, tmp_path: Path) -> None:
    """Greenlets of one process wait for each other, in whichever order one patches and imports."""
    pytest.importorskip("gevent")
    start = PATCH + IMPORTS if order == "patched first" else IMPORTS + PATCH
    # Each in a namespace of its own, as a program would have it.
    each = f"for body in {[*BODIES.values()]!r}:\n    exec({PRELUDE!r} + body, {{**globals()}})\n"
    run_program(f"{start}\nTIMEOUT = {timeout}\n{each}", tmp_path)


@pytest.mark.thread_unsafe
def test_a_pool() -> None:
    """A pool's plain workers wait for connections as greenlets do, and are replaced as ever."""
    pytest.importorskip("gevent")
    code = f"{PATCH}import sys, pool_programs; pool_programs.main(*sys.argv[1:])"
    with Server(program=("-c", code, "under_gevent")) as server:
        pids = server.settled(2).pids
        ticks: dict[int, int] = {}
        asked = 0
        while len(ticks) < 2 or min(ticks.values()) < 10:
            pid, count = map(int, server.ask().split())
            ticks[pid] = count
            asked += 1
        assert server.ask(b"slow") == b""
        server.wait_for("gevent.timeout.Timeout")
        os.kill(pids[0], signal.SIGKILL)
        server.wait_for(f"worker {pids[0]} was killed by SIGKILL")
        status = server.settled(2)
        assert (status.failed, status.lost) == (1, 0)
        assert status.handled == asked + 1
        server.send_signal(signal.SIGHUP)
        for _ in range(2):
            server.wait_for("exited with status 0")
        assert not {*server.settled(2).pids} & {*status.pids}
        assert server.stop() == 0
