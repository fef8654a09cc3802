"""The owner of received descriptors, and closing many at once."""

import socket
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, overload

try:
    import tracemalloc
except ImportError:  # PyPy
    tracemalloc = None  # type: ignore[assignment]

from fdpass_c._native import ffi, lib
from fdpass_c.errors import NotCopied
from fdpass_c.waiting import HasFileno, fileno

_TAKEN = -1

_close_fd = lib.fdp_close_fd
_close_fds = lib.fdp_close_fds

_INTS = ffi.typeof("int[]")

# From this length on packing is worth its call.
_LONG = 24


def as_ints(fds: list[Any]) -> Any:
    """fds for a parameter const int *: cffi reads a long list three times as slowly as struct does.

    What is not a list of ints comes back as it is, for cffi to say what is wrong with it.
    """
    if len(fds) < _LONG:
        return fds
    try:
        return ffi.from_buffer(_INTS, struct.pack(f"{len(fds)}i", *fds))
    except struct.error:
        return fds


def as_fd_list(fds: Iterable[int | HasFileno]) -> list[int]:
    """A list of ints from descriptors and objects with fileno(); TypeError names the wrong one."""
    listed = []
    for position, fd in enumerate(fds):
        try:
            listed.append(fileno(fd))
        except TypeError as error:
            raise TypeError(f"fds[{position}]: {error}") from None
    return listed


def close_fds(fds: Iterable[int | HasFileno]) -> None:
    """Closes descriptors in few system calls: neighbours in ascending order go together.

    fds: ints or objects with fileno(); negative ints are skipped. An object is not told: a
    socket.socket or file that owns its descriptor must be closed or detached through itself.

    No error is raised for a descriptor that was not open: close_range (Linux 5.9) does not tell,
    and after an error from close() on Linux the descriptor is gone all the same (man 2 close).
    TypeError for a wrong element, before anything is closed.
    """
    listed: list[Any] = [*fds]
    try:
        _close_fds(as_ints(listed), len(listed))
    except TypeError:
        listed = as_fd_list(listed)
        _close_fds(listed, len(listed))


class Descriptors(NotCopied, Sequence[int]):
    """Owns received descriptors: whatever is not taken out of it is closed with it.

    A sequence of ints, in the order they were sent. Reading one (fds[0], iterating) borrows it;
    take, take_all, as_socket and as_file hand it over to the caller. Positions do not shift:
    reading one that was taken is a ValueError.

    Use it as a context manager or call close(). One that is dropped open is closed with a
    ResourceWarning, which says where it was received when tracemalloc is on (-X tracemalloc).

    It cannot be copied or pickled (TypeError): two owners would close the same descriptors.

    Threads may share one for reading; taking and closing are for one thread at a time.
    """

    __slots__ = ("__weakref__", "_fds")

    def __init__(self, fds: Iterable[int]) -> None:
        """Takes ownership of fds: ints that the caller no longer closes."""
        self._fds: list[int] | None = None
        self._fds = [*fds]

    def __len__(self) -> int:
        """How many were received, taken ones included; 0 once closed."""
        return len(self._fds or ())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [*self][index]
        fd = self._open_fds()[index]
        if fd == _TAKEN:
            raise ValueError(f"descriptor {index} was taken")
        return fd

    def __iter__(self) -> Iterator[int]:
        fds = self._open_fds()
        if _TAKEN in fds:
            raise ValueError(f"descriptor {fds.index(_TAKEN)} was taken")
        return iter(fds)

    def __repr__(self) -> str:
        if self._fds is None:
            return "<Descriptors closed>"
        shown = ", ".join("taken" if fd == _TAKEN else str(fd) for fd in self._fds)
        return f"<Descriptors [{shown}]>"

    def _open_fds(self) -> list[int]:
        if self._fds is None:
            raise ValueError("the descriptors are closed")
        return self._fds

    @property
    def closed(self) -> bool:
        """True after close(), and after everything was taken by take_all()."""
        return self._fds is None

    def fileno(self) -> int:
        """The descriptor, borrowed, where exactly one was received; ValueError otherwise."""
        if len(self._open_fds()) != 1:
            raise ValueError(f"fileno() needs exactly one descriptor, here are {len(self)}")
        return self[0]

    def take(self, index: int = 0) -> int:
        """Hands over the descriptor at index: the caller owns and closes the int returned.

        IndexError where there is none, ValueError where it was taken or all are closed.
        """
        fd = self[index]
        self._open_fds()[index] = _TAKEN
        return fd

    def take_all(self) -> list[int]:
        """Hands over all that was not taken yet, as a list of ints that the caller closes."""
        fds, self._fds = self._open_fds(), None
        return [fd for fd in fds if fd != _TAKEN]

    def as_socket(self, index: int = 0) -> socket.socket:
        """Hands over the descriptor at index as a socket.socket, which now owns it.

        Family, type and protocol are read from the descriptor. OSError (ENOTSOCK) where it is no
        socket; then it still belongs to this object.
        """
        sock = socket.socket(fileno=self[index])
        self._open_fds()[index] = _TAKEN
        return sock

    def as_file(self, index: int = 0, mode: str = "rb", **options: Any) -> IO[Any]:
        """Hands over the descriptor at index as a file object, which now owns it.

        mode and options are those of open(), and what open() refuses (a directory, an unknown
        encoding) still belongs to this object. The position in the file is the one the sender
        left: both descriptors share it (man 2 open, "open file description").
        """
        fd = self[index]
        # Some of its refusals close the descriptor: let it refuse where it may not.
        open(fd, mode, **{**options, "closefd": False}).close()
        file: IO[Any] = open(fd, mode, **options)  # noqa: SIM115
        self._open_fds()[index] = _TAKEN
        return file

    def close(self) -> None:
        """Closes all that was not taken. Again is harmless."""
        fds = self._fds
        if not fds:
            self._fds = None
            return
        count = len(fds)
        # No call between giving them up and closing them, so no signal handler that could raise.
        if count == 1:
            self._fds = None
            _close_fd(fds[0])
        else:
            ints = as_ints(fds)
            self._fds = None
            _close_fds(ints, count)

    def __enter__(self) -> "Descriptors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        try:
            fds = self._fds
        except AttributeError:
            return  # An exception came between making it and giving it something to own.
        try:
            if fds and fds.count(_TAKEN) < len(fds):
                tracing = tracemalloc is not None and tracemalloc.is_tracing()
                origin = tracemalloc.get_object_traceback(self) if tracing else None
                where = "\n".join(["", "received at:", *origin.format()]) if origin else ""
                warnings.warn(
                    f"unclosed {self!r}{where}", ResourceWarning, source=self, stacklevel=2
                )
        finally:
            # Also where the warning is made an error.
            self.close()


_new = Descriptors.__new__


def own(fds: list[int]) -> Descriptors:
    """Descriptors(fds) for the layers above, which give the list away: half the time."""
    owner = _new(Descriptors)
    owner._fds = fds
    return owner
