"""What to do after EAGAIN and EINTR: signals, timeouts, non-blocking sockets."""

import errno
import io
import math
import operator
import os
import select
import socket
import time
from collections.abc import Callable
from types import BuiltinFunctionType
from typing import Any, Protocol

from fdpass_c._native import lib
from fdpass_c.errors import describe_errno, raise_oserror

# POLLIN and POLLOUT. Not from select, because gevent and eventlet may have removed them there.
READABLE = 0x1
WRITABLE = 0x4

_TLS = "speaks TLS: send and receive through it, or unwrap() it and pass the socket that it gives"
_FRAMES = "frames what goes through it: use its own methods, or pass the socket or number below it"
_BUFFERS = "buffers what goes through it: flush() it and pass its fileno()"
_TRANSFORMS = "buffers or compresses what goes through it: write through it, or pass a raw file"

# As an int, because & of an enum's member is a slow call.
_DONTWAIT = int(socket.MSG_DONTWAIT)


class HasFileno(Protocol):
    """A socket, a file or any other object that has a descriptor."""

    def fileno(self) -> int: ...


def fileno(obj: int | HasFileno) -> int:
    """The descriptor of an int, of an object with __index__, or of one with fileno().

    TypeError for anything else. An object that merely converts to int, such as a Decimal, is no
    descriptor.
    """
    if isinstance(obj, int):
        return obj
    if hasattr(type(obj), "__index__"):
        return operator.index(obj)  # type: ignore[arg-type]
    try:
        method = obj.fileno
    except AttributeError:
        raise TypeError(
            f"a descriptor is an int or has a fileno() method, not {type(obj).__name__}"
        ) from None
    fd: int = method()
    if not isinstance(fd, int):
        raise TypeError(f"fileno() returned {type(fd).__name__}, not int")
    return fd


def raw_fileno(obj: int | HasFileno) -> int:
    """The descriptor of an object that is written to or received from directly.

    TypeError for an object that encrypts, frames, compresses, encodes or buffers: its bytes must go
    through its own methods. The message says what to pass instead.
    """
    kind = type(obj)
    if kind is socket.socket:
        return obj.fileno()  # type: ignore[union-attr]
    if kind is int:
        return obj  # type: ignore[return-value]
    if reason := _find_layer(obj):
        raise TypeError(f"{kind.__name__} {reason}")
    return fileno(obj)


# These are methods and not types, because gevent's and trio's sockets are not a socket.socket, and
# not every TLS object is an ssl.SSLSocket.
_LAYERS = {
    "getpeercert": _TLS,
    "unwrap": _TLS,
    "do_handshake": _TLS,
    "send_bytes": _FRAMES,
    "send_many": _FRAMES,
    "rollover": _BUFFERS,  # Before Python 3.11, a SpooledTemporaryFile is no io.IOBase.
}


def _find_layer(obj: object) -> str | None:
    """What to tell the caller about an object that changes or keeps the bytes that go through it.
    None if it does not."""
    for name, reason in _LAYERS.items():
        if hasattr(obj, name):
            return reason
    if hasattr(obj, "flush"):
        for name in ("buffer", "raw"):
            if hasattr(obj, name):
                return _find_layer(getattr(obj, name)) or _BUFFERS
    if isinstance(obj, socket.SocketIO):
        return _find_layer(obj._sock)  # type: ignore[attr-defined]
    if isinstance(obj, io.IOBase) and not isinstance(obj, io.RawIOBase):
        return _TRANSFORMS
    return None


def is_from(error: BaseException, call: Callable[..., Any]) -> bool:
    """Whether it was call that raised error, which the function that made the call has caught.

    A signal handler that ran during the call may have raised an error of the same type. Its
    traceback then has one frame more, that of the handler.
    """
    frames = error.__traceback__
    inner = frames and frames.tb_next
    if inner is None:
        return True  # The call is in C.
    code = getattr(call, "__code__", None)
    return inner.tb_next is None and inner.tb_frame.f_code is code


