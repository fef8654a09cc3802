"""What the caller got wrong is a clear error, before anything is sent, received or lost."""

import asyncio
import errno
import itertools
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, aio
from support.descriptors import Keep, identities, identity
from support.messages import recv_one
from support.sockets import Pair, assert_empty

Operation = Callable[[Any], object]

senders = [
    pytest.param(lambda sock: fdpass_c.send_fds(sock, [b"x"], [0]), id="send_fds-one"),
    pytest.param(lambda sock: fdpass_c.send_fds(sock, [b"x"], [0, 0]), id="send_fds-two"),
    pytest.param(lambda sock: fdpass_c.send_fd(sock, 0), id="send_fd"),
]
receivers = [
    pytest.param(lambda sock: fdpass_c.recv_fds(sock, 1, 1), id="recv_fds"),
    pytest.param(fdpass_c.recv_fd, id="recv_fd"),
]
everyone = pytest.mark.parametrize(
    "operation",
    [
        *senders,
        *receivers,
        pytest.param(fdpass_c.peer_credentials, id="peer_credentials"),
        pytest.param(fdpass_c.peer_pidfd, id="peer_pidfd"),
    ],
)


@pytest.mark.thread_unsafe
@everyone
def test_closed_socket(operation: Operation, stream: Pair) -> None:
    """A closed socket, and an int that is no open descriptor, are EBADF."""
    fd = stream[0].fileno()
    stream[0].close()
    for closed in (stream[0], fd):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            operation(closed)
        assert caught.value.errno == errno.EBADF


@everyone
def test_regular_file(operation: Operation, file: int) -> None:
    """A descriptor that is no socket is ENOTSOCK."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        operation(file)
    assert caught.value.errno == errno.ENOTSOCK


@everyone
def test_not_a_socket_at_all(operation: Operation) -> None:
    """What has no descriptor is a TypeError."""
    for wrong in (None, "3", 3.0, b"3", object()):
        with pytest.raises(TypeError):
            operation(wrong)


@pytest.fixture
def tcp() -> Iterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            yield client, accepted


@pytest.fixture
def udp() -> Iterator[Pair]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as right,
    ):
        right.bind(("127.0.0.1", 0))
        left.connect(right.getsockname())
        yield left, right


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("send", senders)
def test_descriptors_over_the_network(send: Operation, tcp: Pair, udp: Pair) -> None:
    """A network socket is EAFNOSUPPORT, explained, and the payload is not sent without them."""
    for left, right in (tcp, udp):
        for target in (left, left.fileno()):
            with pytest.raises(OSError, match="Unix domain sockets only") as caught:
                send(target)
            assert caught.value.errno == errno.EAFNOSUPPORT
        assert_empty(right)


@pytest.mark.parametrize("send", senders)
def test_an_object_that_takes_it_for_a_network_socket(send: Operation, stream: Pair) -> None:
    """The descriptor decides, and not the family that the socket object was made with."""
    left, right = stream
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, os.dup(left.fileno())) as sock:
        send(sock)
        fdpass_c.send_many(sock, [b"x"], [0])
    for _ in range(2):
        assert recv_one(right)[1]


def test_bytes_over_the_network(tcp: Pair) -> None:
    """Without descriptors a network socket works as in the standard library."""
    assert fdpass_c.send_fds(tcp[0], [b"plain"], []) == 5
    assert fdpass_c.recv_fds(tcp[1], 10, 1)[:3] == (b"plain", [], 0)
    tcp[0].close()
    with pytest.raises(fdpass_c.PeerClosedError):
        fdpass_c.recv_fd(tcp[1])


def test_address_over_the_network(udp: Pair) -> None:
    """A network socket's sender is its family, and the rest of the address as bytes."""
    fdpass_c.send_fds(udp[0], [b"plain"], [])
    host, port = udp[0].getsockname()
    family, rest = fdpass_c.recv_fds(udp[1], 10, 1)[3]
    assert family == socket.AF_INET
    assert rest[:6] == port.to_bytes(2, "big") + socket.inet_aton(host)


