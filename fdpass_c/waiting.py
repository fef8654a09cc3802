"""What happens after a system call said "not now": signals, timeouts, non-blocking sockets."""

import errno
import io
import select
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

from fdpass_c.errors import raise_oserror

READABLE = select.POLLIN
WRITABLE = select.POLLOUT

_TLS = "speaks TLS: send and receive through it, or unwrap() it and pass the socket that it gives"
_FRAMES = "frames what goes through it: use its own methods, or pass the socket or number below it"
_BUFFERS = "buffers what goes through it: flush() it and pass its fileno()"
_TRANSFORMS = "buffers or compresses what goes through it: write through it, or pass a raw file"

_WOULD_BLOCK = {errno.EAGAIN, errno.EWOULDBLOCK}


class HasFileno(Protocol):
    """A socket, a file, a pidfd holder: whatever has a descriptor to show."""

    def fileno(self) -> int: ...


def fileno(obj: int | HasFileno) -> int:
    """The descriptor of an int or of anything with fileno(); TypeError for anything else."""
    if isinstance(obj, int):
        return obj
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
    """The descriptor of what one writes to or speaks over, which must be that and nothing more.

    TypeError for an object whose bytes must go through itself, because it encrypts, frames,
    compresses, encodes or buffers them: the text says what to pass instead.
    """
    kind = type(obj)
    if kind is int:
        return obj  # type: ignore[return-value]
    if kind is not socket.socket and (reason := _find_layer(obj)):
        raise TypeError(f"{kind.__name__} {reason}")
    return fileno(obj)


# By what an object can do: gevent's and trio's sockets are no socket.socket, and not every TLS
# object is an ssl.SSLSocket.
_LAYERS = {
    "getpeercert": _TLS,
    "unwrap": _TLS,
    "do_handshake": _TLS,
    "send_bytes": _FRAMES,
    "send_many": _FRAMES,
}


def _find_layer(obj: object) -> str | None:
    """What an object does to the bytes that go through it; None where it does nothing."""
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


class Deadline:
    """Waits as the socket's own timeout says, counted from the making of this object.

    As in the standard library: None waits in the kernel, 0 never waits, anything else waits that
    many seconds in all. What is not a socket has no timeout of its own.
    """

    def __init__(self, sock: int | HasFileno, event: int) -> None:
        self._fd = fileno(sock)
        self._event = event
        timeout: float | None = getattr(sock, "gettimeout", lambda: None)()
        self._until = time.monotonic() + timeout if timeout else None

    def handle(self, code: int) -> None:
        """Returns when the call that failed with errno code is worth another try.

        Raises BlockingIOError where the socket does not wait, TimeoutError("timed out") where it
        waited long enough, and the OSError of any other errno.
        """
        if code == errno.EINTR:
            # The handler has run by the time Python comes back here (PEP 475).
            return
        if code not in _WOULD_BLOCK or self._until is None:
            raise_oserror(code)
        remaining = self._until - time.monotonic()
        if remaining > 0:
            poller = select.poll()
            poller.register(self._fd, self._event)
            if poller.poll(remaining * 1000):
                return
        raise TimeoutError("timed out")


def persist(
    sock: int | HasFileno, event: int, result: int, call: Callable[..., int], *arguments: Any
) -> int:
    """Repeats a call of the C core that returned a negative errno until it returns a count."""
    deadline = Deadline(sock, event)
    while result < 0:
        deadline.handle(-result)
        result = call(*arguments)
    return result
