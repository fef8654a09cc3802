"""What only tries in the core keeps the interpreter's lock; what may wait gives it up."""

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, FdpassError, ProtocolError
from fdpass_c._native import ffi, lib
from support.channels import channels, raw_pair
from support.frames import NEXT, first, pack
from support.marks import linux_only, places_known
from support.sockets import Pair, drain, fill
from support.threads import run_together

pytestmark = [
    places_known,
    pytest.mark.thread_unsafe,
    pytest.mark.skipif(not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="there is none"),
]

# More than enough for another thread to get the lock at some of them, where they give it up.
CALLS = 3000


class Counter:
    """What a busy thread counts whenever it gets the lock."""

    turns = 0


@contextmanager
def busy_thread() -> Iterator[Counter]:
    """Another thread that gets the interpreter's lock only where this one gives it up."""
    counter = Counter()
    stop = threading.Event()
    started = threading.Event()

    def count() -> None:
        started.set()
        while not stop.is_set():
            counter.turns += 1
            time.sleep(0)

    before = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    started.wait()
    sys.setswitchinterval(1000)
    try:
        turns = counter.turns
        while counter.turns == turns:
            time.sleep(0)  # Until its next turn it waits as long as the interval was before.
        yield counter
    finally:
        sys.setswitchinterval(before)
        stop.set()
        thread.join()


def count_turns(function: Callable[[], object]) -> int:
    """How often the other thread had a turn during so many calls."""
    with busy_thread() as counter:
        function()
        before = counter.turns
        for _ in range(CALLS):
            function()
        return counter.turns - before


def make_calls(full: int, empty: int) -> dict[str, tuple[Any, ...]]:
    """Arguments for each; full is a socket that takes no more, in empty nothing is to receive."""
    inbox, outbox = ffi.new("struct fdp_inbox *"), ffi.new("struct fdp_outbox *")
    lib.fdp_start_inbox(inbox, empty, 10, 10, 1)
    outbox.sock = full
    scratch, owner = ffi.new("struct fdp_scratch *"), ffi.new("struct fdp_owner *", {"fds": 4})
    data = ffi.new("char[]", 10)
    return {
        "fdp_try_send_bytes": (full, b"x", 1, ffi.new("int[]", 253), 253, 0),
        "fdp_try_send_fd": (full, b"x", 1, 0, 0),
        "fdp_try_recv": (empty, 1, 1, 0, ffi.new("struct fdp_received *")),
        "fdp_try_send_messages": (full, bytes(4) + b"\1x\0", 1, 3, 0),
        "fdp_try_recv_batch": (empty, data, 1, 1, 1, 0, scratch, owner),
        "fdp_try_receive": (inbox, 1, scratch, owner),
        "fdp_try_count_pending": (inbox,),
        "fdp_try_send": (outbox, b"x", 1, 0),
        "fdp_try_send_rows": (outbox, bytes(4) + b"\1x\0", 1, 3),
        "fdp_try_take_offer": (empty, ffi.new("unsigned int[]", lib.FDP_WORD_COUNT), data, owner),
        "fdp_try_count_waiting": (ffi.new("struct fdp_rounds *"),),
        "fdp_try_find_shut_down": (empty,),
        "fdp_try_find_unread": (empty,),
        "fdp_try_end_sending": (-1,),
    }


NAMES = sorted(name for name in dir(lib) if name.startswith("fdp_try_"))


@pytest.mark.untraced
@pytest.mark.parametrize("name", NAMES)
def test_trying_keeps_it(name: str, stream: Pair) -> None:
    """No other thread runs during a call that only tries."""
    fill(stream[0])
    arguments = make_calls(stream[0].fileno(), stream[0].fileno())[name]
    assert count_turns(lambda: getattr(lib, name)(*arguments)) == 0


def test_others_give_it_up() -> None:
    """Another thread does run during other calls: so the test above can tell."""
    with busy_thread() as counter:
        before = counter.turns
        while counter.turns - before < 10:
            lib.fdp_find_features()


