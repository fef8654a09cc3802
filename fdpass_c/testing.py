"""For tests of programs that pass descriptors: leaks, full tables, short transfers, hostile peers.

The pytest fixture no_fd_leak and the option --no-fd-leak come from the plugin fdpass_c_pytest,
which is installed with this package and does nothing else.
"""

import array
import contextlib
import errno
import gc
import io
import math
import os
import random
import resource
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile

from fdpass_c.descriptors import close_fds
from fdpass_c.errors import MAX_FDS

try:
    import tracemalloc
except ImportError:  # PyPy
    tracemalloc = None  # type: ignore[assignment]

__all__ = [
    "ATTACKS",
    "full_table",
    "hostile_peers",
    "interrupted",
    "list_fds",
    "no_leak",
    "shorten",
]


def list_fds() -> dict[int, str]:
    """Returns the open descriptors of this process, and what each of them points to."""
    return {fd: file.what for fd, file in _list_files().items()}


@dataclass
class _File:
    """An open file. Two are equal if they are the same file, even after it was renamed or
    removed."""

    what: str = field(compare=False)
    identity: tuple[str, int, int]


def _list_files(known: Iterable[int] = ()) -> dict[int, _File]:
    """Returns the open files by descriptor. known: descriptors that may be open above the limit. If
    the table is full, they are found only if they are named here."""
    found = {}
    for fd in _list_numbers(known):
        try:
            status = os.fstat(fd)
        except OSError:
            continue  # This is the descriptor that listdir itself had open.
        try:
            what = os.readlink(f"/dev/fd/{fd}")
        except OSError:
            what = "unknown"
        # Anonymous files, such as pidfds and epolls, share one inode, but their kinds differ.
        kind = "file" if what.startswith("/") else what
        found[fd] = _File(what, (kind, status.st_dev, status.st_ino))
    return found


def _list_numbers(known: Iterable[int]) -> list[int]:
    try:
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
    # The table is full, so it has no gaps below the limit.
    return [*takewhile(_is_open, count()), *known]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# PyPy needs several: what an object with a finalizer refers to is collected only after the
# collection that calls the finalizer.
_MOST_COLLECTIONS = 10


@contextmanager
def no_leak() -> Iterator[None]:
    """Raises an AssertionError unless the same descriptors are open after the block as before it.

    The text names the descriptors that were left open, or those that were closed although they were
    open before the block. If an object holds a leaked descriptor, and tracemalloc is on
    (-X tracemalloc), the text says where that object was made.
    """
    gc.collect()
    before = _list_files()
    yield
    for _ in range(_MOST_COLLECTIONS):
        gc.collect()
        after = _list_files(before)
        leaked = {fd: file.what for fd, file in after.items() if before.get(fd) != file}
        if not leaked:
            break
    lost = {fd: file.what for fd, file in before.items() if after.get(fd) != file}
    if leaked:
        raise AssertionError(f"left open: {leaked}{''.join(map(_find_origin, leaked))}")
    if lost:
        raise AssertionError(f"closed, though open before: {lost}")


def _find_origin(fd: int) -> str:
    """Returns a text that says where the object that holds fd was made, or "" if that is
    unknown."""
    for candidate in gc.get_objects():
        # Not isinstance, because a proxy may raise an exception when it is asked for its class.
        if issubclass(type(candidate), (socket.socket, io.FileIO)):
            with contextlib.suppress(Exception):
                if candidate.fileno() == fd:
                    origin = tracemalloc and tracemalloc.get_object_traceback(candidate)
                    where = ["", *origin.format()] if origin else []
                    return "\n".join([f"\n{fd} is held by {candidate!r}", *where])
    return ""


@contextmanager
def full_table(free: int = 0) -> Iterator[None]:
    """Fills the descriptor table, so that only free more descriptors can be opened in the block.

    It lowers RLIMIT_NOFILE, which also limits how many descriptors an ordinary user may have in
    flight. This affects the whole process: no other thread should open anything.

    Args:
        free: How many descriptors can still be opened.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(list_fds()) + 1 + free, hard))
        _fill(fillers)
        for _ in range(free):
            os.close(fillers.pop())
        yield
    finally:
        # First, and without an error for those that the block has closed.
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_fds(fillers)


def _fill(fillers: list[int]) -> None:
    """Copies the first of fillers until the table is full."""
    try:
        while True:
            fillers.append(os.dup(fillers[0]))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise


def shorten(sock: socket.socket) -> None:
    """Gives sock the smallest send buffer, so that longer messages are sent in several pieces.

    Args:
        sock: A socket, whose send buffer stays small.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)


@contextmanager
def interrupted(every: float = 0.001) -> Iterator[None]:
    """Interrupts the main thread's system calls (EINTR) again and again, with SIGALRM.

    A timer that already runs, such as that of pytest-timeout, is suspended while the block runs.

    Args:
        every: The seconds between two signals.

    Raises:
        ValueError: every is not above 0, or this is called in a thread other than the main one.
    """
    if not 0 < every < math.inf:
        raise ValueError(f"every is {every}, not a number of seconds above 0")
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("interrupted() interrupts only the main thread: call it there")
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    before = signal.signal(signal.SIGALRM, lambda _signum, _frame: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, every, every)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


# -- hostile peers -------------------------------------------------------------------------------


def _frame(kind: int, flags: int, fds: int, messages: int, body: bytes) -> bytes:
    """Returns a frame in the format of docs/wire-format.md."""
    return struct.pack("<4sBBHII", b"FDP\1", kind, flags, fds, messages, len(body)) + body


