"""Descriptors pass between processes and threads, each to exactly one receiver."""

import os
import queue
import socket
import sys
import threading
from pathlib import Path

import pytest

import fdpass_c
from fdpass_c import Channel
from support.descriptors import MakeFiles, identity
from support.messages import take
from support.processes import Program, fork, run_in_child
from support.sockets import Pair


@pytest.mark.thread_unsafe
def test_from_a_forked_child(stream: Pair, tmp_path: Path) -> None:
    """What a child opened can be read by its parent after the child has exited."""

    def child() -> None:
        fds = []
        for number in range(253):
            path = tmp_path / str(number)
            path.write_text(f"file {number}")
            fds.append(os.open(path, os.O_RDONLY))
        fdpass_c.send_fds(stream[0], [b"done"], fds)

    run_in_child(child)
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 100, 253)
    assert data == b"done"
    for number, fd in enumerate(fds):
        with open(fd) as file:
            assert file.read() == f"file {number}"
    assert len(fds) == 253


@pytest.mark.thread_unsafe
def test_to_a_forked_child(stream: Pair, tmp_path: Path) -> None:
    """A child writes through the descriptor that it received."""

    def child() -> None:
        _, fds = fdpass_c.recv_fd(stream[1])
        with fds, fds.as_file(0, "w") as file:
            file.write("from the child")

    with open(tmp_path / "file", "w+") as file:
        fdpass_c.send_fd(stream[0], file)
        run_in_child(child)
        assert (tmp_path / "file").read_text() == "from the child"


@pytest.mark.thread_unsafe
def test_fork_between_receives(stream: Pair, make_files: MakeFiles) -> None:
    """Parent and child both go on receiving after a fork, with nothing of each other's."""
    first, second, third = make_files(3)

    def receive(wanted: int) -> None:
        with fdpass_c.recv_fd(stream[1])[1] as fds:
            assert identity(fds[0]) == identity(wanted)

    for file in (first, second, third):
        fdpass_c.send_fd(stream[0], file)
    receive(first)
    run_in_child(lambda: receive(second))
    receive(third)


@pytest.mark.thread_unsafe
def test_dying_sender(stream: Pair, file: int) -> None:
    """Descriptors queued by a process that was killed arrive, then comes the end of file."""
    left, right = stream
    pid = fork()
    if pid == 0:
        try:
            fdpass_c.send_fd(left, file)
        finally:
            os._exit(0)
    left.close()
    os.waitpid(pid, 0)
    with fdpass_c.recv_fd(right)[1] as fds:
        assert identity(fds[0]) == identity(file)
    with pytest.raises(fdpass_c.PeerClosedError):
        fdpass_c.recv_fd(right)


def test_unrelated_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that shares nothing but a path sends a descriptor, and takes one back."""
    code = (
        "import socket, sys, fdpass_c\n"
        "with socket.socket(socket.AF_UNIX) as sock:\n"
        "    sock.connect(sys.argv[1])\n"
        "    with open('from-them', 'w+') as file:\n"
        "        file.write('hello')\n"
        "        file.flush()\n"
        "        file.seek(0)\n"
        "        fdpass_c.send_fd(sock, file, b'greeting')\n"
        "    data, fds = fdpass_c.recv_fd(sock)\n"
        "    with fds, fds.as_file(0, 'w') as file:\n"
        "        file.write(data.decode())\n"
    )
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("server")
        server.listen()
        with Program([sys.executable, "-W", "error", "-c", code, "server"]) as process:
            connection, _ = server.accept()
            with connection:
                data, fds = fdpass_c.recv_fd(connection)
                with fds, fds.as_file(0, "r") as file:
                    assert data == b"greeting"
                    assert file.read() == "hello"
                with open("from-us", "w") as file:
                    fdpass_c.send_fd(connection, file, b"answer")
            assert process.wait() == 0
    assert (tmp_path / "from-us").read_text() == "answer"


@pytest.mark.thread_unsafe
def test_channel_as_standard_input(file: int) -> None:
    """A channel can be a program's standard input."""
    code = """
import socket
from fdpass_c import Channel
with Channel(socket.socket(fileno=0)) as channel:
    for payload, fds in channel:
        with fds:
            channel.send(payload, fds)
"""
    here, there = Channel.pair()
    with here:
        with there:
            program = Program[bytes](
                [sys.executable, "-W", "error", "-c", code], stdin=there.fileno()
            )
        with program:
            here.send(b"back", [file])
            assert take(here.recv()) == (b"back", [identity(file)])
            here.close()
            assert program.wait() == 0


MESSAGES = 300


def test_threads_with_a_pair_each(make_files: MakeFiles) -> None:
    """Threads that send and receive at once each get their own descriptors, in order."""
    files = make_files(7)
    failures: queue.Queue[str] = queue.Queue()

    def exchange(number: int) -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with left, right:
            for turn in range(MESSAGES):
                count = (number + turn) % len(files) + 1
                payload = f"{number}:{turn}".encode()
                fdpass_c.send_fds(left, [payload], files[:count])
                data, plain, flags, _ = fdpass_c.recv_fds(right, 100, len(files))
                with fdpass_c.Descriptors(plain) as fds:
                    same = [identity(fd) for fd in fds] == [identity(fd) for fd in files[:count]]
                    if (data, flags, same) != (payload, 0, True):
                        failures.put(f"{data!r} {flags} {same}, wanted {payload!r}")

    threads = [threading.Thread(target=exchange, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(failures.queue) == []


def test_threads_with_one_socket(seqpacket: Pair, make_files: MakeFiles) -> None:
    """Many senders and receivers on one socket: each message arrives once, with its descriptor."""
    left, right = seqpacket
    left.settimeout(60)  # or senders would wait for ever, should all receivers have failed
    files = make_files(4)
    by_payload = {b"%d" % number: identity(fd) for number, fd in enumerate(files)}
    received: queue.Queue[tuple[bytes, tuple[int, int]]] = queue.Queue()

    def send(number: int) -> None:
        for _ in range(MESSAGES):
            fdpass_c.send_fd(left, files[number], b"%d" % number)

    def receive() -> None:
        while True:
            try:
                data, fds = fdpass_c.recv_fd(right)
            except fdpass_c.PeerClosedError:
                return
            with fds:
                received.put((data, identity(fds[0])))

    senders = [threading.Thread(target=send, args=(number,)) for number in range(len(files))]
    receivers = [threading.Thread(target=receive) for _ in range(4)]
    for thread in senders + receivers:
        thread.start()
    for thread in senders:
        thread.join()
    left.close()
    for thread in receivers:
        thread.join()

    arrived = list(received.queue)
    assert len(arrived) == MESSAGES * len(files)
    assert all(by_payload[data] == what for data, what in arrived)
