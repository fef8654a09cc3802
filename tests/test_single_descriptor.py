"""send_fd and recv_fd pass exactly one descriptor, or say why not and keep nothing open."""

import array
import asyncio
import ctypes
import os
import socket
import sys
import threading
from typing import Any

import pytest

import fdpass_c
from fdpass_c import aio
from fdpass_c.testing import shorten
from support.descriptors import MakeFiles, identity
from support.marks import linux_only
from support.sockets import Pair, fill, read_all
from support.threads import beside

_FORMAT = 4  # PyBUF_FORMAT


def test_round_trip(pair: Pair, file: int) -> None:
    """The file and the bytes that were sent arrive."""
    fdpass_c.send_fd(pair[0], file, b"name")
    data, fds = fdpass_c.recv_fd(pair[1])
    with fds:
        assert data == b"name"
        assert identity(fds[0]) == identity(file)


def test_default_payload(stream: Pair, file: int) -> None:
    """Without data, one zero byte travels with the descriptor."""
    fdpass_c.send_fd(stream[0], file)
    data, fds = fdpass_c.recv_fd(stream[1])
    with fds:
        assert data == b"\0"


def test_payload_types(stream: Pair, file: int) -> None:
    """data may be anything bytes-like."""
    data: Any
    for data in (bytearray(b"abc"), memoryview(b"abc"), array.array("H", [1, 2])):
        fdpass_c.send_fd(stream[0], file, data)
        received, fds = fdpass_c.recv_fd(stream[1])
        with fds:
            assert received == bytes(data)


def test_no_bytes_in_any_shape(seqpacket: Pair, file: int) -> None:
    """Nor does an array of several dimensions need to have bytes, where no message does."""
    data: Any = ((ctypes.c_char * 0) * 3)()
    seqpacket[0].setblocking(False)
    fdpass_c.send_fd(seqpacket[0], file, data)
    asyncio.run(aio.send_fd(seqpacket[0], file, data))
    for _ in range(2):
        received, fds = fdpass_c.recv_fd(seqpacket[1])
        with fds:
            assert received == b""


class Unnamed:
    """Like numpy's array of datetime64: it cannot say what its items are."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __buffer__(self, flags: int) -> memoryview:
        if flags & _FORMAT:
            raise ValueError("cannot include dtype 'M' in a buffer")
        return memoryview(self._data)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12")
def test_items_without_a_name(stream: Pair, file: int) -> None:
    """Nor does memoryview need to know what is in the buffer."""
    content = bytes(range(256)) * 1000
    data: Any = Unnamed(content)
    shorten(stream[0])

    with beside(lambda: read_all(stream[1]), *stream) as received:
        fdpass_c.send_fd(stream[0], file, data)
        stream[0].setblocking(False)
        asyncio.run(aio.send_fd(stream[0], file, data))
        stream[0].setblocking(True)
        assert fdpass_c.writev(stream[0], [data, data, b""]) == 2 * len(content)
        stream[0].shutdown(socket.SHUT_WR)
    assert received == [4 * content]


def test_object_with_fileno(stream: Pair) -> None:
    """A socket is sent as it is, and still belongs to the sender."""
    fdpass_c.send_fd(stream[0], stream[0])
    _, fds = fdpass_c.recv_fd(stream[1])
    with fds:
        assert identity(fds[0]) == identity(stream[0].fileno())


def test_closed_peer(stream: Pair) -> None:
    """A peer that closed is a PeerClosedError, which is an EOFError."""
    stream[0].close()
    with pytest.raises(fdpass_c.PeerClosedError, match="peer closed") as caught:
        fdpass_c.recv_fd(stream[1])
    assert isinstance(caught.value, EOFError)


def test_closed_peer_after_a_message(stream: Pair, file: int) -> None:
    """What was sent before the peer closed still arrives."""
    fdpass_c.send_fd(stream[0], file)
    stream[0].close()
    fdpass_c.recv_fd(stream[1])[1].close()
    with pytest.raises(fdpass_c.PeerClosedError):
        fdpass_c.recv_fd(stream[1])


def test_no_descriptor(stream: Pair) -> None:
    """Bytes without a descriptor are a ProtocolError that counts them."""
    stream[0].send(b"just bytes")
    with pytest.raises(fdpass_c.ProtocolError, match="message of 10 bytes has none"):
        fdpass_c.recv_fd(stream[1])


def test_several_descriptors(stream: Pair, make_files: MakeFiles) -> None:
    """More than one descriptor is a ProtocolError, and all are closed."""
    files = make_files(253)
    for count in (2, 3, 253):
        fdpass_c.send_fds(stream[0], [b"x"], files[:count])
        with pytest.raises(fdpass_c.ProtocolError, match="all are closed"):
            fdpass_c.recv_fd(stream[1])


def test_empty_datagram(datagram: Pair) -> None:
    """On a datagram socket, which has no end of file, an empty message is none."""
    datagram[0].send(b"")
    with pytest.raises(fdpass_c.ProtocolError, match="message of 0 bytes has none"):
        fdpass_c.recv_fd(datagram[1])


@linux_only
def test_empty_packet(seqpacket: Pair) -> None:
    """An empty message of a peer that has not closed is none either, and not the end."""
    seqpacket[0].send(b"")
    with pytest.raises(fdpass_c.ProtocolError, match="message of 0 bytes has none"):
        fdpass_c.recv_fd(seqpacket[1])
    seqpacket[0].close()
    with pytest.raises(fdpass_c.PeerClosedError):
        fdpass_c.recv_fd(seqpacket[1])


def test_datagram_cut_short(datagram: Pair, file: int) -> None:
    """A datagram longer than bufsize is a TruncatedError, and its descriptor is closed."""
    fdpass_c.send_fd(datagram[0], file, b"longer")
    with pytest.raises(fdpass_c.TruncatedError, match="longer than bufsize"):
        fdpass_c.recv_fd(datagram[1], 3)


@pytest.mark.parametrize("timeout", [None, 20])
def test_long_payload_is_sent_whole(timeout: float | None, stream: Pair, file: int) -> None:
    """A payload larger than the socket's buffer leaves whole, with one descriptor."""
    stream[0].settimeout(timeout)
    payload = os.urandom(1 << 20)
    sender = threading.Thread(target=fdpass_c.send_fd, args=(stream[0], file, payload))
    sender.start()
    received, fds = fdpass_c.recv_fd(stream[1])
    with fds:
        while len(received) < len(payload):
            data, more, _, _ = fdpass_c.recv_fds(stream[1], 1 << 20, 1)
            assert not more
            received += data
    sender.join()
    assert received == payload


