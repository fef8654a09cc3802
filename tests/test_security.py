"""What SECURITY.md promises of peers, and that each of its promises has its tests."""

import contextlib
import mmap
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fdpass_c import Channel, DescriptorTableFullError, ProtocolError
from support.channels import raw_pair
from support.descriptors import list_fds
from support.frames import NEXT, WITHDRAWN, first, one, pack
from support.marks import any_in_flight, linux_only
from support.processes import fork, run_in_child
from support.tables import limit_table

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "SECURITY.md"


def test_every_test_is_there() -> None:
    """Each test that SECURITY.md names exists, and each promise names one."""
    text = PAGE.read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^def {test}\(", (TESTS / file).read_text(), re.MULTILINE), (file, test)


_HALF = pack(1, 2, 253, 253, bytes(4 * 253) + b"x")[:100]
_LAST = pack(NEXT, 0, 0, 0, b"x")

# Messages that are never finished: frames and parts of frames, and how many descriptors travel with
# each. The lists are sent one after the other, and received in between.
_UNFINISHED: dict[str, list[list[tuple[bytes, int]]]] = {
    "half a header": [[(one(b"", 1)[:5], 253)]],
    "half a frame": [[(_HALF, 253)]],
    "pieces": [[(first(1, 400, attached=253), 253), (pack(NEXT, 0, 147), 147)]],
    "too many": [[(first(1, 60_000, attached=253), 253), *[(pack(NEXT, 0, 253), 253)] * 20]],
    "with the second byte": [[(_HALF[:1], 0)], [(_HALF[1:], 253)]],
    "more than a message lacks": [[(first(9, 0), 0)], [(pack(NEXT)[:5], 253)]],
    "a piece beyond the total": [[(first(9, 0), 0)], [(pack(NEXT, 0, 253, 0, b"x")[:16], 253)]],
    "behind a withdrawal": [[(first(60_000, 0), 0)], [(pack(WITHDRAWN), 0), (_HALF, 253)]],
    "behind a large message": [
        [(first(1, 0), 0)],
        [(_LAST[:5], 0)],
        [(_LAST[5:], 0), (_HALF, 253)],
    ],
    "one byte a packet": [[(_HALF[:16], 253), *[(b"\0", 0)] * 190, (bytes(2000), 0)]],
}


@pytest.mark.thread_unsafe
@linux_only
@any_in_flight
@pytest.mark.parametrize("kind", _UNFINISHED)
def test_what_unfinished_messages_hold(kind: str) -> None:
    """Peers that never finish hold at most half of the table together, and leave 64 places. Those
    that announce more than that hold no more than one piece, all together."""

    def child(limit: int) -> None:
        limit_table(limit)
        with contextlib.ExitStack() as stack:
            sort = socket.SOCK_SEQPACKET if "packet" in kind else socket.SOCK_STREAM
            pairs = [stack.enter_context(raw_pair(sort)) for _ in range(30)]
            before = len(list_fds())
            most = 0
            for peer, channel in pairs:
                channel.setblocking(False)
                peer.setblocking(False)
            may_come = (BlockingIOError, DescriptorTableFullError, ProtocolError)
            for parts in _UNFINISHED[kind]:
                for peer, _ in pairs:
                    with contextlib.suppress(BlockingIOError, BrokenPipeError):
                        for data, count in parts:
                            socket.send_fds(peer, [data], [peer.fileno()] * count)
                for _, channel in pairs * 3:
                    with contextlib.suppress(*may_come):
                        channel.recv()[1].close()
                    most = max(most, len(os.listdir("/proc/self/fd")) - 1 - before)
            held = len(list_fds()) - before
            assert most <= limit // 2
            if kind == "too many":
                assert most <= 253
            elif kind in ("half a header", "half a frame", "pieces"):
                # Not far from it, either: whatever fits is received.
                assert held > limit // 2 - 253
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] - before - most >= 64
            # A message that is whole still comes, to whom they left alone.
            peer, channel = stack.enter_context(raw_pair())
            socket.send_fds(peer, [one(b"whole", 1)], [0])
            payload, fds = channel.recv()
            fds.close()
            assert payload == b"whole"

    for limit in (400, 1000, 4000):
        run_in_child(partial(child, limit))


@contextlib.contextmanager
def _changing(frames: list[bytes]) -> Iterator[int]:
    """A file that another process fills with one of frames after the other, as fast as it can."""
    file = os.memfd_create("changing")
    os.ftruncate(file, mmap.PAGESIZE)
    with open(file, "r+b") as owner, mmap.mmap(file, mmap.PAGESIZE) as pages:
        pid = fork()
        while pid == 0:
            for frame in frames:
                pages[: len(frame)] = frame
        try:
            yield owner.fileno()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.thread_unsafe
@linux_only
@any_in_flight
def test_frames_that_change_in_the_queue() -> None:
    """A peer that splices pages into the socket, and changes them while they are received, holds no
    more of the table than others."""

    def child() -> None:
        limit = 1000
        limit_table(limit)
        innocent = pack(1, 0, 0, 1, bytes(4))
        with contextlib.ExitStack() as stack, _changing([innocent, _HALF[:16]]) as file:
            reader, writer = os.pipe()
            before = len(list_fds())
            for _ in range(1500):
                peer, channel = stack.enter_context(raw_pair())
                channel.setblocking(False)
                os.splice(file, writer, 15, offset_src=0)
                os.splice(reader, peer.fileno(), 15)
                socket.send_fds(peer, [_HALF[15:16]], [file] * 253)
                try:
                    channel.recv()
                except BlockingIOError:
                    pass  # It holds a part.
                except (DescriptorTableFullError, ProtocolError):
                    peer.close()
                    channel.close()
            held = len(list_fds()) - before
            assert held <= limit // 2

    run_in_child(child)


@contextlib.contextmanager
def _sending(peer: socket.socket, data: bytes, pause: float) -> Iterator[None]:
    """A process that sends data over and over, byte by byte where it pauses."""
    pieces = [data] if not pause else [data[at : at + 1] for at in range(len(data))]
    pid = fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            while True:
                for piece in pieces:
                    peer.sendall(piece)
                    time.sleep(pause)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _assert_times_out(channel: Channel) -> None:
    channel.settimeout(0.3)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        channel.recv()
    assert time.monotonic() - start < 10


@pytest.mark.thread_unsafe
def test_a_drip() -> None:
    """A peer that sends a byte now and then keeps no receive beyond its timeout."""
    with raw_pair() as (peer, channel), _sending(peer, one(bytes(60_000)), 0.01):
        _assert_times_out(channel)


@pytest.mark.thread_unsafe
def test_frames_without_end() -> None:
    """Neither does one that begins and withdraws messages as fast as it can."""
    with raw_pair() as (peer, channel), _sending(peer, (first(9, 0) + pack(WITHDRAWN)) * 50_000, 0):
        _assert_times_out(channel)


def test_looks_at_the_clock() -> None:
    """After some frames that bring nothing a receive ends where it may not wait; none is lost."""
    with raw_pair() as (peer, channel):
        channel.setblocking(False)
        peer.sendall((first(9, 0) + pack(WITHDRAWN)) * 3000 + one(b"behind them"))
        tries = 0
        while True:
            tries += 1
            with contextlib.suppress(BlockingIOError):
                payload, fds = channel.recv()
                fds.close()
                break
        assert payload == b"behind them"
        assert 2 < tries < 3000
