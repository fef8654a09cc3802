"""The program of a worker process: it receives connections, handles them and counts them."""

import asyncio
import contextlib
import faulthandler
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from fdpass_c.channel import Channel
from fdpass_c.pool.config import Config
from fdpass_c.pool.connected import MASTER_GONE, Kind, end_sending, find_unread, read_out
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.ending import end_forked
from fdpass_c.pool.event_loop import EventLoopWorker
from fdpass_c.pool.handlers import (
    ENDS_WORKER,
    call,
    is_coroutine_function,
    note_closed,
    note_failure,
)
from fdpass_c.pool.intake import Intake
from fdpass_c.pool.leaving import become_ready, begin_no_more
from fdpass_c.pool.offers import Offers
from fdpass_c.pool.signals import MASTERS_SIGNALS, ignore, terminate_children
from fdpass_c.pool.wakeup import Wakeup


def run_worker(
    channel: Channel,
    counters: Counters,
    wakeup: Wakeup,
    offers: Offers | None,
    config: Config,
    kinds: Sequence[Kind],
) -> None:
    """Serves until the master shuts down the channel and all connections are finished.

    kinds: the Kind of each listener's connections.
    """
    if config.timeout < float("inf"):
        _write_tracebacks_on_abort()
    _call_plain(config.setup)
    end_forked()
    try:
        if config.runs_coroutines:
            worker = EventLoopWorker(channel, counters, wakeup, config, kinds)
            _run_loop(worker.run(), config.loop_factory)
        else:
            become_ready(counters, wakeup)
            _serve(Intake(channel, counters, offers, kinds), counters, wakeup, config)
        # Waits for non-daemon threads and the threads of thread pools, as Python does at its end.
        threading._shutdown()  # type: ignore[attr-defined]
    finally:
        begin_no_more(counters, wakeup)
        if not config.runs_coroutines:
            _discard(channel)
        _call_plain(config.teardown)


def _run_loop(
    main: Coroutine[Any, Any, None], factory: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """Like asyncio.run, in a loop that factory makes."""
    if sys.version_info >= (3, 11):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main)
    else:
        if factory is not None:
            # asyncio.run makes its loop with the policy. No other code in this process uses it.
            asyncio.get_event_loop_policy().new_event_loop = factory
        asyncio.run(main)


def _discard(channel: Channel) -> None:
    """Closes the connections that this worker was given and will not begin. Other workers get them,
    and their clients would not see the end while this process has a copy."""
    with contextlib.suppress(Exception):  # recv_many raises when nothing is left.
        channel.shutdown(socket.SHUT_RD)
        while True:
            channel.recv_many().close()


def _call_plain(function: Callable[[], object] | None) -> None:
    """Calls a plain function. A coroutine function is called in the event loop, not here."""
    if function is not None and not is_coroutine_function(function):
        call(function)


def _write_tracebacks_on_abort() -> None:
    """Makes this process write the traceback of every thread at a SIGABRT, before it ends.

    If the program has enabled faulthandler already, its settings stay.
    """
    # The process that started the master may have blocked the signal.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGABRT])
    if not faulthandler.is_enabled():
        # This fails if there is no standard error, or if it is an object without a descriptor.
        with contextlib.suppress(Exception):
            faulthandler.enable()


def leave_signals_to_master() -> None:
    """Makes this worker ignore the master's signals: terminals and service managers send them to
    the whole process group, and only the master must react."""
    signal.set_wakeup_fd(-1)
    for signum in MASTERS_SIGNALS:
        ignore(signum)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    terminate_children()


def _serve(intake: Intake, counters: Counters, wakeup: Wakeup, config: Config) -> None:
    """Handles one connection after the other.

    If the master wants to be woken, this is done when the queue is empty, and each time a quarter
    of the capacity has been handled.
    """
    report_every = max(1, config.capacity // 4)
    reported = 0
    while True:
        try:
            intake.receive()
        except MASTER_GONE:
            return
        counters.enter_handler()
        sock, address = intake.take()
        try:
            sock.on_close = partial(wakeup.wake_for_copy, counters, counters.begun)
            if sock.gettimeout() is not None:  # The program has called socket.setdefaulttimeout.
                sock.setblocking(True)
            try:
                call(config.handler, sock, address)
                end_forked()
            except BaseException as error:
                end_forked(error)
                if isinstance(error, ENDS_WORKER):
                    raise
                note_failure(error, counters, address)
            sock.on_close = None
            unread = find_unread(sock)
            if unread > 0:
                end_sending(sock)
                read_out(sock)
            elif unread < 0:
                # The handler has closed the descriptor. So this object must forget the number now:
                # the next connection may get it, and would be closed in its place.
                _close(sock, address)
            # This worker does not count as free before it has tried to take an offer.
            is_wake_due = intake.take_offer()
            counters.leave_handler()
            # The connection is counted before the peer sees its end. So if the peer connects again,
            # the master already has room.
            counters.finish()
            if (
                is_wake_due
                and wakeup.wanted
                and (counters.handled - reported >= report_every or not intake.pending)
            ):
                reported = counters.handled
                # The master is woken before end_sending, so that both processes work at once.
                wakeup.wake_for_counters()
            end_sending(sock)
        finally:
            _close(sock, address)


def _close(sock: socket.socket, address: Any) -> None:
    try:
        sock.close()
    except OSError as error:
        note_closed(error, address)
