"""Threads take turns, forks keep to what the documentation says, selectors and timeouts work."""

import contextlib
import errno
import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, PeerClosedError, ProtocolError
from fdpass_c.channel import end_of
from fdpass_c.sending import Sending, start_one
from fdpass_c.testing import shorten
from fdpass_c.turns import Turns
from support.channels import channels, raw_pair
from support.descriptors import identity, is_open, list_fds
from support.frames import first, one, pack
from support.messages import take, take_batch
from support.processes import fork, run_in_child
from support.signals import Interruption, handling, interrupt_main_thread
from support.tables import many_allowed
from support.threads import beside
from support.waiting import once_blocked


def test_whose_send_it_is() -> None:
    """A send waits for other threads; another send of its own thread is in its way for good."""
    with channels(buffer=20_000) as (sender, _):
        outbox = end_of(sender).outbox
        own, other = (start_one(outbox, bytes(1_000_000), []) for _ in range(2))
        flushing = Sending(outbox, None, 0)
        assert own is not None
        assert other is not None
        assert own.step(socket.MSG_DONTWAIT) < 0
        for busy in (0, 1):  # 1: a thread is inside, for a moment.
            outbox.busy = busy
            assert other.step(socket.MSG_DONTWAIT) == -errno.EBUSY
            assert other.interrupts_own()
            assert not own.interrupts_own()
            assert not flushing.interrupts_own()
            with beside(other.interrupts_own) as elsewhere:
                pass
            assert elsewhere == [False]
        outbox.busy = 0
        own.give_up(BlockingIOError())
        assert not other.interrupts_own()


def test_nobody_waits_any_more() -> None:
    """Whoever passes the turn on may find that the last one who waited has left meanwhile."""
    Turns().pass_on()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_several_senders_and_receivers(kind: socket.SocketKind, file: int) -> None:
    """Messages of several senders never mix, and each comes to one receiver, once."""
    senders, each = 3, 60
    received: list[bytes] = []
    buffer = 20_000 if kind == socket.SOCK_STREAM else None
    with many_allowed(20_000), channels(kind, buffer) as (sender, receiver):

        def send(number: int) -> None:
            for index in range(each):
                tag = b"%d %d " % (number, index)
                if index % 3 == 0:
                    sender.send(tag * 20_000, [file] * 260)
                elif index % 3 == 1:
                    sender.send(tag, [file])
                else:
                    sender.send_many([tag + b"a", tag + b"b"], [file, file])

        def receive(most: int) -> None:
            mine: list[bytes] = []
            try:
                while True:
                    if most == 1:
                        mine.append(take(receiver.recv())[0])
                    else:
                        mine += [payload for payload, _ in take_batch(receiver.recv_many(most))]
            except fdpass_c.PeerClosedError:
                received.extend(mine)

        sending = [threading.Thread(target=send, args=(n,)) for n in range(senders)]
        receiving = [threading.Thread(target=receive, args=(n,)) for n in (1, 1, 50)]
        for thread in sending + receiving:
            thread.start()
        for thread in sending:
            thread.join()
        sender.close()
        for thread in receiving:
            thread.join()

    wanted: list[bytes] = []
    for number in range(senders):
        for index in range(each):
            tag = b"%d %d " % (number, index)
            wanted += [[tag * 20_000], [tag], [tag + b"a", tag + b"b"]][index % 3]
    assert sorted(received) in (sorted(wanted),)


def test_sending_while_receiving(file: int) -> None:
    """One thread sends while another waits in recv of the same channel."""
    with channels() as (left, right):
        for _ in range(100):
            with beside(lambda: left.send(b"ping", [file])):
                assert take(right.recv())[0] == b"ping"
            with beside(lambda: take(left.recv())):
                right.send(b"pong", [file])


