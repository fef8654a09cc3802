"""The exceptions of this package, beside the OSError family of the system's own refusals.

Whenever one of these is raised by a receiving call, every descriptor that came with the offending
message has been closed.
"""

import errno
import os
from typing import NoReturn

MAX_FDS = 253
"""Descriptors that Linux takes in one message (SCM_MAX_FD)."""


class NotCopied:
    """The base of what owns descriptors: a copy would close them a second time."""

    __slots__ = ()

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError(
            f"cannot copy or pickle a {type(self).__name__}: both would own the same descriptors; "
            "send descriptors over a Channel, or copy one with os.dup"
        )


class FdpassError(Exception):
    """The base of the exceptions that only this package raises."""


class PeerClosedError(FdpassError, EOFError):
    """The peer closed its end, and nothing is left to receive."""


class TruncatedError(FdpassError):
    """A message lost descriptors or bytes on its way in.

    The kernel says MSG_CTRUNC when the message carried more descriptors than there was room for,
    when this process's descriptor table is full (RLIMIT_NOFILE), and when a security module
    refused one. It says MSG_TRUNC when a datagram was longer than the buffer.
    """


class ProtocolError(FdpassError):
    """The peer sent something other than what was agreed."""


class DescriptorTableFullError(FdpassError):
    """This process has no room for the descriptors of the next message (RLIMIT_NOFILE).

    Nothing is lost: the message is still queued, and receiving again after closing some brings it.
    needed: how many descriptors it has still to bring. free: how many the table had room for.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(
            f"the next message brings {needed} descriptors and this process can open {free} more "
            "(RLIMIT_NOFILE); it stays queued until some are closed"
        )
        self.needed = needed
        self.free = free


_EXPLANATIONS = {
    errno.ETOOMANYREFS: "the user has as many descriptors in flight as RLIMIT_NOFILE allows; "
    "they count until the receiver takes them",
    errno.EAFNOSUPPORT: "descriptors travel over Unix domain sockets only",
}


def raise_oserror(code: int, explanation: str | None = None) -> NoReturn:
    """Raises the OSError subclass for a positive errno, with what this package knows of it."""
    explanation = explanation or _EXPLANATIONS.get(code)
    text = os.strerror(code)
    raise OSError(code, f"{text}: {explanation}" if explanation else text)
