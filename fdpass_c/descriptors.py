"""The owner of received descriptors, and closing many at once."""

import errno
import operator
import os
import socket
import sys
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import IO, Any, overload

try:
    # The module around it takes a third of this package's time to import.
    from _tracemalloc import is_tracing as is_tracing
except ImportError:  # PyPy

    def is_tracing() -> bool:
        return False


from fdpass_c._native import ffi, lib
from fdpass_c.errors import describe_errno
from fdpass_c.owning import PASS_ON, Closing
from fdpass_c.shapes import UNFIT, pack_ints
from fdpass_c.waiting import HasFileno, fileno, is_from

_TAKEN = lib.FDP_TAKEN
_IS_PYPY = sys.implementation.name == "pypy"
_drop = lib.fdp_drop_owner

_INTS = ffi.typeof("int[]")


def as_ints(fds: list[Any]) -> Any:
    """An array of int for the C core. TypeError if an element is not an int, OverflowError if it is
    too large.

    cffi itself converts a long list three times as slowly, and accepts any object with __int__.
    """
    try:
        return ffi.from_buffer(_INTS, pack_ints[len(fds)](*fds))
    except UNFIT:
        # operator.index, because PyPy's array accepts any object with __int__.
        return ffi.from_buffer(_INTS, array("i", map(operator.index, fds)))


# The types that callers mostly pass. A fast path can check for them in place of calling as_list.
LISTS = (list, tuple)


def _name(row: int | None) -> str:
    return "fds" if row is None else f"fds[{row}]"


def as_list(fds: Iterable[Any], row: int | None = None) -> list[Any]:
    """A list of the descriptors that a caller passes. TypeError for a single one without a list.
    row: the position of fds among those of many messages.

    A file or a Channel must not be iterated, because that reads from it, and the ints in bytes are
    no descriptors.
    """
    if type(fds) in LISTS:
        return [*fds]
    wrong = isinstance(fds, str | bytes | bytearray)
    wrong = wrong or (hasattr(fds, "fileno") and not isinstance(fds, Descriptors))
    if wrong or not (hasattr(fds, "__iter__") or hasattr(fds, "__getitem__")):
        raise TypeError(
            f"{_name(row)} is of type {type(fds).__name__}: pass a list, even for one descriptor"
        )
    return [*fds]


def as_fd_list(
    fds: Iterable[int | HasFileno],
    find: Callable[[int | HasFileno], int] = fileno,
    row: int | None = None,
) -> list[int]:
    """What find returns for each. If it raises a TypeError, that names the element. row: as for
    as_list."""
    listed = []
    for position, fd in enumerate(as_list(fds, row)):
        try:
            listed.append(find(fd))
        except TypeError as error:
            raise TypeError(f"{_name(row)}[{position}]: {error}") from None
    return listed


def as_fd_ints(fds: list[Any]) -> Any:
    """As as_ints, but accepts objects with fileno() too."""
    try:
        return as_ints(fds)
    except TypeError:
        return as_ints(as_fd_list(fds))


def check_open(ints: Any, count: int) -> None:
    """OSError: EBADF: one of the first count ints is not an open descriptor. The error says which.

    To be called after a send has failed with EBADF, which can also be about the socket.
    """
    for fd in ffi.unpack(ints, count):
        try:
            os.get_inheritable(fd)
        except OSError as error:
            if not is_from(error, os.get_inheritable):
                raise
            text = describe_errno(errno.EBADF, f"{fd} in fds is not open")
            raise OSError(errno.EBADF, text) from None


def close_fds(fds: Iterable[int | HasFileno]) -> None:
    """Closes descriptors with few system calls: runs of consecutive numbers are closed together.

    It does not report descriptors that were not open: close_range (Linux 5.9) succeeds for
    them too, and after an error of close() on Linux the descriptor is closed anyway (man 2 close).

    Args:
        fds: Ints or objects with fileno(). Negative ints are skipped. An object is not told
            that its descriptor was closed: close or detach a socket or file by its own methods.
            For a Descriptors this is its close().

    Raises:
        TypeError: An element has the wrong type. Nothing was closed.
    """
    if isinstance(fds, Descriptors):
        fds.close()  # Otherwise it would close the same numbers once more, later.
        return
    listed = as_list(fds)
    lib.fdp_close_fds(as_fd_ints(listed), len(listed))


# Capacities of recycled memory: enough for most messages, and for any frame.
FEW = 4
MANY = 253

# Memory of these capacities that owns nothing, to be used again. pop and append are atomic, so two
# threads, or a thread and its signal handler, never get the same.
few: list[Any] = []
many: list[Any] = []

take_few: Callable[[], Any] = few.pop
take_many: Callable[[], Any] = many.pop

# Limits the memory that is kept after a time with many owners.
_SPARE = 64


def new_memory(capacity: int) -> Any:
    """Memory for that many descriptors, as a struct fdp_owner * that holds none."""
    plain = ffi.new("struct fdp_owner *", {"capacity": capacity, "fds": capacity})
    # The inner destructor is a function of the core, which closes without running Python code. In a
    # reference cycle it may run before the outer one, which therefore keeps plain alive.
    return ffi.gc(ffi.gc(plain, _drop), partial(_warn, plain))


