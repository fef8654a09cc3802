"""The exceptions of this package. What the system itself refuses is an OSError.

Whenever a receiving call raises one of these, every descriptor that came with the message has been
closed, unless the exception says otherwise.
"""

import errno
import os
from typing import Any, NoReturn

MAX_FDS = 253
"""The most descriptors that Linux accepts in one message (SCM_MAX_FD)."""


ENODATA: int = getattr(errno, "ENODATA", errno.ENOMSG)
"""FreeBSD has no such errno; csrc/compat.h uses ENOMSG instead."""


class FdpassError(Exception):
    """The base class of the exceptions that only this package raises."""


class PeerClosedError(FdpassError, EOFError):
    """The peer closed its end, and there is nothing left to receive."""


class TruncatedError(FdpassError):
    """A message lost descriptors or bytes when it was received. What arrived of it is closed.

    The kernel reports MSG_CTRUNC if the message carried more descriptors than there was room for,
    if this process's descriptor table is full (RLIMIT_NOFILE), or if a security module refused one.
    It reports MSG_TRUNC if a datagram was longer than the buffer.
    """


class ProtocolError(FdpassError):
    """The peer sent something other than what was agreed.

    Every descriptor that was received and not handed out is closed. On a Channel, every later call
    raises the same error.
    """


class DescriptorTableFullError(FdpassError):
    """This process has no room for the descriptors of the next message (RLIMIT_NOFILE).

    Nothing is lost: the message is still queued. Receive again after closing some descriptors.

    Attributes:
        needed: How many descriptors the message still has to bring.
        free: How many the table had room for.
    """

    def __init__(self, needed: int, free: int) -> None:
        text = f"descriptors in the next message: {needed}; more that this process can open: {free}"
        if needed > free:
            text += " (RLIMIT_NOFILE). The message stays queued until some are closed"
        else:
            text += (
                ". But messages that have arrived only in part hold at most half of RLIMIT_NOFILE "
                "and leave 64 places free. The message stays queued"
            )
        super().__init__(text)
        self.needed = needed
        self.free = free

    def __reduce__(self) -> tuple[Any, ...]:
        # Otherwise unpickling calls __init__ with the text, which fails and breaks a
        # ProcessPoolExecutor.
        return type(self), (self.needed, self.free), self.__dict__


_EXPLANATIONS = {
    errno.ETOOMANYREFS: "the user has as many descriptors in flight as RLIMIT_NOFILE allows; "
    "they count until the receiver takes them",
    errno.EPERM: "the receiver may refuse descriptors (receive_fds=False, SO_PASSRIGHTS)",
    errno.EAFNOSUPPORT: "descriptors travel over Unix domain sockets only",
}


def check_fd_count(count: int) -> None:
    """OSError: EINVAL: one message does not take so many descriptors."""
    if count > MAX_FDS:
        raise_oserror(errno.EINVAL, f"{count} descriptors, one message takes at most {MAX_FDS}")


def raise_oserror(code: int, explanation: str | None = None) -> NoReturn:
    """Raises the OSError subclass of a positive errno, with an explanation if there is one."""
    raise OSError(code, describe_errno(code, explanation))


def describe_errno(code: int, explanation: str | None = None) -> str:
    """The text of a positive errno, with an explanation if there is one."""
    explanation = explanation or _EXPLANATIONS.get(code)
    text = os.strerror(code)
    return f"{text}: {explanation}" if explanation else text