@pytest.mark.thread_unsafe
def test_fork(file: int) -> None:
    """A child has its copy: it goes on with it, or closes it, and the parent's stays."""
    with channels() as (sender, receiver):
        sender.send_many([b"one", b"two"], [file, file])
        assert take(receiver.recv())[0] == b"one"

        def child() -> None:
            assert receiver.pending == 1
            assert take(receiver.recv()) == (b"two", [identity(file)])
            receiver.close()
            sender.send(b"from the child", [file])
            sender.close()

        run_in_child(child)
        assert take(receiver.recv()) == (b"two", [identity(file)])
        assert take(receiver.recv()) == (b"from the child", [identity(file)])


@pytest.mark.thread_unsafe
def test_child_that_goes_on_alone(file: int) -> None:
    """A child receives what arrives later where the parent has closed its copy."""
    with channels() as (sender, receiver):

        def child() -> None:
            sender.close()
            assert take(receiver.recv()) == (b"for the child", [identity(file)])

        with beside(lambda: run_in_child(child)):
            sender.send(b"for the child", [file])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("behind", [one(b"kept", 1), first(9, 2, b"", 1)], ids=["whole", "a piece"])
def test_child_whose_table_is_older(behind: bytes, file: int) -> None:
    """A fork copies the table first: what another thread receives before the memory is copied, the
    child knows of and does not have. It closes no other file that gets such a number later."""
    with raw_pair() as (sock, receiver):
        below = [os.dup(file), os.dup(file)]
        before = list_fds()
        socket.send_fds(sock, [one(b"") + behind], [file])
        assert take(receiver.recv()) == (b"", [])
        (kept,) = list_fds().keys() - before.keys()
        pending = receiver.pending
        receiver.setblocking(False)

        def child() -> None:
            os.dup2(0, kept)
            with pytest.raises(ProtocolError, match="without all of the descriptors"):
                receiver.recv()
            receiver.close()
            assert is_open(kept)

        copy = os.dup(kept)
        fdpass_c.close_fds([*below, kept])  # What is opened until the fork takes the lower numbers.
        run_in_child(child)
        os.dup2(copy, kept)
        os.close(copy)
        assert receiver.pending == pending


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_child_of_a_thread_beside_one_that_receives(timeout: float | None, file: int) -> None:
    """It closes its copy, and neither waits for the parent's receive nor ends that."""
    with channels() as (sender, receiver):
        receiver.settimeout(timeout)

        def close_in_a_child() -> None:
            run_in_child(receiver.close)
            sender.send(b"later", [file])

        with once_blocked(receiver.fileno(), close_in_a_child):
            assert take(receiver.recv()) == (b"later", [identity(file)])


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_child_of_a_handler_that_goes_on_receiving(timeout: float | None) -> None:
    """Where a handler forked that interrupted a receive, the child's goes on, and another thread
    that closes the channel ends it."""

    def act() -> None:
        signal.alarm(20)
        pids: list[int] = []
        with channels() as (_, receiver), contextlib.ExitStack() as stack:
            receiver.settimeout(timeout)

            def fork_once() -> None:
                pids.append(fork())
                if pids[0]:
                    raise Interruption
                signal.alarm(10)
                stack.enter_context(once_blocked(receiver.fileno(), receiver.close))

            stack.enter_context(handling(signal.SIGUSR1, fork_once))
            stack.enter_context(once_blocked(receiver.fileno(), interrupt_main_thread))
            with pytest.raises((Interruption, OSError)) as caught:
                receiver.recv()
        if pids[0]:
            assert caught.type is Interruption
            assert os.waitpid(pids[0], 0)[1] == 0
        else:
            assert "the channel is closed" in str(caught.value)

    run_in_child(act)


def test_selectors(file: int) -> None:
    """What a selector shows, and pending after it, leads to every message and to no other call."""
    payloads = [b"%d" % number for number in range(500)]
    with channels() as (sender, receiver), selectors.DefaultSelector() as selector:
        selector.register(receiver, selectors.EVENT_READ)
        assert selector.select(0) == []
        sender.send_many(payloads[:200], [file] * 200)
        for payload in payloads[200:300]:
            sender.send(payload)
        sender.send_many(payloads[300:])
        received: list[bytes] = []
        while selector.select(0):
            received.append(take(receiver.recv())[0])
            while receiver.pending:
                received.append(take(receiver.recv())[0])
        assert received == payloads


