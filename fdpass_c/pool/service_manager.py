"""Reports to a service manager what the pool is doing, as sd_notify(3) does."""

import contextlib
import os
import socket
import time

from fdpass_c.pool.log import logger
from fdpass_c.pool.status import Phase

_RETRY_DELAY = 0.1
"""Seconds until the next try to send. The service manager's queue can be full while the system
starts."""


class ServiceManager:
    """Sends messages to the socket that NOTIFY_SOCKET names. Without this variable it does nothing.

    due_at: when check is to be called, as time.monotonic.
    """

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._phase = Phase.STARTING
        self._summary = ""
        self._unsent: dict[str, str] = {}
        self._watchdog_at = float("inf")
        self._watchdog_interval: float = float("inf")
        self.due_at: float = float("inf")
        name = os.environ.get("NOTIFY_SOCKET", "")
        if not name.startswith(("/", "@")):
            if name:
                logger.warning(
                    "NOTIFY_SOCKET is neither an absolute path nor an abstract name: %s", name
                )
            return
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._watchdog_interval = _find_interval()
        if self._watchdog_interval < float("inf"):
            self._watchdog_at = 0.0
        self.check()

    def follow(self, phase: Phase, summary: str) -> None:
        """Reports a change of the phase or of the summary. summary: a line for people."""
        lines = []
        if phase is not self._phase:
            if phase is Phase.SERVING:
                lines.append("READY=1")
            elif phase is Phase.RELOADING:
                # The time tells the service manager that this is the reload that it has requested.
                lines += ["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"]
            else:
                lines.append("STOPPING=1")
        if lines or summary != self._summary:
            lines.append(f"STATUS={summary}")
            self._send(*lines)
        self._phase, self._summary = phase, summary

    def check(self) -> None:
        """Called by the master's loop: tells the watchdog that the loop runs, and sends messages
        that could not be sent before."""
        now = time.monotonic()
        if now >= self._watchdog_at:
            self._watchdog_at = now + self._watchdog_interval
            self._send("WATCHDOG=1")
        else:
            self._send_rest()

    def _send(self, *lines: str) -> None:
        if self._sock is not None:
            # A new message replaces an unsent one of the same kind.
            kind, _, _ = lines[0].partition("=")
            self._unsent.pop(kind, None)
            self._unsent[kind] = "\n".join(lines)
            self._send_rest()

    def _send_rest(self) -> None:
        self.due_at = self._watchdog_at
        if self._sock is None:
            return
        for kind, message in [*self._unsent.items()]:
            try:
                self._sock.sendto(message.encode(), self._address)
            except BlockingIOError:
                self.due_at = min(self.due_at, time.monotonic() + _RETRY_DELAY)
                return
            except OSError as error:
                logger.warning("cannot send %s to the service manager: %s", kind, error)
            del self._unsent[kind]

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()

    close_in_child = close


def _find_interval() -> float:
    """Seconds between two WATCHDOG=1: half of the time in WATCHDOG_USEC, or inf without a
    watchdog. In WATCHDOG_USEC, 0 means that there is none."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
        with contextlib.suppress(KeyError, ValueError, OverflowError):
            if (microseconds := int(os.environ["WATCHDOG_USEC"])) > 0:
                return microseconds / 2e6
    return float("inf")
