"""A terminal that nobody reads may make broadcast wait, but keeps no signal handler waiting."""

import os
import pty
import signal
import termios
import tty
from contextlib import ExitStack
from functools import partial

import pytest

import fdpass_c
from support.marks import linux_only
from support.processes import run_in_child
from support.signals import Interruption, handling, interrupt, interrupt_main_thread
from support.waiting import once_blocked

LARGE = bytes(1_000_000)
SECONDS = 15
ROUNDS = 8

pytestmark = linux_only


def open_terminal() -> int:
    """A blocking terminal whose other end stays open, with nobody who reads it."""
    _, terminal = pty.openpty()
    tty.setraw(terminal)
    return terminal


@pytest.mark.thread_unsafe
def test_handler_returns() -> None:
    """The signal ends the turn of the terminal that waits, which took a part, and of no other."""

    def act() -> None:
        signal.alarm(SECONDS)
        for _ in range(ROUNDS):
            terminals = [open_terminal() for _ in range(3)]
            calls: list[int] = []
            with ExitStack() as stack:
                stack.enter_context(handling(signal.SIGUSR1, partial(calls.append, 1)))
                for terminal in terminals:
                    stack.enter_context(once_blocked(terminal, interrupt_main_thread))
                results = fdpass_c.broadcast(terminals, [LARGE])
            assert len(calls) == 3
            assert all(isinstance(size, int) and 0 < size < len(LARGE) for size in results)

    run_in_child(act)


@pytest.mark.thread_unsafe
def test_handler_raises() -> None:
    """A handler that raises ends the call, however many terminals would have to be waited for."""

    def act() -> None:
        signal.alarm(SECONDS)
        for _ in range(ROUNDS):
            terminals = [open_terminal() for _ in range(3)]
            with (
                handling(signal.SIGUSR1, interrupt),
                once_blocked(terminals[0], interrupt_main_thread),
                pytest.raises(Interruption),
            ):
                fdpass_c.broadcast(terminals, [LARGE])

    run_in_child(act)


@pytest.mark.thread_unsafe
def test_stopped_terminal() -> None:
    """A terminal that takes nothing now is a BlockingIOError, and nobody waits."""

    def act() -> None:
        signal.alarm(SECONDS)
        reader, writer = os.pipe()
        terminal = open_terminal()
        # A full one has room again as soon as the kernel moves what it holds to the other end.
        termios.tcflow(terminal, termios.TCOOFF)
        refused, taken = fdpass_c.broadcast([terminal, writer], [b"hello"])
        assert isinstance(refused, BlockingIOError)
        assert (taken, os.read(reader, 10)) == (5, b"hello")

    run_in_child(act)
