"""Every received descriptor has one owner, and sending never takes one away."""

import gc
import io
import itertools
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Channel, Descriptors, descriptors
from support.descriptors import MakeFiles, identities, identity, is_open
from support.signals import interrupt_call
from support.sockets import Pair


def own(count: int) -> Descriptors:
    """An owner of that many descriptors."""
    return Descriptors([os.open(os.devnull, os.O_RDONLY) for _ in range(count)])


class Holder:
    """An object with fileno() and nothing else."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


def test_sending_borrows(stream: Pair, make_files: MakeFiles) -> None:
    """After a send the caller's descriptors are open as before."""
    files = make_files(3)
    before = identities(files)
    fdpass_c.send_fds(stream[0], [b"x"], files)
    fdpass_c.send_fd(stream[0], files[0])
    assert identities(files) == before


def test_sender_may_close_at_once(stream: Pair, tmp_path: os.PathLike[str]) -> None:
    """A descriptor that the sender closed before the receive arrives all the same."""
    with open(os.path.join(tmp_path, "file"), "wb") as file:
        sent = identity(file.fileno())
        fdpass_c.send_fd(stream[0], file)
    _, fds = fdpass_c.recv_fd(stream[1])
    with fds:
        assert identity(fds[0]) == sent


def test_recv_fds_gives_plain_ints(stream: Pair, file: int) -> None:
    """recv_fds hands over a list of ints that nothing else closes."""
    fdpass_c.send_fds(stream[0], [b"x"], [file, file])
    fds = fdpass_c.recv_fds(stream[1], 1, 2)[1]
    assert [type(fd) for fd in fds] == [int, int]
    for fd in fds:
        os.close(fd)


def test_is_a_sequence() -> None:
    """An owner behaves as the sequence of its descriptors."""
    plain = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    with Descriptors(plain) as fds:
        assert isinstance(fds, Sequence)
        assert len(fds) == 3
        assert list(fds) == plain
        assert fds[0] == plain[0]
        assert [fds[-1], fds[-3]] == [plain[2], plain[0]]
        assert fds[1:] == plain[1:]
        assert list(reversed(fds)) == plain[::-1]
        assert plain[1] in fds
        assert -1 not in fds
        assert fds.index(plain[2]) == 2
        assert fds.count(plain[0]) == 1
        assert bool(fds)
        assert repr(fds) == f"<Descriptors {plain}>"
        for outside in (3, -4):
            with pytest.raises(IndexError):
                fds[outside]


def test_empty() -> None:
    """An owner of nothing is false and has nothing to give."""
    with Descriptors(()) as fds:
        assert not fds
        assert list(fds) == []
        assert fds.take_all() == []
        with pytest.raises(ValueError, match="closed"):
            fds.take()


@pytest.mark.thread_unsafe
def test_close() -> None:
    """close() closes everything, and a second one is harmless, even when numbers were reused."""
    fds = own(3)
    plain = list(fds)
    assert not fds.closed
    fds.close()
    assert fds.closed
    assert not any(is_open(fd) for fd in plain)
    reused = os.open(os.devnull, os.O_RDONLY)
    fds.close()
    assert is_open(reused)
    os.close(reused)


@pytest.mark.thread_unsafe
def test_context_manager() -> None:
    """Leaving the block closes what was not taken, by an exception too."""
    fds = own(2)
    plain = list(fds)
    with pytest.raises(ZeroDivisionError), fds:
        raise ZeroDivisionError
    assert fds.closed
    assert not any(is_open(fd) for fd in plain)


def test_use_after_close() -> None:
    """Every use of a closed owner is a ValueError, but len() and repr()."""
    fds = own(1)
    fds.close()
    uses: list[Callable[[Descriptors], object]] = [
        lambda fds: fds[0],
        lambda fds: fds[:],
        lambda fds: list(fds),
        Descriptors.fileno,
        Descriptors.take,
        Descriptors.take_all,
        Descriptors.as_socket,
        Descriptors.as_file,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="descriptors are closed"):
            use(fds)
    assert len(fds) == 0
    assert repr(fds) == "<Descriptors closed>"