def _show(fds: list[int]) -> str:
    return ", ".join("taken" if fd == _TAKEN else str(fd) for fd in fds)


def _warn(memory: Any, closer: object) -> None:
    """Warns if memory still owns descriptors. closer: closes them when it is dropped."""
    if memory.count == 0 or ffi is None:  # None: the interpreter is shutting down.
        return
    fds = ffi.unpack(memory.fds, memory.count)
    if fds.count(_TAKEN) < len(fds):
        where = _tell_where(closer) if is_tracing() else ""
        # First, because the traceback of a warning that is an error keeps memory alive.
        _drop(memory)
        warnings.warn(
            f"unclosed <Descriptors [{_show(fds)}]>{where}",
            ResourceWarning,
            source=closer,
            stacklevel=2,
        )


def _tell_where(made: object) -> str:
    try:
        import tracemalloc
    except ImportError:  # The interpreter is shutting down.
        return ""
    origin = tracemalloc.get_object_traceback(made)
    return "\n".join(["", "received at:", *origin.format()]) if origin else ""


def get_memory(spare: list[Any], capacity: int) -> Any:
    """As new_memory, but takes memory from spare if there is some."""
    # While tracemalloc traces, it must be new: a warning then says where it was allocated.
    try:
        return new_memory(capacity) if is_tracing() else spare.pop()
    except IndexError:
        return new_memory(capacity)


def recycle(memory: Any, spare: list[Any] | None) -> None:
    """Closes what memory owns. spare: the list it came from, to which it goes back if it may."""
    _drop(memory)
    if spare is not None and len(spare) < _SPARE:
        spare.append(memory)
    else:
        ffi.gc(memory, None)  # There is nothing to warn about.