def _message(payload: bytes, fds: int = 0) -> bytes:
    counts = struct.pack("<H", fds) if fds else b""
    return _frame(1, 0, fds, 1, struct.pack("<I", len(payload)) + counts + payload)


def _first(size: int, fds: int, attached: int = 0) -> bytes:
    return _frame(2, 0, attached, 0, struct.pack("<QI", size, fds))


def _send(sock: socket.socket, data: bytes, fds: Iterable[int] = ()) -> None:
    socket.send_fds(sock, [data], list(fds))


def _rubbish(sock: socket.socket, chance: random.Random) -> None:
    sock.sendall(chance.randbytes(chance.randrange(1, 5000)))


def _text(sock: socket.socket, _chance: random.Random) -> None:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: you\r\n\r\n")


def _half(sock: socket.socket, chance: random.Random) -> None:
    data = _message(bytes(100), 3)
    _send(sock, data[: chance.randrange(1, len(data))], [sock.fileno()] * 3)


def _promise(sock: socket.socket, _chance: random.Random) -> None:
    sock.sendall(_first(2**63, 2**31))


def _begin(sock: socket.socket, _chance: random.Random) -> None:
    _send(sock, _first(1, 60_000, MAX_FDS), [sock.fileno()] * MAX_FDS)
    _send(sock, _frame(3, 0, MAX_FDS, 0, b""), [sock.fileno()] * MAX_FDS)


def _every_byte(sock: socket.socket, _chance: random.Random) -> None:
    for byte in _message(b"payload", MAX_FDS):
        _send(sock, bytes([byte]), [sock.fileno()] * MAX_FDS)


def _surplus(sock: socket.socket, chance: random.Random) -> None:
    _send(sock, _message(b"payload", 1), [sock.fileno()] * chance.randrange(2, MAX_FDS))


def _missing(sock: socket.socket, chance: random.Random) -> None:
    _send(sock, _message(b"payload", 10), [sock.fileno()] * chance.randrange(10))


def _mutated(sock: socket.socket, chance: random.Random) -> None:
    whole = [
        _message(b"one", 1),
        _first(9, 2, 1),
        _frame(3, 0, 1, 0, b"2"),
        _frame(4, 0, 0, 0, b""),
    ]
    for _ in range(20):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        _send(sock, bytes(data), [sock.fileno()] * chance.randrange(3))


def _withdrawn(sock: socket.socket, _chance: random.Random) -> None:
    sock.sendall((_first(9, 0) + _frame(4, 0, 0, 0, b"")) * 2000)


def _empty(sock: socket.socket, _chance: random.Random) -> None:
    sock.sendall(_frame(1, 1, 0, 1024, bytes(4)) * 50)


def _out_of_band(sock: socket.socket, _chance: random.Random) -> None:
    sock.send(b"x", socket.MSG_OOB)
    sock.sendall(_message(b"payload"))


def _control(sock: socket.socket, _chance: random.Random) -> None:
    """More descriptors than the frame announces, in two blocks, and credentials."""
    fds = array.array("i", [sock.fileno()])
    blocks: list[tuple[int, int, bytes]] = [
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, fds.tobytes())
    ] * 2
    if hasattr(socket, "SCM_CREDENTIALS"):
        who = struct.pack("iii", os.getpid(), os.getuid(), os.getgid())
        blocks.append((socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who))
    sock.sendmsg([_message(b"payload", 1)], blocks)


def _cycle(sock: socket.socket, _chance: random.Random) -> None:
    """Sends sockets that are in flight in each other, and the connection itself."""
    left, right = socket.socketpair()
    with left, right:
        _send(left, b"x", [left.fileno(), right.fileno()])
        _send(sock, _message(b"payload", 3), [left.fileno(), right.fileno(), sock.fileno()])


def _silence(_sock: socket.socket, _chance: random.Random) -> None:
    pass


ATTACKS: dict[str, Callable[[socket.socket, random.Random], None]] = {
    "silence": _silence,
    "rubbish": _rubbish,
    "text": _text,
    "half a frame": _half,
    "a large promise": _promise,
    "descriptors of a message that never ends": _begin,
    "253 descriptors with every byte": _every_byte,
    "descriptors that no frame announced": _surplus,
    "descriptors that did not come": _missing,
    "mutated frames": _mutated,
    "messages withdrawn": _withdrawn,
    "empty messages": _empty,
    "out of band": _out_of_band,
    "foreign control data": _control,
    "sockets of a cycle": _cycle,
}
"""The attacks of hostile_peers, by name. Each is a function of the connected socket and a
random.Random."""


def hostile_peers(
    connect: Callable[[], socket.socket],
    attacks: Iterable[str] = tuple(ATTACKS),
    *,
    seed: int = 0,
    timeout: float = 5,
) -> Iterator[str]:
    """Attacks the other end of the sockets that connect makes, once for each name.

    Args:
        connect: Makes a connected Unix stream socket, which this function closes.
        attacks: Names out of ATTACKS.
        seed: Seeds the random generator of the attacks that are random.
        timeout: The seconds that one attack may take if the other end does not read.

    Yields:
        The name of each attack, while its connection is still open: check your server then.
    """
    chance = random.Random(seed)
    for name in attacks:
        with connect() as sock:
            sock.settimeout(timeout)
            # An attack may fail: the other end may have closed the connection, stopped reading, or
            # refused descriptors.
            try:
                ATTACKS[name](sock, chance)
            except OSError as error:
                if not _is_ours(error):
                    raise
            yield name


def _is_ours(error: OSError) -> bool:
    """Whether the attack itself raised this error. If a signal handler did, for instance that of a
    test's timeout, the traceback has a frame of other code."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return all(frame.f_globals in (globals(), vars(socket)) for frame in frames)
