"""What send_many sends and recv_many receives are ordinary messages, exactly as they were sent."""

import array
import ctypes
import mmap
import os
import pickle
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Descriptors
from fdpass_c.waiting import HasFileno
from support.descriptors import MakeFiles, identities, identity
from support.messages import (
    Message,
    assert_stream,
    described,
    recv_each,
    recv_one,
    recv_until_closed,
    take_batch,
)
from support.processes import fork
from support.sockets import Pair
from support.tables import many_allowed
from support.threads import beside

COUNTS = [0, 1, 63, 64, 65, 1025]


class Holder:
    """An object with fileno() and nothing else."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


def recv_counted(sock: socket.socket, count: int, **options: Any) -> list[Message]:
    """That many messages by recv_many, never more at once than a descriptor table of 1024 holds."""
    most = max(1, 500 // options.get("maxfds", 1))
    messages: list[Message] = []
    while len(messages) < count:
        messages += take_batch(
            fdpass_c.recv_many(sock, min(count - len(messages), most), **options)
        )
    return messages


def numbered(count: int, files: list[int]) -> tuple[list[bytes], list[int]]:
    """Payloads and descriptors of which no two neighbours are the same."""
    return [b"message %d" % k for k in range(count)], [files[k % len(files)] for k in range(count)]


def test_to_the_standard_library(pair: Pair, make_files: MakeFiles) -> None:
    """socket.recv_fds gets exactly payload k and descriptor k with message k."""
    files = make_files(7)
    for count in COUNTS:
        payloads, fds = numbered(count, files)
        with beside(partial(recv_each, pair[1], count), pair[1]) as received:
            assert fdpass_c.send_many(pair[0], payloads, fds) == count
        assert received == [described(payloads, [[fd] for fd in fds])]


def test_from_the_standard_library(pair: Pair, make_files: MakeFiles) -> None:
    """recv_many gets exactly payload k and descriptor k of what socket.send_fds sent."""
    files = make_files(7)
    for count in COUNTS:
        payloads, fds = numbered(count, files)
        with beside(partial(recv_counted, pair[1], count), pair[1]) as received:
            for payload, fd in zip(payloads, fds, strict=True):
                socket.send_fds(pair[0], [payload], [fd])
        assert received == [described(payloads, [[fd] for fd in fds])]


def test_both_ends(stream: Pair, make_files: MakeFiles) -> None:
    """What send_many sends, recv_many receives, however long the batch."""
    payloads, fds = numbered(5000, make_files(7))
    with beside(lambda: recv_counted(stream[1], 5000), stream[1]) as received:
        assert fdpass_c.send_many(stream[0], payloads, fds) == 5000
    assert received == [described(payloads, [[fd] for fd in fds])]


@pytest.mark.thread_unsafe
def test_between_processes(stream: Pair, make_files: MakeFiles) -> None:
    """Batches from another process arrive whole, up to the end of file."""
    left, right = stream
    payloads, fds = numbered(1000, make_files(7))
    pid = fork()
    if pid == 0:
        try:
            right.close()
            fdpass_c.send_many(left, payloads, fds)
            os._exit(0)
        finally:
            os._exit(1)
    left.close()
    received: list[Message] = []
    while batch := fdpass_c.recv_many(right, 300):
        received += take_batch(batch)
    assert os.waitpid(pid, 0)[1] == 0
    assert received == described(payloads, [[fd] for fd in fds])


NUMBERS = [1, 253, 2, 3, 17, 252]


@pytest.mark.thread_unsafe
def test_lists_to_the_standard_library(stream: Pair, make_files: MakeFiles) -> None:
    """Every message carries its own list of 1 to 253 descriptors, in order."""
    files = make_files(253)
    rows = [files[-number:] for number in NUMBERS * 20]
    payloads = [b"%d" % k for k in range(len(rows))]
    with (
        many_allowed(20_000),
        beside(lambda: recv_each(stream[1], len(rows)), stream[1]) as received,
    ):
        assert fdpass_c.send_many(stream[0], payloads, rows) == len(rows)
    assert received == [described(payloads, rows)]


@pytest.mark.thread_unsafe
def test_lists_from_the_standard_library(seqpacket: Pair, make_files: MakeFiles) -> None:
    """recv_many tells whose descriptors are whose."""
    files = make_files(253)
    rows = [files[-number:] for number in NUMBERS * 20]
    payloads = [b"%d" % k for k in range(len(rows))]
    with (
        many_allowed(20_000),
        beside(lambda: recv_counted(seqpacket[1], len(rows), maxfds=253), seqpacket[1]) as received,
    ):
        for payload, row in zip(payloads, rows, strict=True):
            socket.send_fds(seqpacket[0], [payload], row)
    assert received == [described(payloads, rows)]


def test_packets_without_descriptors(seqpacket: Pair, make_files: MakeFiles) -> None:
    """Between others, a message may carry none, and no byte either."""
    files = make_files(3)
    payloads = [b"none", b"", b"two", b"", b"none", b"one"]
    rows = [[], files[:1], files[1:], [], [], files[:1]]
    assert fdpass_c.send_many(seqpacket[0], payloads, rows) == 6
    assert recv_each(seqpacket[1], 6) == described(payloads, rows)
    assert fdpass_c.send_many(seqpacket[0], payloads, rows) == 6
    assert take_batch(fdpass_c.recv_many(seqpacket[1], maxfds=2)) == described(payloads, rows)


def test_empty_datagrams(datagram: Pair, file: int) -> None:
    """On a datagram socket an empty message is a message, also the first and the last one."""
    payloads = [b"", b"x", b""]
    rows: list[list[int]] = [[], [file], []]
    fdpass_c.send_many(datagram[0], payloads, rows)
    assert take_batch(fdpass_c.recv_many(datagram[1])) == described(payloads, rows)


def test_bytes_without_descriptors_on_a_stream(stream: Pair, file: int) -> None:
    """Messages without descriptors, empty ones among them, are bytes of the stream."""
    fdpass_c.send_many(stream[0], [b"ab", b"", b"cd", b"ef"], [[], [], [file], []])
    stream[0].close()
    messages = recv_until_closed(stream[1])
    assert b"".join(payload for payload, _ in messages) == b"abcdef"
    assert [fd for _, fds in messages for fd in fds] == [identity(file)]


@pytest.mark.parametrize(
    ("receiver", "kind"),
    [("recv_fds", "stream"), ("recv_many", "stream"), ("recv_many", "seqpacket")],
)
def test_payloads_of_mixed_sizes(
    receiver: str, kind: str, stream: Pair, seqpacket: Pair, make_files: MakeFiles
) -> None:
    """Payloads of one byte and of nearly all that the socket takes arrive whole and in order."""
    pair = stream if kind == "stream" else seqpacket
    sizes = [1, 7, 4095, 4096, 4097, 100_000, 2, 65_537] * 4
    payloads = [bytes([k]) * size for k, size in enumerate(sizes)]
    fds = numbered(len(sizes), make_files(7))[1]
    wanted = sum(sizes)

    def receive() -> list[Message]:
        pieces: list[Message] = []
        while sum(len(payload) for payload, _ in pieces) < wanted:
            if receiver == "recv_fds":
                pieces.append(recv_one(pair[1]))
            else:
                pieces += take_batch(fdpass_c.recv_many(pair[1], bufsize=200_000))
        return pieces

    with beside(receive, pair[1]) as received:
        assert fdpass_c.send_many(pair[0], payloads, fds) == len(sizes)
    expected = described(payloads, [[fd] for fd in fds])
    if pair[0].type == socket.SOCK_STREAM:
        assert_stream(received[0], expected)
    else:
        assert received == [expected]


def test_payload_beyond_the_socket_buffer(stream: Pair, make_files: MakeFiles) -> None:
    """Payloads of many times what the stream buffers take their descriptor along exactly once."""
    fds = make_files(3)
    payloads = [bytes([k]) * (5 << 20) for k in range(3)]
    with beside(lambda: recv_until_closed(stream[1]), stream[1]) as received:
        assert fdpass_c.send_many(stream[0], payloads, fds) == 3
        stream[0].shutdown(socket.SHUT_WR)
    assert_stream(received[0], described(payloads, [[fd] for fd in fds]))


def test_objects_with_fileno(stream: Pair, file: int) -> None:
    """Sockets, files and any other objects go beside ints, one a message or many."""
    objects: list[int | HasFileno] = [stream[0], file, Holder(file)]
    wanted = identities([stream[0].fileno(), file, file])
    fdpass_c.send_many(stream[0], [b"a", b"b", b"c"], objects)
    assert [fds for _, fds in recv_each(stream[1], 3)] == [[one] for one in wanted]
    fdpass_c.send_many(stream[0].fileno(), [b"a", b"b"], [objects, objects[::-1]])
    assert [fds for _, fds in recv_each(stream[1], 2)] == [wanted, wanted[::-1]]


def test_rows_may_be_any_iterable(stream: Pair, file: int) -> None:
    """The descriptors of a message may stand in whatever can be iterated."""
    kinds: list[Callable[[Any], Any]] = [list, tuple, iter, frozenset, partial(array.array, "i")]
    for kind in kinds:
        fdpass_c.send_many(stream[0], [b"a", b"b"], [kind([file]), kind([file])])
        assert recv_each(stream[1], 2) == [(b"a", [identity(file)]), (b"b", [identity(file)])]


def test_rows_may_be_owners(stream: Pair, make_files: MakeFiles) -> None:
    """Descriptors received earlier are passed on as the row of a message, whatever their number."""
    files = make_files(3)
    socket.send_fds(stream[0], [b"x"], files)
    with Descriptors(socket.recv_fds(stream[1], 1, 3)[1]) as received:
        fdpass_c.send_many(stream[0], [b"a", b"b"], [received, received])
        fdpass_c.send_many(stream[0], [b"c", b"d", b"e"], received)
    assert recv_each(stream[1], 5) == [
        (b"a", identities(files)),
        (b"b", identities(files)),
        (b"c", identities(files[:1])),
        (b"d", identities(files[1:2])),
        (b"e", identities(files[2:])),
    ]


def test_passing_a_batch_on(stream: Pair, make_files: MakeFiles) -> None:
    """A received batch is sent again as it came."""
    payloads, fds = numbered(5, make_files(7))
    fdpass_c.send_many(stream[0], payloads, fds)
    with fdpass_c.recv_many(stream[1]) as batch:
        fdpass_c.send_many(stream[1], batch.payloads, batch.fds)
    assert recv_each(stream[0], 5) == described(payloads, [[fd] for fd in fds])


def make_map() -> mmap.mmap:
    mapped = mmap.mmap(-1, mmap.PAGESIZE)
    mapped[:3] = b"map"
    return mapped


def test_payloads_of_any_buffer_type(seqpacket: Pair, file: int) -> None:
    """A payload is anything with a buffer; items wider than a byte count with all their bytes."""
    mapped = make_map()
    payloads: list[Any] = [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview")[2:],
        array.array("i", [1, 2, 3]),
        memoryview(array.array("d", [1.5, 2.5])),
        (ctypes.c_int * 2)(4, 5),
        ctypes.c_int(7),
        pickle.PickleBuffer(b"pickled"),
        mapped,
    ]
    fdpass_c.send_many(seqpacket[0], payloads, [file] * len(payloads))
    assert recv_each(seqpacket[1], len(payloads)) == [
        (b"".join([payload]), [identity(file)]) for payload in payloads
    ]
    mapped.close()


def test_every_type_of_buffer_alone(seqpacket: Pair, file: int) -> None:
    """A payload without a length of its own is counted by its bytes."""
    payload: Any
    for payload in (pickle.PickleBuffer(b"pickled"), ctypes.c_int(7)):
        fdpass_c.send_many(seqpacket[0], [payload], [file])
        assert recv_one(seqpacket[1])[0] == bytes(payload)


def test_sending_borrows(stream: Pair, make_files: MakeFiles) -> None:
    """The sender's descriptors are open afterwards as before."""
    files = make_files(5)
    before = identities(files)
    fdpass_c.send_many(stream[0], [b"x"] * 5, files)
    fdpass_c.send_many(stream[0], [b"x"] * 5, [files] * 5)
    assert identities(files) == before
