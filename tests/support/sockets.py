"""Sockets, used through the standard library alone."""

import contextlib
import socket

import pytest

Pair = tuple[socket.socket, socket.socket]


def assert_empty(sock: socket.socket) -> None:
    """Fails if a message waits in sock, or its end of file."""
    with pytest.raises(BlockingIOError):
        sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)


def fill(sock: socket.socket) -> int:
    """Sends until a non-blocking send would block; returns the bytes sent."""
    sent = 0
    chunk = bytes(4096)
    try:
        while True:
            sent += sock.send(chunk, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return sent


def drain(sock: socket.socket) -> bytes:
    """The bytes that are there now; descriptors that come with them are lost."""
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while True:
            pieces.append(sock.recv(1 << 20, socket.MSG_DONTWAIT))
    return b"".join(pieces)


def read_all(sock: socket.socket) -> bytes:
    """All bytes up to the end of file."""
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def read_some(sock: socket.socket) -> bytes:
    """What comes next; empty where the connection has ended, however it ended."""
    try:
        return sock.recv(1000)
    except ConnectionResetError:
        return b""


def set_option(sock: socket.socket, option: int, value: int) -> None:
    """setsockopt at SOL_SOCKET; skips the test where the kernel does not know the option."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, option, value)
    except OSError as error:
        pytest.skip(f"no socket option {option}: {error}")
