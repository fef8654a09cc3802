"""The drop-in functions and the standard library's understand each other, in both directions."""

import array
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from support.descriptors import Keep, MakeFiles, identities, identity
from support.marks import linux_only
from support.sockets import Pair, assert_empty, fill
from support.waiting import once_blocked

Send = Callable[..., int]
Receive = Callable[..., tuple[bytes, list[int], int, Any]]

DIRECTIONS: list[tuple[Send, Receive]] = [
    (fdpass_c.send_fds, socket.recv_fds),
    (socket.send_fds, fdpass_c.recv_fds),
    (fdpass_c.send_fds, fdpass_c.recv_fds),
]


def test_descriptors_arrive(pair: Pair, make_files: MakeFiles) -> None:
    """The same files arrive, in order, with the payload whole and nothing flagged."""
    files = make_files(253)
    for (send, receive), count in itertools.product(DIRECTIONS, (0, 1, 2, 253)):
        assert send(pair[0], [b"payload"], files[:count]) == 7
        data, fds, flags, _ = receive(pair[1], 100, 253)
        assert data == b"payload"
        assert identities(fds) == identities(files[:count])
        assert flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) == 0
        fdpass_c.close_fds(fds)


def test_received_descriptors_work(stream: Pair, keep: Keep) -> None:
    """What is written to a pipe can be read from the descriptor that was passed."""
    reader, writer = keep(list(os.pipe()))
    for send, receive in DIRECTIONS:
        send(stream[0], [b"x"], [reader])
        (received,) = keep(receive(stream[1], 1, 1)[1])
        os.write(writer, b"through the pipe")
        assert os.read(received, 100) == b"through the pipe"


def receive_both(send: Callable[[], object], sock: socket.socket, *arguments: int) -> None:
    """Sends the same message twice and compares what both libraries make of it."""
    results = []
    for receive in (socket.recv_fds, fdpass_c.recv_fds):
        send()
        data, fds, flags, address = receive(sock, *arguments)
        files = identities(fds)
        for fd in fds:
            os.close(fd)
        results.append((data, files, flags, address, type(data), type(fds), type(flags)))
    assert results[0] == results[1]


def test_same_result(pair: Pair, make_files: MakeFiles) -> None:
    """Both return the same tuple, msg_flags and address included, for unnamed senders."""
    files = make_files(253)
    for count in (0, 1, 253):
        send = partial(socket.send_fds, pair[0], [b"data"], files[:count])
        receive_both(send, pair[1], 100, 253)


def test_same_result_for_a_datagram_cut_short(datagram: Pair, file: int) -> None:
    """A datagram longer than bufsize gives the same bytes and the same MSG_TRUNC."""
    receive_both(lambda: socket.send_fds(datagram[0], [b"data"], [file]), datagram[1], 2, 1)


def test_same_result_at_end_of_file(stream: Pair) -> None:
    """A closed peer gives the same empty tuple."""
    stream[0].close()
    assert fdpass_c.recv_fds(stream[1], 10, 1) == socket.recv_fds(stream[1], 10, 1)
    assert fdpass_c.recv_fds(stream[1], 10, 1) == (b"", [], 0, None)


names = pytest.mark.parametrize(
    "name",
    [
        "sender",
        b"s\xff\xfe",
        "\N{SNOWMAN}",
        pytest.param(b"\0fdpass-test-sender", marks=linux_only),
        pytest.param(b"\0fdpass\0test\xff", marks=linux_only),
        pytest.param("", marks=linux_only),
    ],
    ids=["path", "undecodable", "unicode", "abstract", "abstract-bytes", "autobind"],
)


@names
def test_same_address_of_a_datagram(
    name: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int
) -> None:
    """A named sender is shown as the standard library shows it."""
    monkeypatch.chdir(tmp_path)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        sender.bind(name)
        receiver.bind("receiver")
        sender.connect("receiver")
        receive_both(lambda: socket.send_fds(sender, [b"data"], [file]), receiver, 100, 1)
        socket.send_fds(sender, [b"data"], [])
        assert fdpass_c.recv_fds(receiver, 10, 1)[3] == sender.getsockname()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_same_address_of_a_connection(
    kind: socket.SocketKind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: int,
) -> None:
    """A named server's messages carry the same address, on connections too."""
    monkeypatch.chdir(tmp_path)
    with (
        socket.socket(socket.AF_UNIX, kind) as server,
        socket.socket(socket.AF_UNIX, kind) as client,
    ):
        server.bind("server")
        server.listen()
        client.connect(server.getsockname())
        connection, _ = server.accept()
        with connection:
            receive_both(lambda: socket.send_fds(connection, [b"data"], [file]), client, 100, 1)


