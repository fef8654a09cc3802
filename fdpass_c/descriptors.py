"""The owner of received descriptors, and closing many at once."""

import os
import socket
import struct
import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import IO, Any, overload

try:
    import tracemalloc
except ImportError:  # PyPy
    tracemalloc = None  # type: ignore[assignment]

from fdpass_c._native import ffi, lib
from fdpass_c.errors import NotCopied
from fdpass_c.waiting import HasFileno, fileno

_TAKEN = lib.FDP_TAKEN
_drop = lib.fdp_drop_owner

_INTS = ffi.typeof("int[]")


def as_ints(fds: list[Any]) -> Any:
    """fds for a parameter const int *, TypeError for what is no int, OverflowError for a large one.

    cffi reads a long list three times as slowly as struct does, and takes whatever has __int__.
    """
    try:
        return ffi.from_buffer(_INTS, struct.pack(f"{len(fds)}i", *fds))
    except struct.error:
        return ffi.from_buffer(_INTS, array("i", fds))


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
        ints = as_ints(listed)
    except TypeError:
        ints = as_fd_list(listed)
    lib.fdp_close_fds(ints, len(listed))


# Capacities of recycled memory: what most messages have, and what a frame has.
FEW = 4
MANY = 253

# Closed memory of these capacities, to use again. pop and append are atomic, so that threads and
# signal handlers never get the same.
few: list[Any] = []
many: list[Any] = []

# So that an hour with many owners does not keep their memory for ever.
_SPARE = 64


def new_memory(capacity: int) -> Any:
    """Memory for that many descriptors, as a struct fdp_owner * that holds none."""
    plain = ffi.new("struct fdp_owner *", {"capacity": capacity, "fds": capacity})
    # The inner destructor is the core's own: it closes without a line of Python.
    return ffi.gc(ffi.gc(plain, _drop), _warn)


def _show(fds: list[int]) -> str:
    return ", ".join("taken" if fd == _TAKEN else str(fd) for fd in fds)


def _warn(memory: Any) -> None:
    if memory.count == 0 or ffi is None:  # None: the interpreter ends, and nobody is left to warn.
        return
    fds = ffi.unpack(memory.fds, memory.count)
    if fds.count(_TAKEN) < len(fds):
        tracing = tracemalloc is not None and tracemalloc.is_tracing()
        origin = tracemalloc.get_object_traceback(memory) if tracing else None
        where = "\n".join(["", "received at:", *origin.format()]) if origin else ""
        _drop(memory)  # First: the warning may be made an error, whose traceback keeps memory.
        warnings.warn(
            f"unclosed <Descriptors [{_show(fds)}]>{where}",
            ResourceWarning,
            source=memory,
            stacklevel=2,
        )


is_tracing = (lambda: False) if tracemalloc is None else tracemalloc.is_tracing


def get_memory(spare: list[Any], capacity: int) -> Any:
    """As new_memory, but used before where spare has some."""
    # Not where tracemalloc traces: the warning says where memory was made.
    try:
        return new_memory(capacity) if is_tracing() else spare.pop()
    except IndexError:
        return new_memory(capacity)