@pytest.mark.thread_unsafe
def test_take() -> None:
    """A descriptor that was taken outlives the owner, and the others keep their positions."""
    with own(3) as fds:
        first, second, third = fds
        assert fds.take(1) == second
        assert (fds[0], fds[2]) == (first, third)
        assert len(fds) == 3
        assert repr(fds) == f"<Descriptors [{first}, taken, {third}]>"
    assert is_open(second)
    assert not is_open(first)
    assert not is_open(third)
    os.close(second)


def test_take_by_default_the_first_and_from_the_end() -> None:
    """take() means the first; negative positions count from the end."""
    with own(3) as fds:
        first, _, third = fds
        assert fds.take() == first
        assert fds.take(-1) == third
    os.close(first)
    os.close(third)


def test_slices_beside_what_was_taken() -> None:
    """A slice reads only its own positions, of an owner and of a batch."""
    with own(3) as fds:
        batch = fdpass_c.Batch([b"0", b"1", b"2"], fds)
        os.close(fds.take(1))
        assert fds[::2] == [fds[0], fds[2]]
        assert batch[::2] == [batch[0], batch[2]]
        for sequence in (fds, batch):
            with pytest.raises(ValueError, match="descriptor 1 was taken"):
                sequence[1:]


def test_use_after_take() -> None:
    """What was taken cannot be had again."""
    uses: list[Callable[[Descriptors], object]] = [
        lambda fds: fds[0],
        lambda fds: fds[:],
        lambda fds: list(fds),
        lambda fds: fds.take(0),
        lambda fds: fds.as_socket(0),
        lambda fds: fds.as_file(0),
    ]
    with own(2) as fds:
        taken = fds.take(0)
        for use in uses:
            with pytest.raises(ValueError, match="descriptor 0 was taken"):
                use(fds)
    os.close(taken)


def test_take_where_there_is_none() -> None:
    """A position out of range is an IndexError, and the owner keeps all."""
    with own(2) as fds:
        for index in (2, -3, 100):
            with pytest.raises(IndexError, match=f"no descriptor at position {index}: there are 2"):
                fds.take(index)
        assert len(list(fds)) == 2


def test_a_mode_for_the_position() -> None:
    """What is no position, such as open()'s second argument, is a TypeError that says so."""
    with own(1) as fds:
        for use in ("take", "dup", "as_file", "as_socket", "__getitem__"):
            with pytest.raises(TypeError, match="the position of a descriptor is an int, not 'rb'"):
                getattr(fds, use)("rb")
        assert len(list(fds)) == 1


@pytest.mark.thread_unsafe
def test_take_all() -> None:
    """take_all() hands over what is left, in order, and closes the owner."""
    with own(3) as fds:
        first, second, third = fds
        taken = fds.take(1)
        assert fds.take_all() == [first, third]
        assert fds.closed
    assert all(is_open(fd) for fd in (first, second, third))
    fdpass_c.close_fds([first, taken, third])


def test_fileno() -> None:
    """fileno() borrows the only descriptor, so that an owner can be passed on itself."""
    with own(1) as fds:
        assert fds.fileno() == fds[0]
        assert os.fstat(fds.fileno())


def test_fileno_of_several() -> None:
    """fileno() of none or several is a ValueError that counts them."""
    for count in (0, 2):
        with own(count) as fds, pytest.raises(ValueError, match=f"there are {count}"):
            fds.fileno()


def test_pass_on(stream: Pair, file: int) -> None:
    """What recv_fd returned can be sent on as it is."""
    fdpass_c.send_fd(stream[0], file)
    with fdpass_c.recv_fd(stream[1])[1] as fds:
        fdpass_c.send_fd(stream[0], fds)
        with fdpass_c.recv_fd(stream[1])[1] as again:
            assert identity(again[0]) == identity(file)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_as_socket(kind: socket.SocketKind, stream: Pair) -> None:
    """as_socket() makes a socket of the right family and type that owns the descriptor."""
    with socket.socket(socket.AF_INET, kind) as sent:
        sent.bind(("127.0.0.1", 0))
        fdpass_c.send_fd(stream[0], sent)
        _, fds = fdpass_c.recv_fd(stream[1])
        with fds, fds.as_socket() as received:
            assert (received.family, received.type) == (socket.AF_INET, kind)
            assert received.getsockname() == sent.getsockname()
            fds.close()
            assert is_open(received.fileno())


