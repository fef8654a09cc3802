"""A handler that raises inside what owns descriptors: none is closed twice, and none stays open."""

import contextlib
import itertools
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import pytest

import fdpass_c
from fdpass_c import Channel, Descriptors, channel, descriptors, peer
from support.channels import channels
from support.descriptors import is_open, list_fds
from support.marks import linux_only, places_known
from support.signals import Interruption, handling, interrupt_call

pytestmark = pytest.mark.thread_unsafe


@contextmanager
def strangers_at(fds: list[int]) -> Iterator[None]:
    """Opens those of the numbers that are free for somebody else, whom the block must not close."""
    ours = []
    for fd in fds:
        if not is_open(fd):
            new = os.open(os.devnull, os.O_RDONLY)
            if new != fd:
                os.dup2(new, fd)
                os.close(new)
            ours.append(fd)
    yield
    assert all(map(is_open, ours)), "closed a stranger's"
    for fd in ours:
        os.close(fd)


def open_socket() -> int:
    left, right = socket.socketpair()
    right.close()
    return left.detach()


def drop(_owner: Descriptors) -> None:
    """Nothing but the reference goes."""


USES: dict[str, Callable[[Descriptors], Any]] = {
    "as_socket": lambda owner: owner.as_socket(1),
    "as_file": lambda owner: owner.as_file(1, "r+b", buffering=0),
    "as_text": lambda owner: owner.as_file(1, "w", encoding="utf-8"),
    "close": lambda owner: owner.close(),
    "as_socket of a pipe": lambda owner: owner.as_socket(0),
    "as_file with a wrong option": lambda owner: owner.as_file(1, "wx"),
}


@places_known
@pytest.mark.untraced
@pytest.mark.parametrize("name", USES)
def test_at_any_call(name: str) -> None:
    """Wherever a handler raises, each descriptor has one owner, which closes it."""
    for number in itertools.count(1):
        reader, writer = os.pipe()
        os.close(writer)
        fds = [reader, open_socket()]
        owner = Descriptors(fds)
        results: list[Any] = []

        def use(owner: Descriptors = owner, results: list[Any] = results) -> None:
            with contextlib.suppress(OSError, ValueError):
                results.append(USES[name](owner))

        with warnings.catch_warnings():
            # What was made, and lost on its way here, closes what it owns.
            warnings.simplefilter("ignore", ResourceWarning)
            was_interrupted = interrupt_call(descriptors, number, use)
        for result in results:
            if result is not None:
                result.close()
        with strangers_at(fds):
            owner.close()
            owner.close()
        assert not any(map(is_open, fds))
        if not was_interrupted:
            break
    assert number > 1


TAKES: dict[str, Callable[[Descriptors], list[int]]] = {
    "take": lambda owner: [owner.take(1)],
    "take_all": lambda owner: owner.take_all(),
}


def take_into(
    taken: list[Any], take: Callable[[Descriptors], list[int]], owner: Descriptors
) -> None:
    taken += take(owner)


@places_known
@pytest.mark.untraced
@pytest.mark.parametrize("name", TAKES)
def test_taking_at_any_call(name: str) -> None:
    """A handler that raises can lose what is returned as ints, and nothing else; none is closed."""
    for number in itertools.count(1):
        fds = [open_socket(), open_socket()]
        owner = Descriptors(fds)
        taken: list[int] = []
        was_interrupted = interrupt_call(
            descriptors, number, partial(take_into, taken, TAKES[name], owner)
        )
        assert all(map(is_open, fds))
        owner.close()
        still_open = [fd for fd in fds if is_open(fd)]
        if was_interrupted:
            assert still_open in ([], fds[1:]), "lost more than it was returning"
        else:
            assert still_open == taken
        fdpass_c.close_fds(still_open)
        if not was_interrupted:
            break
    assert number > 1


def receive_one(receiver: Channel) -> list[bytes]:
    payload, fds = receiver.recv()
    with fds:
        return [payload]


def receive_many(receiver: Channel) -> list[bytes]:
    with receiver.recv_many(2) as batch:
        return batch.payloads