@pytest.mark.thread_unsafe
def test_descriptor_that_is_not_open(stream: Pair, file: int) -> None:
    """An int that is no open descriptor among the descriptors is EBADF, and nothing is sent."""
    closed = os.open(os.devnull, os.O_RDONLY)
    os.close(closed)
    for fds in ([closed], [file, closed], [-1], [file, -1], [2**31 - 1], [file] * 40 + [-1]):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fdpass_c.send_fds(stream[0], [b"x"], fds)
        assert caught.value.errno == errno.EBADF
    assert_empty(stream[1])


closed_sends = [
    pytest.param(lambda end, fds: fdpass_c.send_fds(end.fileno(), [b"x"], fds), id="bytes"),
    pytest.param(lambda end, fds: fdpass_c.send_fds(end.fileno(), [bytearray(9)], fds), id="array"),
    pytest.param(
        lambda end, fds: fdpass_c.send_fds(end.fileno(), [mmap.mmap(-1, 9)], fds), id="mapping"
    ),
    pytest.param(
        lambda end, fds: fdpass_c.send_many(end.fileno(), [b"x"] * len(fds), fds), id="many"
    ),
    pytest.param(lambda end, fds: fdpass_c.send_many(end.fileno(), [b"x"], [fds]), id="lists"),
    pytest.param(lambda end, fds: end.send(b"x", fds), id="Channel.send"),
    pytest.param(lambda end, fds: end.send_many([b"x"], [fds]), id="Channel.send_many"),
]


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("send", closed_sends)
def test_which_descriptor_is_not_open(
    send: Callable[[Channel, list[int]], object], stream: Pair, file: int
) -> None:
    """The error of a send says which descriptor is not open."""
    closed = os.open(os.devnull, os.O_RDONLY)
    os.close(closed)
    with Channel(stream[0]) as end:
        for fds in ([closed], [-1], [file, closed]):
            with pytest.raises(OSError, match=rf": {fds[-1]} in fds is not open$") as caught:
                send(end, fds)
            assert caught.value.errno == errno.EBADF


@pytest.mark.thread_unsafe
def test_closed_object_as_descriptor(stream: Pair, tmp_path: Path) -> None:
    """A closed socket is EBADF, a closed file the ValueError of its own fileno()."""
    with open(tmp_path / "file", "wb") as file, socket.socket() as sock:
        pass
    with pytest.raises(OSError) as caught:  # noqa: PT011
        fdpass_c.send_fds(stream[0], [b"x"], [sock])
    assert caught.value.errno == errno.EBADF
    with pytest.raises(ValueError, match="closed file"):
        fdpass_c.send_fds(stream[0], [b"x"], [file])
    assert_empty(stream[1])


class WrongFileno:
    def fileno(self) -> str:
        return "3"


def test_wrong_element(stream: Pair, file: int) -> None:
    """A wrong element is a TypeError that names its position, and nothing is sent."""
    wrong: Any
    for count, position in ((3, 0), (3, 2), (40, 39)):
        for wrong in (None, "3", 3.0, b"3", [0], WrongFileno()):
            fds = [file] * count
            fds[position] = wrong
            with pytest.raises(TypeError, match=rf"fds\[{position}\]"):
                fdpass_c.send_fds(stream[0], [b"x"], fds)
    assert_empty(stream[1])


def test_wrong_single_element(stream: Pair) -> None:
    """The only element being wrong is the same TypeError, for send_fd too."""
    with pytest.raises(TypeError, match=r"fds\[0\]"):
        fdpass_c.send_fds(stream[0], [b"x"], [None])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"fds\[0\]"):
        fdpass_c.send_fd(stream[0], "3")  # type: ignore[arg-type]
    assert_empty(stream[1])


def test_number_too_large_for_a_descriptor(stream: Pair, file: int) -> None:
    """An int that no C int holds is an OverflowError, as in the standard library."""
    for number in (2**31, -(2**31) - 1, 2**64):
        for fds in ([number], [file, number], [file] * 40 + [number]):
            with pytest.raises(OverflowError):
                socket.send_fds(stream[0], [b"x"], fds)
            with pytest.raises(OverflowError):
                fdpass_c.send_fds(stream[0], [b"x"], fds)
    assert_empty(stream[1])