@pytest.mark.thread_unsafe
def test_as_socket_of_a_file() -> None:
    """A descriptor that is no socket is refused and still belongs to the owner."""
    with own(1) as fds:
        with pytest.raises(OSError, match=r"[Ss]ocket operation on non-socket"):
            fds.as_socket()
        assert is_open(fds[0])


def test_as_file(stream: Pair, tmp_path: os.PathLike[str]) -> None:
    """as_file() makes a file that owns the descriptor and shares the sender's position."""
    path = os.path.join(tmp_path, "file")
    with open(path, "wb") as file:
        file.write(b"0123456789")
    with open(path, "rb", buffering=0) as sent:
        sent.seek(4)
        fdpass_c.send_fd(stream[0], sent)
    _, fds = fdpass_c.recv_fd(stream[1])
    with fds, fds.as_file() as received:
        fds.close()
        assert received.read() == b"456789"


def test_as_file_takes_the_options_of_open(stream: Pair, tmp_path: os.PathLike[str]) -> None:
    """mode and options are passed to open()."""
    with open(os.path.join(tmp_path, "file"), "w+b") as sent:
        fdpass_c.send_fd(stream[0], sent)
    _, fds = fdpass_c.recv_fd(stream[1])
    with fds, fds.as_file(0, "w", encoding="utf-16") as received:
        assert isinstance(received, io.TextIOWrapper)
        assert received.encoding == "utf-16"


def test_as_file_has_no_invented_name(file: int) -> None:
    """The file's name is its descriptor, as if open() had made it of an int: gzip and tarfile write
    a name that is text into what they make."""
    kinds: list[dict[str, Any]] = [{}, {"buffering": 0}, {"mode": "r"}, {"mode": "r+b"}]
    for options in kinds:
        with Descriptors([os.dup(file)]) as fds, fds.as_file(**options) as received:
            assert received.name == received.fileno()


@pytest.mark.thread_unsafe
def test_as_file_of_a_directory(tmp_path: os.PathLike[str]) -> None:
    """A directory is an IsADirectoryError and still belongs to the owner."""
    with Descriptors([os.open(tmp_path, os.O_RDONLY)]) as fds:
        for mode in ("rb", "wb"):
            with pytest.raises(IsADirectoryError):
                fds.as_file(0, mode)
            assert is_open(fds[0])


@pytest.mark.thread_unsafe
def test_as_file_with_wrong_options() -> None:
    """Options that open() refuses leave the descriptor open, with its owner."""
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("nonsense", {}),
        ("rb", {"encoding": "utf-8"}),
        ("r", {"encoding": "no-such"}),
        ("rb", {"closefd": False}),
        ("rb", {"opener": os.open}),
    ]
    for mode, options in wrong:
        fds = own(1)
        fd = fds[0]
        with pytest.raises((ValueError, LookupError)):
            fds.as_file(0, mode, **options)
        assert is_open(fd)
        with pytest.warns(ResourceWarning, match="unclosed <Descriptors"):  # noqa: PT031
            del fds
            gc.collect()
        assert not is_open(fd)


@pytest.mark.thread_unsafe
def test_as_file_of_a_pipe_to_read_and_write() -> None:
    """A pipe opened in a mode that needs seeking is refused and still belongs to the owner."""
    with Descriptors(os.pipe()) as fds:
        with pytest.raises(io.UnsupportedOperation):
            fds.as_file(0, "r+b")
        assert is_open(fds[0])


@pytest.mark.thread_unsafe
def test_dropped_open() -> None:
    """An owner dropped open closes its descriptors. A ResourceWarning there names them."""
    fds = own(2)
    plain = list(fds)
    text = f"unclosed <Descriptors \\[{plain[0]}, {plain[1]}"
    with pytest.warns(ResourceWarning, match=text) as caught:  # noqa: PT031
        del fds
        gc.collect()
    assert caught[0].filename == __file__
    assert not any(is_open(fd) for fd in plain)