@pytest.mark.parametrize(
    ("frames", "counts"),
    [
        ([one(b"a"), one(b"b")], [1, 0]),
        ([one(b"a"), pack(1, 1, 0, 3, bytes(4)), one(b"c")], [4, 3, 2, 1, 0]),
        ([one(b"a"), one(b"b")[:-1]], [0]),
        ([one(b"a"), first(2, 0, b"x")], [0]),
        ([one(b"a"), first(2, 0, b"x"), pack(3, body=b"y")], [1, 0]),
        ([one(b"a"), first(2, 0, b"x"), pack(4), one(b"b")], [1, 0]),
        ([one(b"a"), b"rubbish"], [0]),
    ],
)
def test_pending(frames: list[bytes], counts: list[int]) -> None:
    """pending counts the messages that are here whole, however they came."""
    for many in (False, True):
        with raw_pair() as (peer, channel):
            assert channel.pending == 0
            peer.send(b"".join(frames))
            for count in counts:
                if many:
                    assert len(channel.recv_many(1)) == 1
                else:
                    channel.recv()
                assert channel.pending == count


def test_pending_of_messages_with_descriptors(file: int) -> None:
    """A large message of which only some descriptors are here is not pending."""
    with raw_pair() as (peer, channel):
        socket.send_fds(peer, [one(b"a") + first(0, 3, b"", 2)], [file] * 2)
        assert take(channel.recv())[0] == b"a"
        assert channel.pending == 0
        socket.send_fds(peer, [pack(3, 0, 1)], [file])
        assert take(channel.recv()) == (b"", [identity(file)] * 3)


@pytest.mark.parametrize("receive", ["recv", "recv_many"])
def test_timeouts_while_receiving(receive: str) -> None:
    """BlockingIOError and TimeoutError where nothing is there, or not all; it comes later."""
    nothing = (errno.EAGAIN, os.strerror(errno.EAGAIN))
    cases = [(0.0, BlockingIOError, nothing), (0.001, TimeoutError, ("timed out",))]
    with raw_pair() as (peer, channel):
        for timeout, error, arguments in cases:
            channel.settimeout(timeout)
            assert channel.gettimeout() == timeout
            with pytest.raises(error) as caught:
                getattr(channel, receive)()
            assert caught.value.args == arguments
            peer.send(one(b"hello")[:9])
            with pytest.raises(error):
                getattr(channel, receive)()
            peer.send(one(b"hello")[9:])
            peer.send(first(2, 0, b"x"))
            assert channel.recv()[0] == b"hello"
            with pytest.raises(error):
                getattr(channel, receive)()
            peer.send(pack(3, body=b"y"))
            assert channel.recv()[0] == b"xy"
        channel.setblocking(True)
        assert channel.gettimeout() is None


def test_timeout_while_sending(file: int) -> None:
    """TimeoutError where the buffer stays full; what was begun is sent later."""
    with channels() as (sender, receiver):
        sender.settimeout(0.001)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sender.send(bytes(30_000), [file])
                sent += 1
        rest = sender.unsent
        with pytest.raises(TimeoutError):
            sender.send(b"nor this", [file])
        if rest:
            with pytest.raises(TimeoutError):
                sender.flush()
        sender.settimeout(None)
        with beside(lambda: sender.send(b"next")):
            for _ in range(sent):
                assert take(receiver.recv()) == (bytes(30_000), [identity(file)])
            assert receiver.recv()[0] == b"next"


def test_timeout_in_a_large_message(file: int) -> None:
    """A large message that runs out of time is withdrawn, whatever it takes."""
    with channels() as (sender, receiver):
        sender.settimeout(0.001)
        with pytest.raises(TimeoutError):
            sender.send(bytes(10_000_000), [file] * 300)
        sender.settimeout(None)
        with beside(lambda: sender.send(b"next", [file])):
            assert take(receiver.recv()) == (b"next", [identity(file)])