def test_wrong_buffers(stream: Pair, file: int) -> None:
    """Buffers that are not bytes-like are a TypeError, and nothing is sent."""
    buffers: Any
    for buffers in ("text", [1], ["text"], b"bytes", None, 3, [None]):
        with pytest.raises(TypeError):
            fdpass_c.send_fds(stream[0], buffers, [file])
    assert_empty(stream[1])


def _released() -> memoryview:
    view = memoryview(b"abcd")
    view.release()
    return view


NOT_BYTES_LIKE: list[tuple[Any, str]] = [
    ("text", r"encode\(\) makes bytes of a str"),
    (b"bytes"[0], "it is an int, as the items of bytes are"),
    (memoryview(b"abcd")[::2], "not C-contiguous"),
    (_released(), "released memoryview"),
]


def test_buffer_that_is_not_bytes_like() -> None:
    """The TypeError of writev and broadcast says which buffer is wrong, and why."""
    places = [(0, 1, b"x"), (2, 3, b"x"), (2, 3, b""), (1023, 1024, b"x"), (2000, 3000, b"x")]
    with open(os.devnull, "wb", buffering=0) as target:
        for (wrong, reason), (position, count, first) in itertools.product(NOT_BYTES_LIKE, places):
            buffers: list[Any] = [first] * count
            buffers[position] = wrong
            text = rf"^buffers\[{position}\] is not bytes-like: .*{reason}"
            with pytest.raises(TypeError, match=text):
                fdpass_c.broadcast([target], buffers)
            for fd in (target, target.fileno()):
                with pytest.raises(TypeError, match=text):
                    fdpass_c.writev(fd, buffers)
                with pytest.raises(TypeError, match=text):
                    fdpass_c.writev(fd, iter(buffers))


@pytest.mark.parametrize("function", ["send_fds", "send_fd", "send_many"])
def test_payload_of_a_coroutine_function(function: str, stream: Pair, file: int) -> None:
    """The functions for event loops say the same of it."""
    stream[0].setblocking(False)
    for wrong, reason in NOT_BYTES_LIKE:
        arguments = (file, wrong) if function == "send_fd" else ([wrong], [file])
        with pytest.raises(TypeError, match=rf"\[0\] is not bytes-like: .*{reason}"):
            asyncio.run(getattr(aio, function)(stream[0], *arguments))
    assert_empty(stream[1])


@pytest.mark.parametrize(("wrong", "reason"), NOT_BYTES_LIKE)
def test_payload_that_is_not_bytes_like(wrong: Any, reason: str, stream: Pair, file: int) -> None:
    """The TypeError for a payload says which one is wrong and why, and nothing is sent."""
    ours, theirs = fdpass_c.Channel.pair()
    with ours, theirs:
        with pytest.raises(TypeError, match=rf"buffers\[1\] is not bytes-like: .*{reason}"):
            fdpass_c.send_fds(stream[0], [b"x", wrong], [file])
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as alone,
            pytest.raises(TypeError, match=rf"buffers\[1\] is not bytes-like: .*{reason}"),
        ):
            fdpass_c.send_fds(alone, [b"x", wrong], [file], 0, "/no/such/socket")
        with pytest.raises(TypeError, match=rf"payloads\[1\] is not bytes-like: .*{reason}"):
            fdpass_c.send_many(stream[0], [b"x", wrong], [file, file])
        with pytest.raises(TypeError, match=rf"payloads\[1\] is not bytes-like: .*{reason}"):
            ours.send_many([b"x", wrong])
        with pytest.raises(TypeError, match=rf"payload is not bytes-like: .*{reason}"):
            ours.send(wrong)
        with pytest.raises(TypeError, match=rf"data is not bytes-like: .*{reason}"):
            fdpass_c.send_fd(stream[0], file, wrong)
        assert_empty(stream[1])
        theirs.settimeout(0)
        with pytest.raises(BlockingIOError):
            theirs.recv()


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda sock, fds: fdpass_c.send_fds(sock, [b"x"], fds), id="send_fds"),
        pytest.param(lambda sock, fds: fdpass_c.send_many(sock, [b"x"], fds), id="send_many"),
        pytest.param(lambda _, fds: fdpass_c.broadcast(fds, [b"x"]), id="broadcast"),
        pytest.param(lambda _, fds: fdpass_c.close_fds(fds), id="close_fds"),
        pytest.param(lambda _, fds: fdpass_c.Descriptors(fds), id="Descriptors"),
    ],
)
def test_one_descriptor_without_a_list(
    use: Callable[[Any, Any], object], stream: Pair, tmp_path: Path
) -> None:
    """One descriptor where a list belongs is a TypeError that says so. Nothing is read from it,
    sent or closed: a file at its end would be a list of nothing, and bytes one of small ints."""
    ours, theirs = fdpass_c.Channel.pair()
    with ours, theirs, open(tmp_path / "empty", "w+b") as file:
        ours.send(b"unread")
        wrong: Any
        for wrong in (None, 0, "0", b"\0", stream[0], file, theirs):
            with pytest.raises(TypeError, match="pass a list, even for one descriptor"):
                use(stream[0], wrong)
            with pytest.raises(TypeError, match="pass a list, even for one descriptor"):
                ours.send(b"x", wrong)
            with pytest.raises(TypeError, match="pass a list, even for one descriptor"):
                ours.send_many([b"x"], wrong)
        assert theirs.recv()[0] == b"unread"
        theirs.settimeout(0)
        with pytest.raises(BlockingIOError):
            theirs.recv()
    assert_empty(stream[1])