def test_small_messages_keep_it(file: int) -> None:
    """A message that can be sent and received at once lets no other thread in between."""
    owners = []

    def pass_one(sender: Channel, receiver: Channel) -> None:
        sender.send(b"x", [file])
        owners.append(receiver.recv()[1])
        assert receiver.pending == 0

    with channels() as (sender, receiver), busy_thread() as counter:
        before = counter.turns
        for _ in range(300):
            pass_one(sender, receiver)
        turns = counter.turns - before
        for owner in owners:
            owner.close()
    assert turns == 0


LARGE: dict[str, Callable[[socket.socket], Any]] = {
    "recv_fds": lambda sock: fdpass_c.recv_fds(sock, 1 << 20, 0),
    "recv_fd": lambda sock: fdpass_c.recv_fd(sock, 1 << 20)[1],
    "recv_many": lambda sock: fdpass_c.recv_many(sock, 64, 1 << 20),
    "recv_many of more": lambda sock: fdpass_c.recv_many(sock, 100, 5000),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_receives_give_it_up(name: str, seqpacket: Pair, file: int) -> None:
    """Another thread may run while more is copied than takes a moment."""
    left, right = seqpacket
    fds = [] if name == "recv_fds" else [file]
    with busy_thread() as counter:
        turns = 0
        while turns == 0:
            for _ in range(10):
                socket.send_fds(left, [bytes(5000)], fds)
            before = counter.turns
            received = LARGE[name](right)
            turns = counter.turns - before
            if fds:
                received.close()
            drain(right)


@contextmanager
def lingering() -> Iterator[socket.socket]:
    """A TCP socket whose last close takes a second, because the peer does not read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    with peer, sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(1 << 16))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
        yield sock


def refuse(sock: socket.socket, **options: Any) -> None:
    with Channel(sock, **options) as channel:
        channel.recv()


CLOSING: dict[str, Callable[[socket.socket], object]] = {
    "recv_fds": lambda sock: fdpass_c.recv_fds(sock, 10, 0),
    "recv_many": lambda sock: fdpass_c.recv_many(sock, 1, 10, 0),
    "recv_many of several": lambda sock: fdpass_c.recv_many(sock, 64, 10, 0),
    "close": lambda sock: fdpass_c.recv_fd(sock)[1].close(),
    "drop": lambda sock: fdpass_c.recv_many(sock, 1)[0:0],
    "a violation": refuse,
    "a channel without": lambda sock: refuse(sock, receive_fds=False),
}


@linux_only
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_closing_gives_it_up() -> None:
    """Whoever sent a descriptor says how long closing it takes; meanwhile other threads run."""
    turns: dict[str, int] = {}
    seconds: dict[str, float] = {}

    def close(name: str, sock: socket.socket, counter: Counter) -> None:
        before, start = counter.turns, time.monotonic()
        with contextlib.suppress(FdpassError):
            CLOSING[name](sock)
        turns[name] = counter.turns - before
        seconds[name] = time.monotonic() - start

    with contextlib.ExitStack() as stack:
        receivers = []
        for _ in CLOSING:
            left, right = map(stack.enter_context, socket.socketpair())
            sock = stack.enter_context(lingering())
            socket.send_fds(left, [b"not a frame"], [sock.fileno()])
            sock.close()
            receivers.append(right)
        # All at once: whichever kept the lock would count no turn while it closes.
        with busy_thread() as counter:
            run_together(
                [
                    partial(close, name, sock, counter)
                    for name, sock in zip(CLOSING, receivers, strict=True)
                ]
            )
    assert min(seconds.values()) > 0.9, seconds
    assert min(turns.values()) > 100, turns


@linux_only
def test_closing_what_came_inside_a_piece_gives_it_up() -> None:
    """So they do where it came with a later byte of a large message, which no try may close."""
    with lingering() as sock, raw_pair() as (peer, channel), busy_thread() as counter:
        channel.setblocking(False)
        for data in (first(100, 0), pack(NEXT, body=bytes(50))[:-1]):
            peer.sendall(data)
            with pytest.raises(BlockingIOError):
                channel.recv()
        socket.send_fds(peer, [b"x"], [sock.fileno()])
        sock.close()
        before = counter.turns
        with pytest.raises(ProtocolError, match="no frame announced"):
            channel.recv()
        assert counter.turns - before > 100
