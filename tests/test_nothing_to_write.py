"""Nothing to write writes nothing: no empty packet, which a reader takes for the end of file."""

import errno
import os
import socket
from typing import IO, Any

import pytest

import fdpass_c
from support.sockets import Pair, assert_empty, fill

EMPTY: list[Any] = [
    [],
    (),
    [b""],
    [b""] * 2,
    [bytearray(), memoryview(b""), b""],
    [b""] * 17,
    [memoryview(b"")] * 100,
    [b""] * 3000,
]


@pytest.mark.thread_unsafe
def test_writev(pair: Pair) -> None:
    """writev of no byte returns 0, and no packet leaves."""
    left, right = pair
    for buffers in EMPTY:
        assert fdpass_c.writev(left.fileno(), buffers) == 0
        assert fdpass_c.writev(left, buffers) == 0
        assert fdpass_c.writev(left, iter(buffers)) == 0
    assert_empty(right)


@pytest.mark.thread_unsafe
def test_writev_full(seqpacket: Pair) -> None:
    """writev of no byte needs no room."""
    left, _ = seqpacket
    left.setblocking(False)
    fill(left)
    for buffers in EMPTY:
        assert fdpass_c.writev(left, buffers) == 0


@pytest.mark.thread_unsafe
def test_file(tmp_path: Any) -> None:
    """No byte, at an offset too, leaves the file as it is."""
    with open(tmp_path / "file", "wb", buffering=0) as file:
        for buffers in EMPTY:
            assert fdpass_c.writev(file, buffers) == 0
            assert fdpass_c.writev(file, buffers, 1000) == 0
        assert os.fstat(file.fileno()).st_size == 0


@pytest.mark.thread_unsafe
def test_no_byte_among_many(seqpacket: Pair) -> None:
    """Where it takes several system calls, those without a byte are left out."""
    left, right = seqpacket
    assert fdpass_c.writev(left, [b""] * 1024 + [b"x"] + [b""] * 3000) == 1
    assert right.recv(10) == b"x"
    assert_empty(right)


@pytest.mark.thread_unsafe
def test_broadcast(seqpacket: Pair) -> None:
    """broadcast of no byte gives 0 for each target, and no packet leaves."""
    left, right = seqpacket
    for buffers in EMPTY:
        assert fdpass_c.broadcast([left, left.fileno()], buffers) == [0, 0]
    assert_empty(right)


@pytest.mark.thread_unsafe
def test_udp() -> None:
    """No empty datagram goes out over the network either."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as right,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
    ):
        right.bind(("127.0.0.1", 0))
        left.connect(right.getsockname())
        assert fdpass_c.writev(left, [b""]) == 0
        assert fdpass_c.broadcast([left], []) == [0]
        left.send(b"first")
        assert right.recv(10) == b"first"


@pytest.mark.thread_unsafe
def test_closed_descriptor() -> None:
    """A descriptor that is not open is EBADF still."""
    fd = os.dup(0)
    os.close(fd)
    for buffers in EMPTY:
        for offset in (None, 0):
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)) as caught:
                fdpass_c.writev(fd, buffers, offset)
            assert caught.value.characters_written == 0  # type: ignore[attr-defined]
        (result,) = fdpass_c.broadcast([fd], buffers)
        assert isinstance(result, OSError)
        assert result.errno == errno.EBADF


@pytest.mark.thread_unsafe
def test_channel_goes_on(seqpacket: Pair, file: int) -> None:
    """A Channel is not ended by a writev of nothing over its socket."""
    left, right = (fdpass_c.Channel(sock) for sock in seqpacket)
    with left, right:
        assert fdpass_c.writev(left.fileno(), [b""]) == 0
        left.send(b"message", [file])
        payload, fds = right.recv()
        with fds:
            assert payload == b"message"


@pytest.mark.thread_unsafe
def test_wrong_target(tmp_path: Any) -> None:
    """What is no descriptor is a TypeError with nothing to write too."""
    wrong: Any = "text"
    with pytest.raises(TypeError, match="fileno"):
        fdpass_c.writev(wrong, [])
    buffers: IO[bytes]
    with open(tmp_path / "file", "wb") as buffers, pytest.raises(TypeError):
        fdpass_c.writev(buffers.fileno(), [b"", None])  # type: ignore[list-item]
