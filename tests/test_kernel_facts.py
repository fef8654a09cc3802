"""What Linux does with descriptors, and what this package makes of it.

A test here fails when a kernel changes a fact that the code relies on.
"""

import array
import socket
import sys

import pytest

import fdpass_c
from support.descriptors import Keep, MakeFiles, identities, identity
from support.sockets import Pair, assert_empty

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="facts of Linux")

RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
CTRUNC = socket.MSG_CTRUNC


def rights_in(control: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for *kind, data in control:
        assert tuple(kind) == RIGHTS
        fds.frombytes(data)
    return fds.tolist()


def test_empty_message_on_a_stream_loses_descriptors(stream: Pair, file: int) -> None:
    """The kernel answers 0 and drops them in silence."""
    assert stream[0].sendmsg([b""], [(*RIGHTS, array.array("i", [file]))]) == 0
    assert_empty(stream[1])


def test_empty_message_on_a_stream_is_refused(stream: Pair, file: int, keep: Keep) -> None:
    """send_fds raises ValueError instead, and the connection goes on as if nothing was."""
    buffers: list[bytes]
    for buffers in ([], [b""], [b"", b""]):
        for count in (1, 2, 253):
            with pytest.raises(ValueError, match="at least one byte"):
                fdpass_c.send_fds(stream[0], buffers, [file] * count)
    fdpass_c.send_fds(stream[0], [b"next"], [file])
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 100, 253)
    keep(fds)
    assert data == b"next"
    assert identities(fds) == [identity(file)]


def test_empty_payload_is_refused_by_send_fd(stream: Pair, file: int) -> None:
    """send_fd with empty data on a stream is the same ValueError."""
    with pytest.raises(ValueError, match="at least one byte"):
        fdpass_c.send_fd(stream[0], file, b"")
    assert_empty(stream[1])


def test_empty_message_without_descriptors(stream: Pair) -> None:
    """Nothing to send is nothing to refuse."""
    assert fdpass_c.send_fds(stream[0], [], []) == 0
    assert_empty(stream[1])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("kind", ["seqpacket", "datagram"])
def test_empty_packet_delivers_descriptors(
    kind: str, request: pytest.FixtureRequest, file: int
) -> None:
    """Where messages have boundaries, an empty one arrives with its descriptor."""
    left, right = request.getfixturevalue(kind)
    fdpass_c.send_fd(left, file, b"")
    data, fds = fdpass_c.recv_fd(right)
    with fds:
        assert data == b""
        assert identity(fds[0]) == identity(file)


def test_end_of_file_on_seqpacket(seqpacket: Pair) -> None:
    """End of file is an empty result without descriptors, and for recv_fd a closed peer."""
    seqpacket[0].close()
    assert fdpass_c.recv_fds(seqpacket[1], 10, 1) == (b"", [], 0, None)
    with pytest.raises(fdpass_c.PeerClosedError):
        fdpass_c.recv_fd(seqpacket[1])


def test_blocks_of_rights_are_merged(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """Several SCM_RIGHTS blocks in one message arrive as one, in order."""
    files = make_files(3)
    blocks = [(*RIGHTS, array.array("i", part)) for part in (files[:1], files[1:])]
    stream[0].sendmsg([b"x"], blocks)
    fds = keep(fdpass_c.recv_fds(stream[1], 1, 3)[1])
    assert identities(fds) == identities(files)


def test_blocks_of_rights_share_the_cap(stream: Pair, file: int) -> None:
    """253 is the most for all blocks of a message together."""
    blocks = [(*RIGHTS, array.array("i", [file] * count)) for count in (200, 54)]
    with pytest.raises(OSError, match=r"[Ii]nvalid|[Tt]oo many"):
        stream[0].sendmsg([b"x"], blocks)


def test_descriptors_leave_with_the_first_byte(stream: Pair, file: int, keep: Keep) -> None:
    """After a short write the descriptors are with the receiver already, with its first byte."""
    stream[0].setblocking(False)
    payload = bytes(1 << 22)
    sent = fdpass_c.send_fds(stream[0], [payload], [file])
    assert 0 < sent < len(payload)
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 1, 1)
    keep(fds)
    assert len(data) == 1
    assert identities(fds) == [identity(file)]
    received = 1
    while received < sent:
        data, fds, flags, _ = fdpass_c.recv_fds(stream[1], 1 << 20, 1)
        assert fds == []
        assert flags == 0
        received += len(data)
    assert_empty(stream[1])


@pytest.mark.parametrize("count", [1024, 1025])
def test_more_buffers_than_a_system_call_takes(
    count: int, stream: Pair, file: int, keep: Keep
) -> None:
    """sendmsg refuses more than 1024 buffers; send_fds joins them."""
    buffers = [b"x"] * count
    if count > 1024:
        with pytest.raises(OSError, match="too long"):
            stream[0].sendmsg(buffers)
    assert fdpass_c.send_fds(stream[0], buffers, [file]) == count
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 10_000, 1)
    keep(fds)
    assert len(data) == count


