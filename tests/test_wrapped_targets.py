"""An object whose bytes must go through itself is refused before a byte leaves its descriptor."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import multiprocessing
import os
import socket
import ssl
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from support.sockets import Pair, assert_empty

SECRET = b"SECRET"


@pytest.fixture
def tls(stream: Pair) -> Iterator[ssl.SSLSocket]:
    """A TLS socket before its handshake, over one end of a Unix pair."""
    context = ssl.create_default_context()
    wrapped = context.wrap_socket(
        stream[0], server_hostname="example.org", do_handshake_on_connect=False
    )
    with wrapped:
        yield wrapped


class Delegating:
    """A TLS object of another library: no socket.socket, only what it does tells."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def gettimeout(self) -> float | None:
        return self._sock.gettimeout()


class OpenSSL(Delegating):
    """As pyOpenSSL's Connection."""

    def do_handshake(self) -> None: ...


class Transport(Delegating):
    """As urllib3's SSLTransport."""

    def unwrap(self) -> None: ...
    def getpeercert(self) -> None: ...


USES: dict[str, Callable[[Any, int], object]] = {
    "send_fds": lambda sock, fd: fdpass_c.send_fds(sock, [SECRET], [fd]),
    "send_fds of none": lambda sock, _: fdpass_c.send_fds(sock, [SECRET], []),
    "send_fd": lambda sock, fd: fdpass_c.send_fd(sock, fd, SECRET),
    "send_many": lambda sock, fd: fdpass_c.send_many(sock, [SECRET], [fd]),
    "recv_fds": lambda sock, _: fdpass_c.recv_fds(sock, 10, 1),
    "recv_fd": lambda sock, _: fdpass_c.recv_fd(sock),
    "recv_many": lambda sock, _: fdpass_c.recv_many(sock),
    "writev": lambda sock, _: fdpass_c.writev(sock, [SECRET]),
    "writev of two": lambda sock, _: fdpass_c.writev(sock, [SECRET, SECRET]),
    "writev of none": lambda sock, _: fdpass_c.writev(sock, []),
    "broadcast": lambda sock, _: fdpass_c.broadcast([sock], [SECRET]),
    "broadcast to many": lambda sock, _: fdpass_c.broadcast([1, sock], [SECRET]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_tls_socket(use: Callable[[Any, int], object], tls: ssl.SSLSocket, stream: Pair) -> None:
    """Nothing goes out between the records of TLS, and nothing is read from between them."""
    stream[1].send(b"record")
    with pytest.raises(TypeError, match="TLS"):
        use(tls, stream[1].fileno())
    assert_empty(stream[1])
    assert os.read(tls.fileno(), 10) == b"record"


@pytest.mark.parametrize("kind", [OpenSSL, Transport])
def test_tls_of_others(kind: type[Delegating], stream: Pair) -> None:
    """A TLS object is known by what it does, whatever its class."""
    stream[1].send(b"record")
    for use in USES.values():
        with pytest.raises(TypeError, match="TLS"):
            use(kind(stream[0]), stream[1].fileno())
    assert_empty(stream[1])
    assert stream[0].recv(10) == b"record"


def test_channel_of_tls(tls: ssl.SSLSocket, stream: Pair) -> None:
    """A Channel is not made of a TLS socket, which stays its owner's."""
    with pytest.raises(TypeError, match="TLS"):
        fdpass_c.Channel(tls)
    assert tls.fileno() >= 0
    assert_empty(stream[1])


def test_file_of_tls(tls: ssl.SSLSocket, stream: Pair) -> None:
    """What makefile() gives is refused as the socket is."""
    mode: Any
    for mode in ("rwb", "rw", "wb", "w"):
        with tls.makefile(mode) as file, pytest.raises(TypeError):
            fdpass_c.writev(file, [SECRET])
    with tls.makefile("wb", buffering=0) as raw, pytest.raises(TypeError, match="TLS"):
        fdpass_c.writev(raw, [SECRET])
    assert_empty(stream[1])


def test_passed_tls_socket(tls: ssl.SSLSocket) -> None:
    """A descriptor that is passed may belong to any object."""
    left, right = socket.socketpair()
    with left, right, tempfile.NamedTemporaryFile() as file:
        assert fdpass_c.send_fds(left, [b"x"], [tls, file]) == 1
        _, fds, _, _ = fdpass_c.recv_fds(right, 10, 10)
        assert len(fds) == 2
        fdpass_c.close_fds(fds)


def in_folder(path: Path, opener: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return opener(*arguments, dir=str(path.parent), **options)


FILES: dict[str, Callable[[Path], Any]] = {
    "buffered": partial(open, mode="wb"),
    "read and write": partial(open, mode="w+b"),
    "text": partial(open, mode="w"),
    "gzip": partial(gzip.open, mode="wb"),
    "gzip text": partial(gzip.open, mode="wt"),
    "bz2": partial(bz2.open, mode="wb"),
    "lzma": partial(lzma.open, mode="wb"),
    "temporary": partial(in_folder, opener=tempfile.NamedTemporaryFile),
    "temporary text": partial(in_folder, opener=tempfile.NamedTemporaryFile, mode="w"),
    "unnamed": partial(in_folder, opener=tempfile.TemporaryFile),
    "spooled": partial(in_folder, opener=tempfile.SpooledTemporaryFile),
    "codec": partial(codecs.open, mode="w", encoding="utf-8"),
    "descriptor": lambda path: os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT), "wb"),
}


@pytest.mark.filterwarnings("ignore:codecs.open:DeprecationWarning")
def test_file_with_a_buffer(tmp_path: Path) -> None:
    """A file that buffers, encodes or compresses is refused, even where its buffer is empty."""
    for open_file in FILES.values():
        with open_file(tmp_path / "file") as file:
            before = {entry: entry.stat().st_size for entry in tmp_path.iterdir()}
            for use in (fdpass_c.writev, lambda target, data: fdpass_c.broadcast([target], data)):
                with pytest.raises(TypeError, match=r"fileno\(\)|through it"):
                    use(file, [SECRET])
            assert {entry: entry.stat().st_size for entry in tmp_path.iterdir()} == before


def test_member_of_a_zip_file(tmp_path: Path) -> None:
    """A file without a descriptor of its own is a TypeError or what its fileno() raises."""
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive, archive.open("member", "w") as member:
        file: Any = member
        with pytest.raises((TypeError, io.UnsupportedOperation)):
            fdpass_c.writev(file, [SECRET])


def test_pipe_of_a_process() -> None:
    """A buffered pipe of subprocess is refused; its number is taken once it is flushed."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write(b"first ")
        with pytest.raises(TypeError, match="flush"):
            fdpass_c.writev(cat.stdin, [b"second"])
        cat.stdin.flush()
        assert fdpass_c.writev(cat.stdin.fileno(), [b"second"]) == 6
        cat.stdin.close()
        assert cat.stdout.read() == b"first second"


def test_connection() -> None:
    """multiprocessing's Connection frames what goes through it."""
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        for use in USES.values():
            with pytest.raises(TypeError, match="Connection"):
                use(ours, theirs.fileno())
        assert not theirs.poll()


def test_channel() -> None:
    """A Channel frames what goes through it too."""
    ours, theirs = fdpass_c.Channel.pair()
    with ours, theirs:
        for use in USES.values():
            with pytest.raises(TypeError, match="Channel"):
                use(ours, theirs.fileno())
        assert fdpass_c.writev(ours.fileno(), []) == 0
        ours.send(b"message")
        payload, fds = theirs.recv()
        fds.close()
        assert payload == b"message"


RAW: dict[str, Callable[[Path], Any]] = {
    "raw": partial(open, mode="wb", buffering=0),
    "raw temporary": partial(in_folder, opener=tempfile.NamedTemporaryFile, buffering=0),
    "raw unnamed": partial(in_folder, opener=tempfile.TemporaryFile, buffering=0),
    "raw of buffered": lambda path: open(path, "wb").detach(),  # noqa: SIM115
}


def test_raw_file(tmp_path: Path) -> None:
    """A file without a buffer is written to."""
    for name, open_file in RAW.items():
        with open_file(tmp_path / name) as file:
            assert fdpass_c.writev(file, [b"he", b"llo"]) == 5
            assert fdpass_c.broadcast([file, file.fileno()], [b"!"]) == [1, 1]
            assert os.fstat(file.fileno()).st_size == 7


def test_subclasses_and_look_alikes(stream: Pair) -> None:
    """A subclass of a socket, a socket that is none, an int of another type and a number go on."""

    class Socket(socket.socket):
        pass

    left = Socket(fileno=os.dup(stream[0].fileno()))
    with left, contextlib.closing(left.makefile("wb", buffering=0)) as raw:
        for target in (left, Delegating(stream[0]), raw, stream[0].fileno()):
            assert fdpass_c.writev(target, [b"a", b"b"]) == 2
            assert fdpass_c.broadcast([target], [b"c"]) == [1]
        for target in (left, Delegating(stream[0]), stream[0].fileno()):
            assert fdpass_c.send_fds(target, [b"d"], [0]) == 1
            assert fdpass_c.send_many(target, [b"e"], [0]) == 1
    received = b""
    while len(received) < 18:
        data, fds, _, _ = fdpass_c.recv_fds(Delegating(stream[1]), 100, 10)
        fdpass_c.close_fds(fds)
        received += data
    assert received == b"abc" * 4 + b"de" * 3
