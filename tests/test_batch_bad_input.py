"""Whatever is wrong anywhere in a batch is found before anything is sent."""

import errno
import os
import socket
from functools import partial
from itertools import product
from typing import Any

import pytest

import fdpass_c
from support.channels import channels
from support.messages import progress_of
from support.sockets import Pair, assert_empty


def put(position: int, wrong: Any, right: Any) -> list[Any]:
    """A hundred elements, of which one is wrong."""
    return [right] * position + [wrong] + [right] * (99 - position)


class Liar:
    def fileno(self) -> Any:
        return "not a number"


POSITIONS = [0, 99]


def test_payload(stream: Pair) -> None:
    """A payload without a buffer is a TypeError."""
    wrong: Any
    for position, wrong in product(POSITIONS, ("text", None, 1, 1.5, object(), [b"x"])):
        with pytest.raises(TypeError, match=r"bytes-like|expected bytes"):
            fdpass_c.send_many(stream[0], put(position, wrong, b"x"), [0] * 100)
    assert_empty(stream[1])


def test_descriptor(stream: Pair) -> None:
    """What is no descriptor, among descriptors, is a TypeError that says where it stands."""
    wrong: Any
    for position, wrong in product(POSITIONS, ("text", None, 1.5, object(), [0], b"x", Liar())):
        kind = "str" if isinstance(wrong, Liar) else type(wrong).__name__
        with pytest.raises(TypeError, match=rf"fds\[{position}\].*{kind}"):
            fdpass_c.send_many(stream[0], [b"x"] * 100, put(position, wrong, 0))
    for position in POSITIONS:
        with pytest.raises(OverflowError):
            fdpass_c.send_many(stream[0], [b"x"] * 100, put(position, 2**40, 0))
    assert_empty(stream[1])


def test_row(stream: Pair) -> None:
    """A wrong row among rows of descriptors, or a wrong element in one, is a TypeError."""
    wrong: Any
    for position, wrong in product(POSITIONS, ([1.5], [0, None], ["text"], [[0]], None, 1.5, 0)):
        with pytest.raises(TypeError):
            fdpass_c.send_many(stream[0], [b"x"] * 100, put(position, wrong, [0]))
    assert_empty(stream[1])


@pytest.mark.parametrize("rows", [False, True])
def test_unequal_lengths(rows: bool, stream: Pair) -> None:
    """Payloads and descriptors of unequal number are a ValueError that gives both."""
    for payloads, described in ((0, 1), (1, 0), (64, 65), (65, 64)):
        fds = [[0, 0]] * described if rows else [0] * described
        with pytest.raises(ValueError, match=rf"{payloads} payloads.*descriptors for {described}"):
            fdpass_c.send_many(stream[0], [b"x"] * payloads, fds)
    assert_empty(stream[1])


def test_too_many_descriptors(stream: Pair) -> None:
    """254 descriptors in one row are EINVAL, and the text names the limit."""
    for position in POSITIONS:
        with pytest.raises(OSError, match=r"254 descriptors.*at most 253") as caught:
            fdpass_c.send_many(stream[0], [b"x"] * 100, put(position, [0] * 254, [0]))
        assert caught.value.errno == errno.EINVAL
        assert caught.value.progress == (0, 0)  # type: ignore[attr-defined]
    assert_empty(stream[1])


@pytest.mark.parametrize("rows", [False, True])
def test_empty_payload_on_a_stream(rows: bool, stream: Pair) -> None:
    """A descriptor with no byte to travel with is a ValueError that says where it stands."""
    fds = [[0]] * 100 if rows else [0] * 100
    for position in POSITIONS:
        with pytest.raises(ValueError, match=rf"payloads\[{position}\] is empty"):
            fdpass_c.send_many(stream[0], put(position, b"", b"some"), fds)
    assert_empty(stream[1])


@pytest.mark.parametrize("rows", [False, True])
def test_another_family(rows: bool) -> None:
    """A socket of another family, which would drop the descriptors, is EAFNOSUPPORT."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as left,
        server.accept()[0] as right,
    ):
        with pytest.raises(OSError, match="Unix domain sockets only") as caught:
            fdpass_c.send_many(left, [b"x"] * 3, [[0]] * 3 if rows else [0] * 3)
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert progress_of(caught.value) == (0, 0)
        assert_empty(right)


def test_no_socket(file: int) -> None:
    """A file is no socket: ENOTSOCK from both."""
    for call in (
        lambda: fdpass_c.send_many(file, [b"x"], [0]),
        lambda: fdpass_c.recv_many(file),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.ENOTSOCK)):
            call()


def test_no_descriptor_at_all() -> None:
    """What has no fileno() is a TypeError from both."""
    wrong: Any
    for wrong in (None, "text", 1.5):
        with pytest.raises(TypeError, match="fileno"):
            fdpass_c.send_many(wrong, [b"x"], [0])
        with pytest.raises(TypeError, match="fileno"):
            fdpass_c.recv_many(wrong)


def test_names_what_is_wrong_in_a_row(stream: Pair, file: int) -> None:
    """Where each message has a list of descriptors, the text says whose is wrong."""
    row: Any
    with channels() as (sender, _):
        for send in (sender.send_many, partial(fdpass_c.send_many, stream[0])):
            for row, what in (
                ([file, "x"], r"fds\[1\]\[1\]: a descriptor is an int"),
                (None, r"fds\[1\] is of type NoneType: pass a list"),
                ("x", r"fds\[1\] is of type str: pass a list"),
            ):
                with pytest.raises(TypeError, match=what):
                    send([b"x", b"x"], [[file], row])
        for fds, place in ((["x"], 0), ([file, "x"], 1)):
            with pytest.raises(TypeError, match=rf"^fds\[{place}\]: a descriptor"):
                sender.send(b"x", fds)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"max_messages": 0}, {"bufsize": 0}, {"maxfds": -1}])
def test_sizes(options: dict[str, int], stream: Pair) -> None:
    """A size that receives nothing is a ValueError, and nothing is received."""
    stream[0].send(b"x")
    with pytest.raises(ValueError, match="at least 1"):
        fdpass_c.recv_many(stream[1], **options)
    assert stream[1].recv(2) == b"x"