def test_padding_takes_a_second_descriptor(stream: Pair, file: int, keep: Keep) -> None:
    """CMSG_SPACE(sizeof int) takes two where the padding has room; maxfds=1 takes one."""
    space = socket.CMSG_SPACE(4)
    fitting = (space - socket.CMSG_LEN(0)) // 4
    for _ in range(2):
        fdpass_c.send_fds(stream[0], [b"x"], [file, file])
    assert len(keep(rights_in(stream[1].recvmsg(1, space)[1]))) == min(fitting, 2)
    _, fds, flags, _ = fdpass_c.recv_fds(stream[1], 1, 1)
    assert len(keep(fds)) == 1
    assert flags & CTRUNC


def test_merging_on_a_stream(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """Plain bytes come with the first descriptors after them; two lots never come at once."""
    first, second = make_files(2)
    fdpass_c.send_fds(stream[0], [b"plain"], [])
    fdpass_c.send_fds(stream[0], [b"first"], [first])
    fdpass_c.send_fds(stream[0], [b"second"], [second])
    received = [fdpass_c.recv_fds(stream[1], 100, 10)[:2] for _ in range(2)]
    assert [data for data, _ in received] == [b"plainfirst", b"second"]
    assert [identities(keep(fds)) for _, fds in received] == [
        [identity(first)],
        [identity(second)],
    ]


def test_waitall_stops_after_descriptors(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """MSG_WAITALL returns less than asked at the end of a message with descriptors."""
    for file in make_files(2):
        fdpass_c.send_fds(stream[0], [b"12345"], [file])
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 10, 10, socket.MSG_WAITALL)
    assert len(keep(fds)) == 1
    assert data == b"12345"
    assert len(keep(fdpass_c.recv_fds(stream[1], 5, 10)[1])) == 1


def test_reading_without_control_buffer_destroys(stream: Pair, file: int) -> None:
    """One byte read by recv destroys the descriptors of the message, and nothing tells later."""
    fdpass_c.send_fds(stream[0], [b"xy"], [file])
    stream[1].recv(1)
    assert fdpass_c.recv_fds(stream[1], 1, 1) == (b"y", [], 0, None)


def test_reading_the_first_byte_takes_all(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """One byte read by recv_fds brings all the message's descriptors."""
    files = make_files(3)
    fdpass_c.send_fds(stream[0], [b"xy"], files)
    assert identities(keep(fdpass_c.recv_fds(stream[1], 1, 3)[1])) == identities(files)
    assert fdpass_c.recv_fds(stream[1], 1, 3) == (b"y", [], 0, None)


def test_peek_installs_each_time(pair: Pair, file: int, keep: Keep) -> None:
    """Each peek with room for descriptors installs new ones, and the message stays."""
    fdpass_c.send_fds(pair[0], [b"x"], [file])
    fds = []
    for flags in (socket.MSG_PEEK, socket.MSG_PEEK, 0):
        data, some, _, _ = fdpass_c.recv_fds(pair[1], 1, 1, flags)
        assert data == b"x"
        fds += keep(some)
    assert len(set(fds)) == 3
    assert identities(fds) == [identity(file)] * 3
    assert_empty(pair[1])


def test_peek_without_control_buffer_leaves_them(pair: Pair, file: int, keep: Keep) -> None:
    """A peek by recv leaves the descriptors queued."""
    fdpass_c.send_fds(pair[0], [b"x"], [file])
    assert pair[1].recv(1, socket.MSG_PEEK) == b"x"
    assert identities(keep(fdpass_c.recv_fds(pair[1], 1, 1)[1])) == [identity(file)]


def test_peek_closes_surplus(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """A peek with little room closes what it may not hand over; the message still has all."""
    files = make_files(3)
    fdpass_c.send_fds(stream[0], [b"x"], files)
    assert len(keep(fdpass_c.recv_fds(stream[1], 1, 1, socket.MSG_PEEK)[1])) == 1
    assert identities(keep(fdpass_c.recv_fds(stream[1], 1, 3)[1])) == identities(files)


def test_no_room_for_bytes(stream: Pair, file: int, keep: Keep) -> None:
    """bufsize=0 on a stream reads nothing and loses nothing."""
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    data, fds, _, _ = fdpass_c.recv_fds(stream[1], 0, 1)
    assert data == b""
    keep(fds)
    data, more, _, _ = fdpass_c.recv_fds(stream[1], 1, 1)
    assert data == b"x"
    assert identities(fds + keep(more)) == [identity(file)]


def test_datagram_cut_short_keeps_descriptors(
    datagram: Pair, make_files: MakeFiles, keep: Keep
) -> None:
    """MSG_TRUNC is about bytes: the descriptors of a datagram cut short arrive."""
    files = make_files(3)
    fdpass_c.send_fds(datagram[0], [b"payload"], files)
    data, fds, flags, _ = fdpass_c.recv_fds(datagram[1], 3, 3)
    assert identities(keep(fds)) == identities(files)
    assert data == b"pay"
    assert flags & socket.MSG_TRUNC
    assert not flags & CTRUNC