def _same(sock: socket.socket) -> socket.socket:
    return sock


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    ("make", "send", "receive"),
    [
        (_same, fdpass_c.send_fd, lambda sock: fdpass_c.recv_fd(sock)[1]),
        (_same, fdpass_c.send_fd, lambda sock: fdpass_c.recv_many(sock, 1)),
        (Channel, lambda channel, fd: channel.send(b"", [fd]), lambda channel: channel.recv()[1]),
        (Channel, lambda channel, fd: channel.send(b"", [fd]), Channel.recv_many),
    ],
    ids=["recv_fd", "recv_many", "Channel.recv", "Channel.recv_many"],
)
def test_dropped_open_under_tracemalloc(
    make: Callable[[socket.socket], Any],
    send: Callable[[Any, int], object],
    receive: Callable[[Any], Any],
    stream: Pair,
    file: int,
) -> None:
    """With tracemalloc on, the warning says where the descriptors were received."""
    tracemalloc = pytest.importorskip("tracemalloc")
    with make(stream[0]) as sender, make(stream[1]) as receiver:
        send(sender, file)
        receive(receiver).close()  # What it leaves for the next receive was allocated elsewhere.
        send(sender, file)
        tracemalloc.start(20)  # mutmut makes three frames of one.
        try:
            received = receive(receiver)
            with pytest.warns(ResourceWarning) as caught:  # noqa: PT031
                del received
                gc.collect()
        finally:
            tracemalloc.stop()
    text = str(caught[0].message)
    assert "received at:" in text
    assert "received = receive(receiver)" in text


@pytest.mark.thread_unsafe
def test_dropped_open_received_before_tracemalloc() -> None:
    """What was received before tracemalloc was on is warned about without saying where."""
    tracemalloc = pytest.importorskip("tracemalloc")
    fds = own(1)
    tracemalloc.start()
    try:
        with pytest.warns(ResourceWarning, match=r"unclosed <Descriptors \[\d+\]>$"):  # noqa: PT031
            del fds
            gc.collect()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [[], ["-X", "tracemalloc"]])
def test_open_at_the_end_of_the_program(options: list[str]) -> None:
    """An owner that the program keeps to its end is warned of, when modules can no longer be
    imported."""
    pytest.importorskip("tracemalloc", reason="PyPy calls no finalisers then")
    program = "import fdpass_c, os; kept = fdpass_c.Descriptors([os.dup(0)])"
    done = subprocess.run(
        [sys.executable, *options, "-W", "default", "-c", program], stderr=subprocess.PIPE
    )
    assert re.fullmatch(rb".+: ResourceWarning: unclosed <Descriptors \[\d+\]>\n", done.stderr)