def test_longest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that fills the address to its last byte is shown whole."""
    monkeypatch.chdir(tmp_path)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind("receiver")
        sender.connect("receiver")
        sender.bind("p" * 104)
        receive_both(lambda: socket.send_fds(sender, [b"data"], []), receiver, 10, 1)


def test_buffers(seqpacket: Pair, file: int, keep: Keep) -> None:
    """Any bytes-like buffers leave in one message, one after the other."""
    kinds: list[Iterable[Any]] = [
        [],
        [b""],
        [b"one"],
        (b"one", b"two"),
        [bytearray(b"one"), memoryview(b"-two-"), array.array("B", b"three")],
        [array.array("i", [1, 2, 3])],
        [b"x" * 10_000, b"y" * 10_000],
    ]
    for buffers in kinds:
        whole = b"".join(bytes(memoryview(buffer)) for buffer in buffers)
        assert fdpass_c.send_fds(seqpacket[0], buffers, [file]) == len(whole)
        data, fds, _, _ = fdpass_c.recv_fds(seqpacket[1], 40_000, 1)
        keep(fds)
        assert data == whole
        assert len(fds) == 1


def test_generator_of_buffers(stream: Pair, file: int, keep: Keep) -> None:
    """Buffers may come from a generator."""
    fdpass_c.send_fds(stream[0], (word for word in (b"one", b"two")), [file])
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 10, 1)
    keep(fds)
    assert data == b"onetwo"


def test_kinds_of_descriptor_list(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """Whatever can be iterated over serves as the list of descriptors."""
    kinds: list[Callable[[list[int]], Iterable[int]]] = [
        list,
        tuple,
        iter,
        partial(array.array, "i"),
        lambda fds: (fd for fd in fds),
    ]
    files = make_files(3)
    for wrap, count in itertools.product(kinds, (0, 1, 3)):
        fdpass_c.send_fds(stream[0], [b"x"], wrap(files[:count]))
        fds = keep(fdpass_c.recv_fds(stream[1], 1, 10)[1])
        assert identities(fds) == identities(files[:count])


def test_objects_with_fileno(stream: Pair, tmp_path: Path, keep: Keep) -> None:
    """Files and sockets are sent as they are, alone and beside ints."""
    with open(tmp_path / "file", "wb") as file:
        fdpass_c.send_fds(stream[0], [b"x"], [file])
        fdpass_c.send_fds(stream[0], [b"x"], [file, stream[0], file.fileno()])
        alone = keep(fdpass_c.recv_fds(stream[1], 1, 3)[1])
        beside = keep(fdpass_c.recv_fds(stream[1], 1, 3)[1])
        assert identities(alone) == [identity(file.fileno())]
        wanted = [file.fileno(), stream[0].fileno(), file.fileno()]
        assert identities(beside) == identities(wanted)


def test_socket_by_descriptor(stream: Pair, file: int, keep: Keep) -> None:
    """The socket itself may be an int or an object that only has fileno()."""

    class Holder:
        def __init__(self, sock: socket.socket) -> None:
            self.fileno = sock.fileno

    forms: list[Callable[[socket.socket], Any]] = [socket.socket.fileno, Holder]
    for form in forms:
        left, right = map(form, stream)
        fdpass_c.send_fds(left, [b"x"], [file])
        fds = keep(fdpass_c.recv_fds(right, 1, 1)[1])
        assert identities(fds) == [identity(file)]


def test_send_honours_flags(stream: Pair, file: int) -> None:
    """MSG_DONTWAIT makes one send on a blocking socket non-blocking."""
    fill(stream[0])
    with pytest.raises(BlockingIOError):
        fdpass_c.send_fds(stream[0], [b"x"], [file], socket.MSG_DONTWAIT)


def test_receive_honours_flags(stream: Pair) -> None:
    """MSG_DONTWAIT makes one receive on a blocking socket non-blocking."""
    with pytest.raises(BlockingIOError):
        fdpass_c.recv_fds(stream[1], 1, 1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(
    "receive",
    [
        lambda sock, size: fdpass_c.recv_fds(sock, size, 1, socket.MSG_WAITALL)[0],
        lambda sock, size: fdpass_c.recv_many(sock, 10, size, 1, socket.MSG_WAITALL).payloads[0],
    ],
    ids=["recv_fds", "recv_many"],
)
def test_receive_waits_for_all(receive: Callable[..., bytes], stream: Pair) -> None:
    """With MSG_WAITALL a receive on a blocking socket waits for all that it has room for."""
    for size in (10, 10_000):
        half = b"x" * (size // 2)
        stream[0].sendall(half)
        with once_blocked(stream[1].fileno(), partial(stream[0].sendall, half)):
            assert receive(stream[1], size) == half * 2


def test_many_receives_wait_for_all(stream: Pair, file: int) -> None:
    """MSG_WAITALL does not keep recv_many from receiving as many messages as there are."""
    assert fdpass_c.send_many(stream[0], [b"xx"] * 150, [file] * 150) == 150
    with fdpass_c.recv_many(stream[1], 150, 2, flags=socket.MSG_WAITALL) as batch:
        assert batch.payloads == [b"xx"] * 150


@pytest.mark.parametrize(
    "address",
    ["receiver", b"receiver", pytest.param(b"\0fdpass-test-receiver", marks=linux_only)],
    ids=["str", "bytes", "abstract"],
)
def test_send_honours_address(
    address: str | bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_files: MakeFiles,
    keep: Keep,
) -> None:
    """An unconnected datagram socket reaches the address given."""
    monkeypatch.chdir(tmp_path)
    files = make_files(253)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(address)
        for count in (0, 1, 253):
            some = iter(files[:count])
            assert fdpass_c.send_fds(sender, [b"to", b"you"], some, 0, address) == 5
            data, fds, _, _ = fdpass_c.recv_fds(receiver, 100, 253)
            keep(fds)
            assert data == b"toyou"
            assert identities(fds) == identities(files[:count])


def test_address_of_another(datagram: Pair, tmp_path: Path, file: int, keep: Keep) -> None:
    """A connected datagram socket sends to the address given, and not to its peer."""
    address = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        assert fdpass_c.send_fds(datagram[0], [b"x"], [file], 0, address) == 1
        data, fds, _, _ = fdpass_c.recv_fds(receiver, 10, 1)
        keep(fds)
        assert (data, identities(fds)) == (b"x", identities([file]))
    assert_empty(datagram[1])


@pytest.mark.parametrize("as_int", [False, True])
def test_send_honours_flags_with_an_address(as_int: bool, tmp_path: Path) -> None:
    """MSG_DONTWAIT does not wait for a full receiver, and leaves a blocking sender as it is."""
    address = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(address)
        target = sender.fileno() if as_int else sender

        def send_for_ever() -> None:
            while True:
                fdpass_c.send_fds(target, [b"x"], [], socket.MSG_DONTWAIT, address)

        with pytest.raises(BlockingIOError):
            send_for_ever()
        assert os.get_blocking(sender.fileno())


def test_send_to_nobody(tmp_path: Path, file: int) -> None:
    """An address where nobody listens is a FileNotFoundError."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
        pytest.raises(FileNotFoundError),
    ):
        fdpass_c.send_fds(sender, [b"x"], [file], 0, str(tmp_path / "missing"))


def test_large_payload(stream: Pair, file: int, keep: Keep) -> None:
    """A payload larger than the socket's buffer passes whole on a blocking stream."""
    payload = os.urandom(1 << 20)
    sender = threading.Thread(target=fdpass_c.send_fds, args=(stream[0], [payload], [file]))
    sender.start()
    received = b""
    fds: list[int] = []
    while len(received) < len(payload):
        data, some, _, _ = fdpass_c.recv_fds(stream[1], 1 << 20, 1)
        received += data
        fds += keep(some)
    sender.join()
    assert received == payload
    assert identities(fds) == [identity(file)]
    assert_empty(stream[1])


def test_length_of_a_longer_datagram() -> None:
    """With MSG_TRUNC in flags nothing is returned that lies beyond bufsize."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.send(b"x" * 100)
        data, fds, flags, _ = fdpass_c.recv_fds(right, 10, 1, socket.MSG_TRUNC)
    assert (data, fds) == (b"x" * 10, [])
    assert flags & socket.MSG_TRUNC