@pytest.mark.parametrize(("timeout", "error"), [(0, BlockingIOError), (0.01, TimeoutError)])
def test_payload_sent_in_part(
    timeout: float, error: type[OSError], stream: Pair, file: int
) -> None:
    """A send that stops half way says how many bytes left; the descriptor is among them."""
    stream[0].settimeout(timeout)
    with pytest.raises(error) as caught:
        fdpass_c.send_fd(stream[0], file, bytes(1 << 22))
    left = caught.value.characters_written  # type: ignore[attr-defined]
    assert 0 < left < 1 << 22
    data, fds = fdpass_c.recv_fd(stream[1], 1 << 22)
    fds.close()
    stream[0].close()
    rest = len(data)
    while chunk := stream[1].recv(1 << 20):
        rest += len(chunk)
    assert rest == left


def test_slow_reader(stream: Pair, file: int) -> None:
    """A reader that takes little by little does not extend the timeout."""
    shorten(stream[0])
    stream[0].settimeout(0.2)
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.05):
            stream[1].recv(2000)

    with beside(read, *stream):
        try:
            with pytest.raises(TimeoutError) as caught:
                fdpass_c.send_fd(stream[0], file, bytes(1 << 17))
        finally:
            done.set()
    assert 0 < caught.value.characters_written < 1 << 17  # type: ignore[attr-defined]


def test_full_socket(stream: Pair, file: int) -> None:
    """A send that could not start is the plain error, with no bytes written."""
    stream[0].setblocking(False)
    fill(stream[0])
    with pytest.raises(BlockingIOError) as caught:
        fdpass_c.send_fd(stream[0], file)
    assert getattr(caught.value, "characters_written", 0) == 0


def test_broken_pipe(stream: Pair, file: int) -> None:
    """Sending to a peer that closed is a BrokenPipeError, without a signal."""
    stream[1].close()
    with pytest.raises(BrokenPipeError):
        fdpass_c.send_fd(stream[0], file)


def test_datagram_too_long(datagram: Pair, file: int) -> None:
    """A datagram larger than the socket's buffer is the system's EMSGSIZE."""
    datagram[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with pytest.raises(OSError, match=r"[Mm]essage too long"):
        fdpass_c.send_fd(datagram[0], file, bytes(1 << 20))