def recycle(memory: Any, spare: list[Any] | None) -> None:
    """Closes what is in memory, which goes back to spare, the list that it came from, or away."""
    _drop(memory)
    if spare is not None and len(spare) < _SPARE:
        spare.append(memory)
    else:
        ffi.gc(memory, None)  # Nothing is left to warn of.


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

    __slots__ = ("__weakref__", "_memory", "_spare")

    def __init__(self, fds: Iterable[int]) -> None:
        """Takes ownership of fds: ints that the caller no longer closes."""
        self._memory: Any = None
        self._spare: list[Any] | None = None
        listed = [*fds]
        ints = as_ints(listed)
        memory = new_memory(len(listed))
        ffi.memmove(memory.fds, ints, len(listed) * ffi.sizeof("int"))
        memory.count = len(listed)
        self._memory = memory

    def __len__(self) -> int:
        """How many were received, taken ones included; 0 once closed."""
        memory = self._memory
        return 0 if memory is None else memory.count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        if isinstance(index, slice):
            return [*self][index]
        memory = self._open()
        fd: int = memory.fds[self._find(index)]
        if fd == _TAKEN:
            raise ValueError(f"descriptor {index} was taken")
        return fd

    def __iter__(self) -> Iterator[int]:
        memory = self._open()
        fds: list[int] = ffi.unpack(memory.fds, memory.count)
        if _TAKEN in fds:
            raise ValueError(f"descriptor {fds.index(_TAKEN)} was taken")
        return iter(fds)

    def __repr__(self) -> str:
        memory = self._memory
        if memory is None:
            return "<Descriptors closed>"
        return f"<Descriptors [{_show(ffi.unpack(memory.fds, memory.count))}]>"

    def _open(self) -> Any:
        if self._memory is None:
            raise ValueError("the descriptors are closed")
        return self._memory

    def _find(self, index: int) -> int:
        """index as one from the front; IndexError where there is none."""
        count: int = self._open().count
        if not -count <= index < count:
            raise IndexError(f"descriptor {index} of {count}")
        return index % count

    @property
    def closed(self) -> bool:
        """True after close(), and after everything was taken by take_all()."""
        return self._memory is None

    def fileno(self) -> int:
        """The descriptor, borrowed, where exactly one was received; ValueError otherwise."""
        if self._open().count != 1:
            raise ValueError(f"fileno() needs exactly one descriptor, here are {len(self)}")
        return self[0]

    def dup(self, index: int = 0) -> int:
        """A copy of the descriptor at index, close-on-exec, which the caller owns and closes.

        Errors as for take, and OSError (EMFILE) where the table is full.
        """
        return os.dup(self[index])

    def take(self, index: int = 0) -> int:
        """Hands over the descriptor at index: the caller owns and closes the int returned.

        IndexError where there is none, ValueError where it was taken or all are closed. A signal
        handler that raises as the int is returned can lose it: as_socket and as_file cannot.
        """
        self[index]
        self._stop_warning(left=1)
        fd: int = lib.fdp_take_fd(self._memory, self._find(index))
        return fd

    def _stop_warning(self, left: int = 0) -> None:
        """Where no more than so many are left: nothing written in Python runs when this is dropped,
        which would swallow what a signal handler raises there."""
        memory = self._memory
        count = memory.count
        if left >= count or ffi.unpack(memory.fds, count).count(_TAKEN) + left >= count:
            self._spare = None  # What is used again has to warn.
            ffi.gc(memory, None)

    def take_all(self) -> list[int]:
        """Hands over all that was not taken yet, as a list of ints that the caller closes.

        A signal handler that raises as the list is returned can lose them.
        """
        memory = self._open()
        fds = [fd for fd in ffi.unpack(memory.fds, memory.count) if fd != _TAKEN]
        self._stop_warning(left=memory.count)
        memory.count = 0
        self._memory = None
        return fds

    def as_socket(self, index: int = 0) -> socket.socket:
        """Hands over the descriptor at index as a socket.socket, which now owns it.

        Family, type and protocol are read from the descriptor. OSError (ENOTSOCK) where it is no
        socket; then it still belongs to this object.
        """
        fd = self[index]
        memory, position = self._memory, self._find(index)
        sock = socket.socket.__new__(socket.socket)
        try:
            sock.__init__(fileno=fd)  # type: ignore[misc]
            lib.fdp_take_fd(memory, position)
            self._stop_warning()
        except BaseException:
            # Both own it, unless the owner has let go.
            if memory.fds[position] >= 0:
                sock.detach()
            raise
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
        opener = partial(lib.fdp_open_fd, self._memory, self._find(index))
        self._stop_warning(left=1)
        return open(b"fd", mode, opener=opener, **options)

    def close(self) -> None:
        """Closes all that was not taken. Again is harmless."""
        memory = self._memory
        if memory is not None:
            self._memory = None
            recycle(memory, self._spare)

    def __enter__(self) -> "Descriptors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_new = Descriptors.__new__


def own(memory: Any, spare: list[Any] | None = None) -> Descriptors:
    """The owner that shows what memory holds; spare: the list that the memory goes back to."""
    owner = _new(Descriptors)
    owner._memory = memory
    owner._spare = spare
    return owner


def join(parts: list[Any]) -> Any:
    """New memory with all that is in parts, in which nothing is left."""
    joined = new_memory(sum([part.count for part in parts]))
    for part in parts:
        lib.fdp_move_fds(joined, part)
        ffi.gc(part, None)  # Nothing is left to warn of.
    return joined
