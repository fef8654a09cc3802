"""Where socket.socket was replaced by a class that is no subclass of it, as eventlet does."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thread_unsafe

PROGRAM = """
import os
import socket

Real = socket.socket

class Green:
    def __init__(self, *args, **kwargs):
        self._below = Real(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._below, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._below.close()

    def accept(self):
        sock, address = self._below.accept()
        return Green(fileno=sock.detach()), address

    def connect_ex(self, address):
        return self._below.connect_ex(address) or None

socket.socket = Green
socket.socketpair = lambda: tuple(Green(fileno=each.detach()) for each in pair())

def pair():
    with Real(socket.AF_UNIX) as listener:
        listener.bind("pair")
        listener.listen()
        left = Real(socket.AF_UNIX)
        left.connect("pair")
        os.unlink("pair")
        return left, listener.accept()[0]

import fdpass_c

def check(payload, fds):
    with fds:
        assert payload == b"x" and os.path.samestat(os.fstat(fds[0]), os.fstat(0))

left, right = socket.socketpair()
fdpass_c.send_fds(left, [b"x"], [0])
_, fds, _, _ = fdpass_c.recv_fds(right, 1, 1)
fdpass_c.close_fds(fds)
fdpass_c.send_fd(left, 0, b"x")
check(*fdpass_c.recv_fd(right))
fdpass_c.send_many(left, [b"x"], [[0]])
with fdpass_c.recv_many(right, 1) as batch:
    assert batch.payloads == [b"x"]
with fdpass_c.Listener("listener") as listener:
    with fdpass_c.Channel.connect("listener") as here, listener.accept() as there:
        here.send(b"x", [0])
        check(*there.recv())
"""


def test_calls(tmp_path: Path) -> None:
    """Plain functions, a listener and channels work with its sockets."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