@places_known
@pytest.mark.untraced
@pytest.mark.parametrize(
    ("payload", "count", "waits", "dropping"),
    [
        (b"x", 0, False, "ignore"),
        (b"x", 1, True, "error"),
        (b"x", 20, False, "ignore"),
        (b"x", 20, True, "error"),
        (bytes(100_000), 0, True, "ignore"),
        (bytes(100_000), 20, False, "error"),
    ],
    ids=["plain", "one", "several", "several, errors", "large", "large with several"],
)
@pytest.mark.parametrize("receive", [receive_one, receive_many])
def test_receive_puts_back(
    receive: Callable[[Channel], list[bytes]],
    payload: bytes,
    count: int,
    waits: bool,
    dropping: Literal["ignore", "error"],
    file: int,
) -> None:
    """A handler that raises anywhere inside a receive leaves the message for the next call; as with
    -W error, too, where an owner that is dropped open warns."""
    warnings.simplefilter(dropping)  # pytest puts the filters back.
    for number in itertools.count(1):
        with channels() as (sender, receiver):
            receiver.setblocking(waits)
            sender.send(payload, [file] * count)
            sender.send(b"next", [file])
            received: list[bytes] = []

            def use(receiver: Channel = receiver, received: list[bytes] = received) -> None:
                received += receive(receiver)

            was_interrupted = interrupt_call(channel, number, use)
            while received[-1:] != [b"next"]:
                received += receive(receiver)
            assert received == [payload, b"next"]
        if not was_interrupted:
            break
    assert number > 3


def detach_into(detached: list[socket.socket], handing_over: Channel) -> None:
    detached.append(handing_over.detach())


@places_known
@pytest.mark.untraced
def test_detach_leaves_no_stale_number() -> None:
    """Wherever a handler raises inside detach, the channel is closed, or its socket is open: it
    never has a number that another file can get."""
    for number in itertools.count(1):
        left, right = socket.socketpair()
        with left, Channel(right) as handing_over:
            fd = handing_over.fileno()
            del right
            detached: list[socket.socket] = []
            with warnings.catch_warnings():
                # A socket that is lost on its way to the caller closes itself.
                warnings.simplefilter("ignore", ResourceWarning)
                was_interrupted = interrupt_call(
                    channel, number, partial(detach_into, detached, handing_over)
                )
            assert handing_over.closed or is_open(fd)
            for sock in detached:
                sock.close()
        assert not is_open(fd)
        if not was_interrupted:
            break
    assert detached
    assert number > 3


def look_at_peer(receiver: Channel, result: list[int | None]) -> None:
    result.append(receiver.peer_pidfd())


@linux_only
@places_known
@pytest.mark.untraced
def test_peer_pidfd() -> None:
    """A handler that raises inside peer_pidfd can lose the int that it returns, and that alone."""
    with channels() as (_, receiver):
        for number in itertools.count(1):
            result: list[int | None] = []
            before = list_fds()
            was_interrupted = interrupt_call(peer, number, partial(look_at_peer, receiver, result))
            opened = list_fds().keys() - before.keys()
            fdpass_c.close_fds(opened)
            assert len(opened) <= 1
            if not was_interrupted:
                break
        assert opened == {*result} or result == [None]
        assert number > 1


def close(fds: Descriptors) -> None:
    fds.close()


def hand_over(fds: Descriptors) -> None:
    for index in range(len(fds)):
        fds.as_file(index, buffering=0).close()


def take_all(fds: Descriptors) -> None:
    fdpass_c.close_fds(fds.take_all())


@places_known
@pytest.mark.untraced
@pytest.mark.parametrize(("end", "count"), [(close, 1), (close, 7), (hand_over, 7), (take_all, 7)])
def test_closed_owners_swallow_nothing(
    end: Callable[[Descriptors], None], count: int, file: int
) -> None:
    """What a handler raises in a loop that receives and closes always comes out of the loop."""
    fired = True

    def fire() -> None:
        nonlocal fired
        if not fired:
            fired = True
            raise Interruption

    # A function, because of what test_loops_in_blocks is about.
    def use_until_fired(sender: Channel, receiver: Channel) -> None:
        while not fired:
            sender.send(b"x", [file] * count)
            with contextlib.suppress(BlockingIOError):
                end(receiver.recv()[1])

    before = list_fds()
    with (
        warnings.catch_warnings(),
        channels() as (sender, receiver),
        handling(signal.SIGALRM, fire),
    ):
        # Of what was received and not yet anybody's.
        warnings.simplefilter("ignore", ResourceWarning)
        receiver.setblocking(False)
        swallowed = 0
        for microseconds in range(1000):
            fired = False
            try:
                # Again and again: Python 3.11 now and then runs no handler before the next signal.
                signal.setitimer(signal.ITIMER_REAL, 20e-6 + microseconds / 1_000_000, 5e-3)
                use_until_fired(sender, receiver)
                swallowed += 1
            except Interruption:
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            # Else an ordinary user has too many in flight.
            with contextlib.suppress(BlockingIOError):
                while True:
                    receiver.recv()[1].close()
    assert swallowed == 0
    lost = list_fds().keys() - before.keys()
    fdpass_c.close_fds(lost)
    assert end is take_all or not lost
