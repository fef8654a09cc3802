"""Threads, whose failures fail the test."""

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def _shut_down(sockets: tuple[socket.socket, ...]) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def beside(function: Callable[[], Any], *sockets: socket.socket) -> Iterator[list[Any]]:
    """Runs function in a thread; its result is in the list after the block.

    What it raises fails the test. Where it or the block fails, sockets are shut down, so that the
    other need not wait for it. Where both fail, the report shows both: either may be the cause.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
            _shut_down(sockets)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    except BaseException as error:
        _shut_down(sockets)
        thread.join()
        if errors:
            raise error from errors[0]
        raise
    thread.join()
    if errors:
        raise errors[0]


def run_together(jobs: list[Callable[[], object]], *sockets: socket.socket) -> None:
    """Runs each job in a thread, all starting at once; sockets are as in beside."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], object]) -> None:
        start.wait()
        job()

    with contextlib.ExitStack() as stack:
        for job in jobs:
            stack.enter_context(beside(functools.partial(run, job), *sockets))
