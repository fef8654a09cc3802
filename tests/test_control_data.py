"""Other control data neither starves descriptors nor leaks them; surplus ones are closed."""

import socket
import sys

import pytest

import fdpass_c
from support.descriptors import Keep, MakeFiles, identities, identity
from support.sockets import Pair, assert_empty, set_option

# asm-generic/socket.h, which sparc, hppa and a few older ones do not follow.
SO_PASSCRED = 16
SO_PASSSEC = 34
SO_PASSPIDFD = 76
SO_PASSRIGHTS = 83

CTRUNC = socket.MSG_CTRUNC

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="options of Linux")

options = pytest.mark.parametrize(
    "option", [SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD], ids=["PASSCRED", "PASSSEC", "PASSPIDFD"]
)


@pytest.mark.parametrize(
    "chosen",
    [[SO_PASSCRED], [SO_PASSSEC], [SO_PASSPIDFD], [SO_PASSCRED, SO_PASSSEC, SO_PASSPIDFD]],
    ids=["PASSCRED", "PASSSEC", "PASSPIDFD", "all"],
)
def test_options_take_no_room(
    chosen: "list[int]", stream: Pair, make_files: MakeFiles, keep: Keep
) -> None:
    """With the options on, exactly as many descriptors as asked for arrive, and nothing else; for
    send_fd and recv_fd too."""
    for option in chosen:
        set_option(stream[1], option, 1)
    for count in (0, 1, 253):
        files = make_files(count)
        fdpass_c.send_fds(stream[0], [b"x"], files)
        data, fds, flags, _ = fdpass_c.recv_fds(stream[1], 1, count)
        keep(fds)
        assert data == b"x"
        assert identities(fds) == identities(files)
        assert not flags & CTRUNC
    fdpass_c.send_fd(stream[0], files[0])
    with fdpass_c.recv_fd(stream[1])[1] as owner:
        assert identity(owner[0]) == identity(files[0])


def test_better_than_the_standard_library(stream: Pair, file: int, keep: Keep) -> None:
    """With SO_PASSCRED on, maxfds=1 gets the descriptor that the standard library loses."""
    set_option(stream[1], SO_PASSCRED, 1)
    socket.send_fds(stream[0], [b"x"], [file])
    socket.send_fds(stream[0], [b"x"], [file])
    assert keep(socket.recv_fds(stream[1], 1, 1)[1]) == []
    (fd,) = keep(fdpass_c.recv_fds(stream[1], 1, 1)[1])
    assert identity(fd) == identity(file)


@options
def test_surplus_beside_the_option(
    option: int, stream: Pair, make_files: MakeFiles, keep: Keep
) -> None:
    """Room reserved for an option is not given to descriptors beyond maxfds."""
    set_option(stream[1], option, 1)
    for count in (2, 253):
        files = make_files(count)
        fdpass_c.send_fds(stream[0], [b"x"], files)
        _, fds, flags, _ = fdpass_c.recv_fds(stream[1], 1, 1)
        keep(fds)
        assert identities(fds) == identities(files[:1])
        assert flags & CTRUNC


def test_surplus(stream: Pair, make_files: MakeFiles, keep: Keep) -> None:
    """The first maxfds are handed over, the others closed, and MSG_CTRUNC says whether any were."""
    files = make_files(253)
    for count, maxfds in ((1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (4, 3), (5, 4), (253, 4)):
        fdpass_c.send_fds(stream[0], [b"payload"], files[:count])
        data, fds, flags, _ = fdpass_c.recv_fds(stream[1], 100, maxfds)
        keep(fds)
        assert data == b"payload"
        assert identities(fds) == identities(files[: min(count, maxfds)])
        assert bool(flags & CTRUNC) == (count > maxfds)


def test_receiver_refuses_descriptors(stream: Pair, file: int) -> None:
    """With SO_PASSRIGHTS off at the receiver, sending is a PermissionError and nothing is sent."""
    set_option(stream[1], SO_PASSRIGHTS, 0)
    for fds in ([file], [file, file]):
        with pytest.raises(PermissionError):
            fdpass_c.send_fds(stream[0], [b"x"], fds)
    with pytest.raises(PermissionError):
        fdpass_c.send_fd(stream[0], file)
    assert_empty(stream[1])
    assert fdpass_c.send_fds(stream[0], [b"x"], []) == 1
    assert fdpass_c.recv_fds(stream[1], 10, 1) == (b"x", [], 0, None)
