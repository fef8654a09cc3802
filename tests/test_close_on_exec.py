"""Received descriptors are never inheritable."""

import os
import socket
import subprocess
import sys

import pytest

import fdpass_c
from support.descriptors import Keep, MakeFiles
from support.sockets import Pair


def test_recv_fds(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """recv_fds gives close-on-exec descriptors, with MSG_PEEK too, whatever was sent."""
    for count in (1, 2, 253):
        files = make_files(count)
        for fd in files:
            os.set_inheritable(fd, True)
        fdpass_c.send_fds(stream[0], [b"x"], files)
        for flags in (socket.MSG_PEEK, 0):
            fds = keep(fdpass_c.recv_fds(stream[1], 1, 253, flags)[1])
            assert len(fds) == count
            assert not any(os.get_inheritable(fd) for fd in fds)


def test_peeked_then_received(stream: Pair, file: int, keep: Keep) -> None:
    """A peek installs descriptors of its own; they and those of the receive are close-on-exec."""
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    peeked = keep(fdpass_c.recv_fds(stream[1], 1, 1, socket.MSG_PEEK)[1])
    received = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    assert peeked != received
    assert not any(os.get_inheritable(fd) for fd in peeked + received)


def test_owner(stream: Pair) -> None:
    """What recv_fd's owner holds and hands over is close-on-exec."""
    stream[0].set_inheritable(True)
    fdpass_c.send_fd(stream[0], stream[0])
    with fdpass_c.recv_fd(stream[1])[1] as fds:
        assert not os.get_inheritable(fds[0])
        with fds.as_socket() as received:
            assert not received.get_inheritable()


@pytest.mark.thread_unsafe
def test_a_new_program_does_not_see_it(stream: Pair, file: int, keep: Keep) -> None:
    """A program started with close_fds=False finds the received descriptor closed."""
    os.set_inheritable(file, True)
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    (received,) = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    code = (
        "import os, sys\n"
        "for fd in map(int, sys.argv[1:]):\n"
        "    try:\n"
        "        os.fstat(fd)\n"
        "        print('open')\n"
        "    except OSError:\n"
        "        print('closed')\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(file), str(received)],
        close_fds=False,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    assert output.split() == ["open", "closed"]
