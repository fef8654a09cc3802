"""Plain messages: what was sent, and what the standard library receives of it."""

import socket

import pytest

import fdpass_c
from support.descriptors import identities

Message = tuple[bytes, list[tuple[int, int]]]
"""A payload and what its descriptors point to."""


def described(payloads: list[bytes], rows: list[list[int]]) -> list[Message]:
    """The messages as they have to arrive."""
    return [(payload, identities(row)) for payload, row in zip(payloads, rows, strict=True)]


def recv_one(sock: socket.socket, bufsize: int = 1 << 20) -> Message:
    """One message by the standard library alone; its descriptors are looked at and closed."""
    data, fds, msg_flags, _ = socket.recv_fds(sock, bufsize, 253)
    try:
        assert not msg_flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC)
        return data, identities(fds)
    finally:
        fdpass_c.close_fds(fds)


def recv_each(sock: socket.socket, count: int) -> list[Message]:
    """That many messages by the standard library."""
    return [recv_one(sock) for _ in range(count)]


def recv_present(sock: socket.socket) -> list[Message]:
    """Every message that is there now."""
    messages = []
    try:
        while True:
            # socket.recv_fds ignores its flags; a peek without room for descriptors takes none
            sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            messages.append(recv_one(sock))
    except BlockingIOError:
        return messages


def recv_until_closed(sock: socket.socket) -> list[Message]:
    """Every message up to the end of file."""
    messages = []
    while (message := recv_one(sock)) != (b"", []):
        messages.append(message)
    return messages


def take(message: tuple[bytes, fdpass_c.Descriptors]) -> Message:
    """What a received message is; its descriptors are closed."""
    payload, fds = message
    with fds:
        return payload, identities([*fds])


def contents(batch: fdpass_c.Batch) -> list[Message]:
    """What the messages of a batch are, which stays open."""
    return [(payload, identities(fds)) for payload, fds in batch]


def take_batch(batch: fdpass_c.Batch) -> list[Message]:
    """What the messages of a batch are; their descriptors are closed."""
    with batch:
        return contents(batch)


def assert_stream(pieces: list[Message], messages: list[Message]) -> None:
    """Fails unless the pieces that a stream's receiver got are the messages.

    The bytes are the same; the descriptors of each message came once, with its first byte, before
    which Linux may put plain bytes of the message before it.
    """
    sent = b"".join(payload for payload, _ in messages)
    assert len(b"".join(payload for payload, _ in pieces)) == len(sent)
    # "in", because pytest would print megabytes
    assert b"".join(payload for payload, _ in pieces) in (sent,), "other bytes than were sent"
    starts = []
    position = 0
    for payload, fds in messages:
        if fds:
            starts.append((position, fds))
        position += len(payload)
    position = 0
    for payload, fds in pieces:
        end = position + len(payload)
        if fds:
            start, wanted = starts.pop(0)
            assert position <= start < end
            assert fds == wanted
        position = end
    assert not starts


def measure_room(sender: socket.socket, receiver: socket.socket) -> int:
    """How many messages of a byte and a descriptor the empty socket takes before it is full."""
    with pytest.raises(BlockingIOError) as caught:
        fdpass_c.send_many(sender, [b"x"] * 10_000, [0] * 10_000, socket.MSG_DONTWAIT)
    room = progress_of(caught.value).messages
    assert len(recv_present(receiver)) == room
    return room


def progress_of(error: BaseException) -> fdpass_c.Progress:
    progress = error.progress  # type: ignore[attr-defined]
    assert isinstance(progress, fdpass_c.Progress)
    return progress