class Descriptors(Closing, Sequence[int]):
    """Owns received descriptors, and closes those that were not taken out of it.

    It is a sequence of ints, in the order in which they were sent. Reading one (fds[0], iterating)
    borrows it. take, take_all, as_socket and as_file hand it over to the caller. Positions do not
    change; reading one that was taken is a ValueError.

    A context manager: its exit calls close(). If it is dropped while open, its descriptors are
    closed with a ResourceWarning, which says where they were received if tracemalloc is on (-X
    tracemalloc). It cannot be copied or pickled (TypeError), because two owners would close the
    same descriptors.

    Threads may share it for reading. Only one thread at a time may take or close.
    """

    __slots__ = ("__weakref__", "_memory", "_spare")
    _instead = PASS_ON

    def __init__(self, fds: Iterable[int]) -> None:
        """Takes ownership of descriptors.

        Args:
            fds: Ints, which the caller no longer closes.

        Raises:
            TypeError: An element is not an int, or fds is a Descriptors, which owns them.
        """
        if isinstance(fds, Descriptors):
            raise TypeError("a Descriptors owns its descriptors: pass what its take_all() returns")
        listed = as_list(fds)
        ints = as_ints(listed)
        self._memory: Any = new_memory(len(listed))
        self._spare: list[Any] | None = None
        ffi.memmove(self._memory.fds, ints, len(listed) * ffi.sizeof("int"))
        self._memory.count = len(listed)

    def __len__(self) -> int:
        """The number of descriptors received, including those taken; 0 after close()."""
        memory = self._memory
        return 0 if memory is None else memory.count

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        """The descriptor at a position, or those of a slice, borrowed."""
        memory = self._open()
        if isinstance(index, slice):
            return [self[at] for at in range(memory.count)[index]]
        fd: int = memory.fds[self._find(index)]
        if fd == _TAKEN:
            raise ValueError(f"descriptor {index} was taken")
        return fd

    def __iter__(self) -> Iterator[int]:
        """The descriptors in the order in which they were sent, borrowed."""
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
        """The index, counted from the front. IndexError if there is no such position."""
        count: int = self._open().count
        try:
            fits = -count <= index < count
        except TypeError:
            raise TypeError(f"the position of a descriptor is an int, not {index!r}") from None
        if not fits:
            raise IndexError(f"no descriptor at position {index}: there are {count}")
        return index % count

    @property
    def closed(self) -> bool:
        """Whether close() or take_all() was called."""
        return self._memory is None

    def fileno(self) -> int:
        """Returns the descriptor, borrowed, if exactly one was received.

        Raises:
            ValueError: There are none or several, or it was taken, or this object is closed.
        """
        if self._open().count != 1:
            raise ValueError(f"fileno() needs exactly one descriptor, there are {len(self)}")
        return self[0]

    def dup(self, index: int = 0) -> int:
        """Copies the descriptor at index. The caller owns the copy, which is close-on-exec.

        Args:
            index: The position; negative positions count from the end.

        Raises:
            IndexError: There is no such position.
            ValueError: It was taken, or this object is closed.
            OSError: EMFILE: the descriptor table is full.
        """
        return os.dup(self[index])

    def take(self, index: int = 0) -> int:
        """Hands over the descriptor at index as an int, which the caller owns and closes.

        If a signal handler raises an exception at the moment of the return, the int is lost.
        as_socket and as_file do not have that moment.

        Args:
            index: The position; negative positions count from the end.

        Raises:
            IndexError: There is no such position.
            ValueError: It was taken, or this object is closed.
        """
        self[index]
        self._stop_warning(left=1)
        fd: int = lib.fdp_take_fd(self._memory, self._find(index))
        return fd

    def _stop_warning(self, left: int = 0) -> None:
        """If at most left descriptors are still owned, removes the finaliser that warns.

        An exception that a signal handler raises inside a finaliser written in Python is swallowed.
        """
        memory = self._memory
        count = memory.count
        if left >= count or ffi.unpack(memory.fds, count).count(_TAKEN) + left >= count:
            self._spare = None  # Memory without that finaliser must not be used again.
            ffi.gc(memory, None)

    def take_all(self) -> list[int]:
        """Hands over all descriptors that were not taken, as ints that the caller closes.

        If a signal handler raises an exception at the moment of the return, they are lost.

        Raises:
            ValueError: This object is closed.
        """
        memory = self._open()
        fds = [fd for fd in ffi.unpack(memory.fds, memory.count) if fd != _TAKEN]
        self._stop_warning(left=memory.count)
        memory.count = 0
        self._memory = None
        return fds

    def as_socket(self, index: int = 0) -> socket.socket:
        """Hands over the descriptor at index as a socket.socket, which owns it from then on.

        Its family, type and protocol are read from the descriptor. After an exception the
        descriptor still belongs to this object.

        Args:
            index: The position; negative positions count from the end.

        Raises:
            OSError: ENOTSOCK: the descriptor is not a socket.
            IndexError: There is no such position.
            ValueError: It was taken, or this object is closed.
        """
        sock = socket.socket.__new__(socket.socket)
        initialize(sock, self, index)
        return sock

    def as_file(self, index: int = 0, mode: str = "rb", **options: Any) -> IO[Any]:
        """Hands over the descriptor at index as a file object, which owns it from then on.

        The position in the file is that of the sender: both descriptors share it (man 2 open, "open
        file description"). After an exception of open() the descriptor still belongs to this
        object.

        Args:
            index: The position among the descriptors; negative positions count from the end.
            mode: As for open().
            **options: As for open(): buffering, encoding, errors and newline.

        Raises:
            OSError: As for open(), for example EISDIR for a directory.
            IndexError: There is no such position.
            ValueError: It was taken, this object is closed, or open() refuses the mode.
        """
        fd = self[index]
        if not options.get("closefd", True) or "opener" in options:
            raise ValueError("the file will own the descriptor: without closefd=False and opener")
        # open() closes the descriptor after some errors: try it first with closefd=False.
        open(fd, mode, **{**options, "closefd": False}).close()
        opener = partial(lib.fdp_open_fd, self._memory, self._find(index))
        self._stop_warning(left=1)
        return _named_by_fd(open(b"fd", mode, opener=opener, **options))

    def close(self) -> None:
        """Closes every descriptor that was not taken. Calling it again does nothing."""
        memory = self._memory
        if memory is not None:
            self._memory = None
            recycle(memory, self._spare)


def initialize(sock: socket.socket, fds: Descriptors, index: int, *kind: int) -> None:
    """Does what as_socket says, for a socket object whose __init__ was not called yet.

    kind: the family, type and protocol, if they are known.
    """
    fd = fds[index]
    memory, position = fds._memory, fds._find(index)
    blocking = not _IS_PYPY or os.get_blocking(fd)
    try:
        sock.__init__(*kind, fileno=fd)  # type: ignore[misc]
        if not blocking:
            os.set_blocking(fd, False)  # PyPy has made it blocking, for the sender too.
        lib.fdp_take_fd(memory, position)
        fds._stop_warning()
    except BaseException:
        # If fds still owns the descriptor, the socket must not own it too. socket.socket.detach,
        # because the method of a subclass may need attributes that are not set yet.
        if memory.fds[position] >= 0:
            socket.socket.detach(sock)
        raise


def _named_by_fd(file: IO[Any]) -> IO[Any]:
    """Sets the name of file to its descriptor, as open() does if it is called with an int.

    gzip and tarfile write a name that is text into what they produce.
    """
    buffer: Any = getattr(file, "buffer", file)
    raw: Any = getattr(buffer, "raw", buffer)
    raw.name = file.fileno()
    return file


_new = Descriptors.__new__


def own(memory: Any, spare: list[Any] | None = None) -> Descriptors:
    """Makes a Descriptors of memory. spare: the list that the memory goes back to."""
    owner = _new(Descriptors)
    owner._memory = memory
    owner._spare = spare
    return owner


def join(parts: list[Any]) -> Any:
    """Moves all descriptors of parts to new memory."""
    joined = new_memory(sum([part.count for part in parts]))
    for part in parts:
        lib.fdp_move_fds(joined, part)
        ffi.gc(part, None)  # There is nothing to warn about.
    return joined