class Deadline:
    """Waits as the socket's own timeout says, counted from the creation of this object.

    As in the standard library: None waits for ever, 0 never waits, anything else is a number of
    seconds in all. The timeout and the descriptor are asked for again at every wait, because a
    signal handler may have changed or closed them. What is not a socket has no timeout of its own.
    """

    def __init__(
        self,
        sock: int | HasFileno,
        event: int,
        flags: int = 0,
        at_most: float | None = None,
    ) -> None:
        """flags: those of the caller; with MSG_DONTWAIT it never waits. at_most: the longest wait
        in seconds, after which the caller tries again."""
        self._sock = sock
        self._event = event
        self._at_most = at_most
        self._never = bool(flags & _DONTWAIT)
        self._raised = 0
        # How many bytes the caller has written: characters_written of the errors. None: they have
        # none.
        self.written: int | None = None
        self._start = time.monotonic()

    def has_raised(self, error: BaseException) -> bool:
        """Whether this object raised error. A signal handler may raise the same type."""
        return self._raised == id(error)

    def _own(self, error: OSError) -> OSError:
        """Notes error, which the caller raises, as its own.

        By its id: with a reference there would be a cycle, because the traceback of error refers to
        this object.
        """
        self._raised = id(error)
        if self.written is not None:
            error.characters_written = self.written  # type: ignore[attr-defined]
        return error

    def look(self) -> float | None:
        """How many seconds are left; None: it waits for ever.

        BlockingIOError if the timeout is 0, TimeoutError if no time is left.
        """
        timeout: float | None = self._sock.gettimeout()  # type: ignore[union-attr]
        if timeout is None:
            return None
        if timeout == 0:
            raise self._own(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
        left = self._start + timeout - time.monotonic()
        if left <= 0:
            raise self._own(TimeoutError("timed out"))
        return left

    def pause(self, seconds: float) -> None:
        """Waits a moment, if no event reports that another try is worthwhile. Raises as look()."""
        left = self.look()
        time.sleep(seconds if left is None else min(seconds, left))

    def handle(self, code: int) -> None:
        """Waits after a call failed with errno code, and returns if another try is worthwhile.

        BlockingIOError if the socket does not wait, TimeoutError("timed out") if it has waited long
        enough, and the OSError of any other errno.
        """
        if code == errno.EINTR:
            # The signal's handler has run before this method was called.
            return
        if code != errno.EAGAIN or self._never or not hasattr(self._sock, "gettimeout"):
            raise self._own(OSError(code, describe_errno(code)))
        left = self.look()
        fd = fileno(self._sock)
        if fd < 0:  # It was closed since the last try. poll would raise a ValueError.
            raise self._own(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        if left is None and os.get_blocking(fd):
            # The call has waited in the kernel, and the socket's SO_RCVTIMEO or SO_SNDTIMEO is
            # over.
            raise self._own(OSError(code, os.strerror(code)))
        if self._at_most is not None:
            left = self._at_most if left is None else min(left, self._at_most)
        if not _wait(fd, self._event, left):
            self.look()


# Seconds, about 24 days: poll counts milliseconds in an int.
_LONGEST_WAIT = 2_000_000.0


def _wait(fd: int, event: int, timeout: float | None) -> bool:
    """Whether another try is worthwhile: fd is ready in time, or a signal came meanwhile."""
    # Rounded up, because PyPy's poll rounds down, and would return before the time is over.
    most = -1 if timeout is None else math.ceil(min(timeout, _LONGEST_WAIT) * 1000)
    # Looked up here because gevent replaces it.
    poll = getattr(select, "poll", None)
    if isinstance(poll, BuiltinFunctionType):
        # Python's own goes on after a signal. If the handler has closed fd, it waits for whoever
        # has the number then.
        code = lib.fdp_poll(fd, event, most)
        if code < 0 and code != -errno.EINTR:
            raise_oserror(-code)
        return bool(code)
    if poll is not None:
        poller = poll()
        poller.register(fd, event)
        return bool(poller.poll(None if most < 0 else most))
    readers, writers = ([fd], []) if event == READABLE else ([], [fd])
    return any(select.select(readers, writers, [], timeout))


def flags_of_try(sock: int | HasFileno, flags: int) -> int:
    """The flags of one try: with MSG_DONTWAIT if sock has a timeout, because another process may
    have made the descriptor blocking. The try would wait for longer than the timeout then."""
    if getattr(sock, "gettimeout", _wait_for_ever)() is None:
        return flags
    return flags | _DONTWAIT


def _wait_for_ever() -> None:
    """The gettimeout of what has no timeout."""


def persist(
    sock: int | HasFileno,
    event: int,
    code: int,
    flags: int,
    attempt: Callable[[int], int],
    *,
    deadline: Deadline | None = None,
    last: int = 0,
) -> int:
    """Calls attempt, after a first try that returned code, until it succeeds.

    It waits between the tries as the socket's timeout says, and raises an OSError if another try is
    useless. attempt: a function of the flags of one try, which asks sock for its descriptor and
    calls the C core. deadline: one that has begun earlier. last: a negative errno that ends it
    without an error.

    Returns the result of the last try.
    """
    if code in (-errno.EAGAIN, -errno.EMSGSIZE):  # On a blocking socket the call itself waits.
        code = attempt(flags_of_try(sock, flags))
    if code >= 0:
        return code
    deadline = deadline or Deadline(sock, event, flags)
    while code < 0 and code != last:
        deadline.handle(-code)
        code = attempt(flags_of_try(sock, flags))
    return code