@pytest.mark.thread_unsafe
def test_dropped_with_the_rest_taken() -> None:
    """An owner dropped with some descriptors left closes those and not the taken one."""
    fds = own(2)
    taken = fds.take(0)
    left = fds[1]
    with pytest.warns(ResourceWarning, match="taken"):  # noqa: PT031
        del fds
        gc.collect()
    assert is_open(taken)
    assert not is_open(left)
    os.close(taken)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    "hand_over",
    [Descriptors.as_socket, lambda fds: fds.as_file(buffering=0)],
    ids=["as_socket", "as_file"],
)
def test_dropped_with_the_rest_handed_over(
    hand_over: Callable[[Descriptors], AbstractContextManager[object]],
) -> None:
    """So does one that handed over the other as an object."""
    ours, theirs = socket.socketpair()
    fds = Descriptors([ours.detach(), theirs.detach()])
    left = fds[1]
    with hand_over(fds), pytest.warns(ResourceWarning, match="taken"):  # noqa: PT031
        del fds
        gc.collect()
    assert not is_open(left)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    "finish",
    [Descriptors.close, lambda fds: fdpass_c.close_fds(fds.take_all())],
    ids=["closed", "taken"],
)
def test_dropped_after_use(finish: Callable[[Descriptors], object]) -> None:
    """An owner that was closed or emptied is dropped without a word."""
    fds = own(2)
    finish(fds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del fds
        gc.collect()


@pytest.mark.thread_unsafe
def test_dropped_with_all_taken_one_by_one() -> None:
    """An owner whose every descriptor was taken is dropped without a word."""
    fds = own(2)
    taken = [fds.take(0), fds.take(1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del fds
        gc.collect()
    fdpass_c.close_fds(taken)


@pytest.mark.thread_unsafe
def test_close_fds() -> None:
    """close_fds closes any number from any iterable."""
    wraps: list[Callable[[list[int]], Iterable[int]]] = [
        list,
        tuple,
        iter,
        lambda fds: (fd for fd in fds),
    ]
    for count, wrap in itertools.product((0, 1, 2, 3, 4, 100, 300), wraps):
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]
        fdpass_c.close_fds(wrap(fds))
        assert not any(is_open(fd) for fd in fds)


@pytest.mark.thread_unsafe
def test_close_fds_closes_these_and_no_other() -> None:
    """In any order, with gaps or twice the same: the named ones are closed, the others are not."""
    for order in (
        [0, 1, 2, 3, 4, 5, 6, 7],
        [7, 6, 5, 4, 3, 2, 1, 0],
        [0, 1, 2, 5, 6, 7],
        [4, 5, 6, 7, 0, 1, 2, 3],
        [0, 2, 4, 6],
        [1, 2, 3],
        [3],
        [0, 1, 2, 2, 3, 4],
        [2, 0, 1, 2, 0],
    ):
        fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
        fdpass_c.close_fds(fds[position] for position in order)
        assert [is_open(fd) for fd in fds] == [position not in order for position in range(8)]
        fdpass_c.close_fds([fd for fd in fds if is_open(fd)])


@pytest.mark.thread_unsafe
def test_close_fds_of_an_owner() -> None:
    """The owner knows: it does not close numbers again that are another file's by then."""
    with own(3) as fds:
        borrowed, taken = [*fds], fds.take(1)
        fdpass_c.close_fds(fds)
        assert fds.closed
        assert [is_open(fd) for fd in borrowed] == [False, True, False]
        fdpass_c.close_fds(fds)
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
        assert {*others, taken} == {*borrowed}
    assert all(map(is_open, others))
    fdpass_c.close_fds([*others, taken])


def test_two_owners() -> None:
    """What an owner has is given to another only by taking it out: both would close it."""
    with own(2) as fds:
        with pytest.raises(TypeError, match="take_all"):
            Descriptors(fds)
        with Descriptors(fds.take_all()) as second:
            assert len(second) == 2


@pytest.mark.thread_unsafe
def test_close_fds_skips_negative_ones() -> None:
    """Negative ints are skipped, between neighbours too."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    fdpass_c.close_fds([-1, *fds[:2], -1, -24, -23, *fds[2:], -(2**31)])
    assert not any(is_open(fd) for fd in fds)


@pytest.mark.thread_unsafe
def test_close_fds_takes_objects() -> None:
    """Objects with fileno() and ints may be mixed."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    fdpass_c.close_fds([Holder(fds[0]), fds[1]])
    assert not any(is_open(fd) for fd in fds)


def test_close_fds_ignores_what_is_not_open() -> None:
    """A descriptor that was not open is no error."""
    fd = os.open(os.devnull, os.O_RDONLY)
    fdpass_c.close_fds([fd, fd])
    fdpass_c.close_fds([fd])


@pytest.mark.thread_unsafe
def test_close_fds_refuses_before_it_closes(file: int) -> None:
    """A wrong element is a TypeError that names its position, and nothing is closed."""
    for wrong in (None, "3", 3.0, object()):
        with pytest.raises(TypeError, match=r"fds\[1\]"):
            fdpass_c.close_fds([file, wrong])  # type: ignore[list-item]
    assert is_open(file)


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("count", [1, 40])
def test_exception_after_every_call(count: int) -> None:
    """Wherever in a close a handler may raise, each descriptor is closed once: then or later."""
    number = 1
    interrupted = True
    while interrupted:
        owner = own(count)
        fds = [*owner]
        interrupted = interrupt_call(descriptors, number, owner.close)
        with own(len([fd for fd in fds if not is_open(fd)])) as others:  # The same numbers.
            owner.close()
            assert all(map(is_open, others))
        assert not any(map(is_open, fds))
        number += 1
