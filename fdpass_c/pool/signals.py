"""Signals of the master: they wait in a queue, and wake a selector."""

import contextlib
import os
import selectors
import signal
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

MASTERS_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Signals:
    """queue: those that have come, and nobody has obeyed yet."""

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self._pipe: tuple[int, ...] = ()

    def add(self, signum: int) -> None:
        """As if it had come. From any thread or signal handler."""
        self.queue.append(signum)
        with contextlib.suppress(BlockingIOError):
            for fd in self._pipe[1:]:
                os.write(fd, b"\0")

    @contextmanager
    def handling(self, selector: selectors.BaseSelector) -> Iterator[None]:
        """Queues MASTERS_SIGNALS and SIGCHLD, which wake selector; in the main thread."""
        self._pipe = reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        selector.register(reader, selectors.EVENT_READ, lambda _events: os.read(reader, 4096))
        self.queue.clear()
        handlers = {}
        wakeup = -1
        try:
            wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            for signum in (*MASTERS_SIGNALS, signal.SIGCHLD):
                handlers[signum] = signal.signal(signum, lambda n, _: self.queue.append(n))
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            if handlers:
                signal.set_wakeup_fd(wakeup)
            self.forget()

    def forget(self) -> None:
        """Closes what wakes; in a forked child its copies."""
        pipe, self._pipe = self._pipe, ()
        for fd in pipe:
            os.close(fd)