@pytest.mark.thread_unsafe
def test_interrupted_without_an_exception(file: int) -> None:
    """A handler that returns is not noticed: the call goes on (PEP 475)."""
    handled: list[int] = []

    def send() -> None:
        interrupt_main_thread()
        sender.send(bytes(50_000), [file])

    with (
        channels(buffer=5000) as (sender, receiver),
        handling(signal.SIGUSR1, lambda: handled.append(1)),
        beside(send),
    ):
        assert take(receiver.recv()) == (bytes(50_000), [identity(file)])
    assert handled == [1]


@pytest.mark.thread_unsafe
def test_dropped_open(file: int) -> None:
    """A channel that is dropped open warns, and closes all that it holds."""
    left, right = socket.socketpair()
    with left:
        fd = right.fileno()
        channel = Channel(right)
        left.send(one(b"a"))
        socket.send_fds(left, [one(b"b", 1)], [file])
        channel.recv()
        del right
        with pytest.warns(ResourceWarning, match="unclosed <Channel fd="):  # noqa: PT031
            del channel
            gc.collect()
        assert not is_open(fd)


@pytest.mark.thread_unsafe
def test_dropped_in_a_cycle() -> None:
    """The same, with one warning, where the collector may finalise its socket first."""
    channel, peer = Channel.pair()
    with peer:
        cycle: list[Any] = [channel]
        cycle.append(cycle)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del channel, cycle
            gc.collect()
        (warning,) = caught
        assert str(warning.message).startswith("unclosed <")
        with pytest.raises(PeerClosedError):
            peer.recv()


@pytest.mark.thread_unsafe
def test_dropped_descriptors(file: int) -> None:
    """Received descriptors that are dropped open warn too."""
    with channels() as (sender, receiver):
        sender.send(b"", [file])
        with pytest.warns(ResourceWarning, match="unclosed <Descriptors"):  # noqa: PT031
            receiver.recv()
            gc.collect()


def test_closed() -> None:
    """Every call on a closed channel is EBADF, and no other socket is touched."""
    with channels() as (sender, _):
        sender.close()
        assert sender.closed
        assert sender.fileno() == -1
        assert repr(sender) == "<Channel closed>"
        assert sender.pending == 0
        assert sender.unsent == 0
        calls: list[Callable[[], object]] = [
            lambda: sender.send(b""),
            lambda: sender.send(b"", [0]),
            lambda: sender.send(bytes(100_000)),
            lambda: sender.send_many([b""]),
            sender.recv,
            sender.recv_many,
            sender.flush,
            sender.detach,
            sender.peer_pidfd,
            lambda: sender.settimeout(1),
            lambda: sender.setblocking(False),
            lambda: sender.shutdown(socket.SHUT_RDWR),
        ]
        for call in calls:
            with pytest.raises(OSError, match="the channel is closed") as caught:
                call()
            assert caught.value.errno == errno.EBADF
        sender.close()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
@pytest.mark.parametrize("descriptors", [False, True])
def test_closed_beside_a_begun_message(timeout: float | None, descriptors: bool, file: int) -> None:
    """Who waits to send the rest of a message is told that close() has cut it."""
    with channels(buffer=4608) as (sender, receiver):
        sender.settimeout(timeout)
        calls: list[Callable[[], object]] = [
            lambda: sender.send(bytes(60_000)),
            lambda: sender.send_many([bytes(250)] * 50, [file] * 50),
        ]
        with (
            once_blocked(sender.fileno(), sender.close),
            pytest.raises(OSError, match="Bad file descriptor") as caught,
        ):
            calls[descriptors]()
        assert fdpass_c.Progress.of(caught.value) == (0, 0)
        with pytest.raises(fdpass_c.ProtocolError, match="inside a message"):
            receiver.recv()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("violates", [False, True])