def test_bytes_for_the_descriptors_of_one_message(stream: Pair) -> None:
    """Bytes as one of the iterables of a batch are a TypeError, not its descriptors 0 and so on."""
    ours, theirs = fdpass_c.Channel.pair()
    with ours, theirs, pytest.raises(TypeError, match="pass a list"):
        ours.send_many([b"x"], [b"\0"])
    with pytest.raises(TypeError, match="pass a list"):
        fdpass_c.send_many(stream[0], [b"x"], [b"\0"])
    assert_empty(stream[1])


def test_failing_iterator(stream: Pair, file: int) -> None:
    """An exception out of the iterator of descriptors comes through, and nothing is sent."""

    def generate() -> Iterator[int]:
        yield file
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fdpass_c.send_fds(stream[0], [b"x"], generate())
    assert_empty(stream[1])


def test_negative_sizes(stream: Pair, file: int, keep: Keep) -> None:
    """A negative size is a ValueError, and the message stays."""
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    for bufsize, maxfds in ((-1, 1), (1, -1), (-1, -1), (-(2**70), 1)):
        with pytest.raises(ValueError, match="negative"):
            fdpass_c.recv_fds(stream[1], bufsize, maxfds)
        if maxfds == 1:
            with pytest.raises(ValueError, match="negative"):
                fdpass_c.recv_fd(stream[1], bufsize)
    fds = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    assert identities(fds) == [identity(file)]


def test_wrong_sizes(stream: Pair, file: int, keep: Keep) -> None:
    """A size that is no int is a TypeError, and the message stays."""
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    wrong: Any
    for wrong in (None, "1", 1.5):
        for arguments in ((wrong, 1), (1, wrong), (1, 1, wrong)):
            with pytest.raises(TypeError):
                fdpass_c.recv_fds(stream[1], *arguments)
    fds = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    assert identities(fds) == [identity(file)]


@pytest.mark.parametrize("bufsize", [2**62, 2**70])
def test_absurd_bufsize(bufsize: int, stream: Pair, file: int, keep: Keep) -> None:
    """A bufsize that cannot be had is a MemoryError or OverflowError, and the message stays."""
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    with pytest.raises((MemoryError, OverflowError)):
        fdpass_c.recv_fds(stream[1], bufsize, 1)
    fds = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    assert identities(fds) == [identity(file)]


def test_missing_peer(file: int) -> None:
    """A stream socket that was never connected is ENOTCONN to send, EINVAL to receive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fdpass_c.send_fds(sock, [b"x"], [file])
        assert caught.value.errno == errno.ENOTCONN
        with pytest.raises(OSError) as reference:  # noqa: PT011
            socket.recv_fds(sock, 1, 1)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fdpass_c.recv_fds(sock, 1, 1)
        assert caught.value.errno == reference.value.errno


def test_closed_peer(stream: Pair, file: int) -> None:
    """A peer that closed is a BrokenPipeError for the sender, and no signal."""
    stream[1].close()
    with pytest.raises(BrokenPipeError):
        fdpass_c.send_fds(stream[0], [b"x"], [file])
