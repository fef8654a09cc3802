"""What docs/threads.md promises: threads share what it says they may, and nothing goes astray."""

import os
import socket
import tempfile
from collections import Counter
from functools import partial

import pytest

import fdpass_c
from support.descriptors import MakeFiles, identity
from support.tables import many_allowed
from support.threads import run_together

THREADS = 8
ROUNDS = 50


def test_sockets_of_their_own() -> None:
    """Threads with a socket each never see another's bytes or descriptors."""

    def work(number: int) -> None:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with left, right, tempfile.TemporaryFile() as file:
            wanted = identity(file.fileno())
            for i in range(ROUNDS):
                text = f"{number} {i}".encode()
                fdpass_c.send_fds(left, [text], [file] * 3)
                data, fds, _, _ = fdpass_c.recv_fds(right, 100, 3)
                assert data == text
                assert [identity(fd) for fd in fds] == [wanted] * 3
                fdpass_c.close_fds(fds)

                fdpass_c.send_many(left, [text] * 4, [file] * 4)
                with fdpass_c.recv_many(right) as batch:
                    assert list(batch.payloads) == [text] * 4
                    assert [identity(fd) for fd in batch.fds] == [wanted] * 4

                fdpass_c.send_fd(left, file, text)
                data, owner = fdpass_c.recv_fd(right)
                with owner:
                    assert (data, identity(owner[0])) == (text, wanted)

    run_together([partial(work, number) for number in range(THREADS)])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("batched", [False, True])
def test_one_socket_for_all(batched: bool, make_files: MakeFiles) -> None:
    """Messages of many threads over one socket arrive exactly once, each with its descriptor."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    files = make_files(THREADS)
    received: list[tuple[bytes, tuple[int, int]]] = []

    def send(number: int) -> None:
        for i in range(ROUNDS):
            text = f"{number} {i}".encode()
            if batched:
                fdpass_c.send_many(left, [text, text], [files[number]] * 2)
            else:
                fdpass_c.send_fds(left, [text], [files[number]])
                fdpass_c.send_fds(left, [text], [files[number]])

    def receive() -> None:
        while True:
            if batched:
                with fdpass_c.recv_many(right, 5) as batch:
                    if not batch:
                        return
                    for data, fd in zip(batch.payloads, batch.fds, strict=True):
                        received.append((data, identity(fd)))
            else:
                data, fds, _, _ = fdpass_c.recv_fds(right, 100, 1)
                if not data:
                    return
                received.append((data, identity(fds[0])))
                fdpass_c.close_fds(fds)

    def send_all() -> None:
        run_together([partial(send, number) for number in range(THREADS)])
        left.shutdown(socket.SHUT_WR)

    with many_allowed(20_000), left, right:
        run_together([send_all, *[receive] * 4], left, right)
    assert Counter(received) == {
        (f"{number} {i}".encode(), identity(files[number])): 2
        for number in range(THREADS)
        for i in range(ROUNDS)
    }


@pytest.mark.thread_unsafe
def test_one_channel_for_all() -> None:
    """Several threads send over one channel and several receive: no message mixes with another."""
    sockets = socket.socketpair()
    left, right = map(fdpass_c.Channel, sockets)
    received: list[tuple[bytes, int]] = []

    def send(number: int) -> None:
        reader, writer = os.pipe()
        for i in range(ROUNDS):
            # From one small message to one in several pieces.
            count = [0, 1, 2, 300][i % 4]
            left.send(bytes([number]) * (1 + i * 4000), [reader] * count)
        os.close(reader)
        os.close(writer)

    def receive() -> None:
        while True:
            try:
                data, fds = right.recv()
            except fdpass_c.PeerClosedError:
                return
            with fds:
                assert data == data[:1] * len(data)
                assert len({identity(fd) for fd in fds}) <= 1
                received.append((data, len(fds)))

    def send_all() -> None:
        run_together([partial(send, number) for number in range(THREADS)])
        left.close()

    # A buffer full of those with 300 is more than an ordinary user may have in flight by default.
    with many_allowed(10_000), left, right:
        run_together([send_all, *[receive] * 3], *sockets)
    assert Counter(received) == {
        (bytes([number]) * (1 + i * 4000), [0, 1, 2, 300][i % 4]): 1
        for number in range(THREADS)
        for i in range(ROUNDS)
    }


def test_both_directions_of_a_channel() -> None:
    """One thread sends while another receives on the same channel."""
    sockets = socket.socketpair()
    left, right = map(fdpass_c.Channel, sockets)

    def echo() -> None:
        for data, fds in right:
            with fds:
                right.send(data, fds)

    def send() -> None:
        for i in range(ROUNDS):
            left.send(str(i).encode(), [0])

    def receive() -> None:
        for i in range(ROUNDS):
            data, fds = left.recv()
            with fds:
                assert (data, len(fds)) == (str(i).encode(), 1)
        left.close()

    with left, right:
        run_together([echo, send, receive], *sockets)