def test_progress_of_a_frame_that_cannot_end(violates: bool, many: bool) -> None:
    """Of a begun frame whose rest can never leave, no message counts as sent."""
    left, right = socket.socketpair()
    shorten(left)

    def end() -> None:
        if violates:
            right.send(b"no frame")
            with pytest.raises(fdpass_c.ProtocolError):
                sender.recv()
        else:
            sender.shutdown(socket.SHUT_WR)  # The sender waits on, in vain.
            interrupt_main_thread()

    def time_out() -> None:
        raise TimeoutError

    with Channel(left) as sender, Channel(right) as receiver:
        sender.settimeout(1000)
        send: Callable[[], object] = partial(sender.send, bytes(60_000))
        if many:
            send = partial(sender.send_many, [bytes(9000)] * 6)
        with (
            handling(signal.SIGUSR1, time_out),
            once_blocked(sender.fileno(), end),
            pytest.raises(fdpass_c.ProtocolError if violates else TimeoutError) as caught,
        ):
            send()
        assert fdpass_c.Progress.of(caught.value) == (0, 0)
        with pytest.raises(fdpass_c.ProtocolError, match="inside a message"):
            receiver.recv()


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
@pytest.mark.parametrize("call", ["here.recv", "here.send, args=[bytes(10_000_000)]"])
def test_closed_as_the_interpreter_ends(timeout: float | None, call: str) -> None:
    """A finaliser that closes a channel in which a daemon thread waits does not wait for that."""
    waits = "here._waiting" if timeout else "end.inbox.waiting or end.outbox.busy"
    code = textwrap.dedent(f"""
        import threading
        from fdpass_c import Channel
        from fdpass_c.channel import end_of

        class Closing:
            def __init__(self, channel):
                self.channel = channel

            def __del__(self):
                self.channel.close()

        here, there = Channel.pair()
        here.settimeout({timeout})
        end = end_of(here)
        kept = Closing(here)
        threading.Thread(daemon=True, target={call}).start()
        while not ({waits}):
            pass
    """)
    subprocess.run([sys.executable, "-c", code], timeout=20, check=True)


@pytest.mark.thread_unsafe
def test_state_is_shown() -> None:
    """repr tells the descriptor and the peer; peer is who connected."""
    with channels() as (sender, _):
        assert repr(sender) == f"<Channel fd={sender.fileno()}, peer pid={os.getpid()}>"
        assert sender.peer == (os.getpid(), os.getuid(), os.getgid())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not sender.closed


def test_a_peer_that_has_closed(file: int) -> None:
    """Sending to a peer that has closed is BrokenPipeError; receiving says PeerClosedError."""
    with channels() as (sender, receiver):
        sender.send(b"last", [file])
        sender.close()
        assert take(receiver.recv()) == (b"last", [identity(file)])
        for _ in range(2):
            with pytest.raises(fdpass_c.PeerClosedError, match=r"^the peer closed the"):
                receiver.recv()
            with pytest.raises(EOFError):
                receiver.recv_many()
            with pytest.raises(BrokenPipeError):
                receiver.send(b"", [file])
            with pytest.raises(BrokenPipeError):
                receiver.send(bytes(100_000), [file] * 300)
        assert [*receiver] == []


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("timeout", [None, 1000.0])
def test_shutdown_ends_a_send(timeout: float | None) -> None:
    """A send that waits for room ends where another thread shuts the sending down."""
    with channels(socket.SOCK_STREAM, 20_000) as (sender, _):
        sender.settimeout(timeout)
        with (
            once_blocked(sender.fileno(), lambda: sender.shutdown(socket.SHUT_WR)),
            pytest.raises(BrokenPipeError),
        ):
            sender.send(bytes(10_000_000))


def test_flush_wakes_a_sender() -> None:
    """A thread whose send waits for a flush of another goes on when that is over."""
    with channels(socket.SOCK_STREAM, 20_000) as (sender, receiver):
        sender.setblocking(False)
        with pytest.raises(BlockingIOError):
            sender.send(bytes(10_000_000))
        assert sender.unsent > 0
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv()
        waiting = threading.Lock()
        waiting.acquire()
        sender._senders.append(waiting)
        sender.flush()
        assert not waiting.locked()
