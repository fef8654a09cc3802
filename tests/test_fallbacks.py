"""Without each system call and option that an older kernel lacks, everything still works.

A seccomp filter in a forked child answers for the kernel: ENOSYS for a system call, ENOPROTOOPT
for a socket option. That is also how a container hides them; older profiles say EPERM, and an
administrator can choose EACCES.
"""

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

import fdpass_c
from fdpass_c import info
from support.descriptors import Keep, MakeFiles, identities, is_open
from support.processes import run_in_child
from support.sockets import Pair, set_option

COUNT = 130  # more than two system calls take


class Numbers(NamedTuple):
    """A processor's numbers of system calls; close_range has one for all."""

    audit: int
    sendmmsg: int
    recvmmsg: int
    getsockopt: int
    pwritev2: int
    close_range: int = 436


GENERIC = (269, 243, 209, 287)
NUMBERS = {
    "x86_64": Numbers(0xC000003E, 307, 299, 55, 328),
    "aarch64": Numbers(0xC00000B7, *GENERIC),
    "riscv64": Numbers(0xC00000F3, *GENERIC),
    "ppc64le": Numbers(0xC0000015, 349, 343, 340, 381),
    "s390x": Numbers(0x80000016, 358, 357, 365, 377),
}
NARROW = sys.maxsize < 2**32
if NARROW:
    # The same on a kernel of 64 bits. 32-bit glibc asks for options through socketcall, whose
    # arguments a filter cannot see.
    NUMBERS = {name: Numbers(0x40000003, 345, 337, 365, 379) for name in ("i686", "x86_64")}

pytestmark = [
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() not in NUMBERS,
        reason="seccomp filters for Linux on the processors listed above",
    ),
    pytest.mark.thread_unsafe,
]
hides_options = pytest.mark.skipif(NARROW, reason="the filter cannot see socketcall's arguments")

SO_PEERPIDFD = 77
SO_PASSRIGHTS = 83
F_GETPIPE_SZ = 1032

# linux/filter.h, linux/seccomp.h, linux/prctl.h
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K
ALLOW = 0x7FFF0000
FAIL = 0x00050000  # SECCOMP_RET_ERRNO, the errno in the low bits
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
# struct seccomp_data: the number, the processor, 8 bytes, then 8 bytes an argument.
NUMBER = 0
AUDIT = 4
THIRD_ARGUMENT = 16 + 2 * 8 + (4 if sys.byteorder == "big" else 0)


class Denial(NamedTuple):
    """A system call that fails from now on, or only with this third argument."""

    number: int
    code: int
    third: int | None = None


def install_filter(denials: Iterable[Denial]) -> None:
    """Makes the kernel answer this process as denials say, for good."""
    program = [(LOAD, 0, 0, AUDIT), (JUMP_EQUAL, 1, 0, numbers().audit), (RETURN, 0, 0, ALLOW)]
    for denial in denials:
        program.append((LOAD, 0, 0, NUMBER))
        if denial.third is None:
            program.append((JUMP_EQUAL, 0, 1, denial.number))
        else:
            program += [
                (JUMP_EQUAL, 0, 3, denial.number),
                (LOAD, 0, 0, THIRD_ARGUMENT),
                (JUMP_EQUAL, 0, 1, denial.third),
            ]
        program.append((RETURN, 0, 0, FAIL | denial.code))
    program.append((RETURN, 0, 0, ALLOW))

    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filtering = struct.pack("HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    nothing = [ctypes.c_ulong(0)] * 2
    for option, value, extra in [
        (PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0)),
        (PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.c_char_p(filtering)),
    ]:
        if libc.prctl(option, value, extra, *nothing) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def numbers() -> Numbers:
    return NUMBERS[platform.machine()]


def run_without(denials: Iterable[Denial], function: Callable[[], object]) -> None:
    """Runs function in a child whose kernel answers as denials say."""

    def act() -> None:
        install_filter(denials)
        function()

    run_in_child(act)


def without(name: str, code: int = errno.ENOSYS) -> list[Denial]:
    """The denial of the named system call."""
    return [Denial(getattr(numbers(), name), code)]


CODES = [errno.ENOSYS, errno.EPERM, errno.EACCES]
codes = pytest.mark.parametrize("code", CODES, ids=lambda code: errno.errorcode[code])


def send_and_receive(pair: Pair, files: list[int]) -> None:
    """Fails unless every message and every descriptor arrives as it was sent."""
    left, right = pair
    payloads = [f"message {i:03}".encode() for i in range(len(files))]
    assert fdpass_c.send_many(left, payloads, files) == len(files)
    got = 0
    while got < len(files):
        with fdpass_c.recv_many(right) as batch:
            assert batch.payloads == payloads[got : got + len(batch)]
            assert identities(list(batch.fds)) == identities(files[got : got + len(batch)])
            got += len(batch)


@codes
@pytest.mark.parametrize("missing", ["sendmmsg", "recvmmsg"])
def test_batches(
    missing: str, code: int, stream: Pair, seqpacket: Pair, make_files: MakeFiles
) -> None:
    """A batch arrives whole where the kernel takes one message a call."""
    files = make_files(COUNT)

    def act() -> None:
        feature = info.collect()["kernel"][missing]
        assert not feature
        send_and_receive(stream, files)
        send_and_receive(seqpacket, files)

    run_without(without(missing, code), act)


def test_without_errnos_of_streams(stream: Pair, make_files: MakeFiles) -> None:
    """Python need not have the errnos that POSIX knows for STREAMS alone: FreeBSD has not."""
    files = make_files(COUNT)

    def act() -> None:
        for name in ("ENODATA", "ENOSR", "ENOSTR", "ETIME"):
            delattr(errno, name)
        send_and_receive(stream, files)
        assert fdpass_c.send_fds(stream[0], [b"o", b"k"], files[:2]) == 2
        assert fdpass_c.send_many(stream[0], [b"", b"ok"], [[], files[:2]]) == 2
        os.close(fdpass_c.peer_pidfd(stream[0]) or os.dup(0))
        with pytest.raises(OSError, match="not connected"), socket.socket(socket.AF_UNIX) as alone:
            fdpass_c.peer_pidfd(alone)

    run_in_child(act)


@pytest.mark.parametrize("missing", ["sendmmsg", "recvmmsg"])
def test_batch_errors(missing: str) -> None:
    """The errors of a batch are the same without the system call."""

    def act() -> None:
        left, right = socket.socketpair()
        right.setblocking(False)
        with pytest.raises(BlockingIOError):
            fdpass_c.recv_many(right)
        with pytest.raises(OSError, match="Bad file descriptor"):
            fdpass_c.send_many(left, [b"x"], [1000])
        left.close()
        assert len(fdpass_c.recv_many(right)) == 0
        with pytest.raises(BrokenPipeError):
            fdpass_c.send_many(right, [b"x"], [right])

    run_without(without(missing), act)


def test_receiver_refuses(stream: Pair, file: int) -> None:
    """A peer that refuses descriptors is a PermissionError, whatever the filter says."""
    set_option(stream[1], SO_PASSRIGHTS, 0)

    def act() -> None:
        with pytest.raises(PermissionError) as caught:
            fdpass_c.send_many(stream[0], [b"plain", b"x"], [[], [file]])
        assert caught.value.progress.messages == 1  # type: ignore[attr-defined]

    for code in CODES:
        run_without(without("sendmmsg", code), act)


def test_sealed_file() -> None:
    """A file that may not be written is a PermissionError in its slot, whatever the filter says."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)

        def act() -> None:
            (refused,) = fdpass_c.broadcast([fd], [b"x"])
            assert isinstance(refused, PermissionError)

        act()
        for code in CODES:
            run_without(without("pwritev2", code), act)
    finally:
        os.close(fd)


def test_full_socket(stream: Pair, file: int) -> None:
    """A batch that does not fit says how far it came, without sendmmsg too."""
    left, right = stream
    left.settimeout(0)

    def act() -> None:
        with pytest.raises(BlockingIOError) as caught:
            fdpass_c.send_many(left, [bytes(4096)] * 1000, [file] * 1000)
        sent = caught.value.progress.messages  # type: ignore[attr-defined]
        assert 0 < sent < 1000
        with fdpass_c.recv_many(right, 1000) as batch:
            # A message of which only a part fitted has its descriptor with that part.
            assert len(batch) in (sent, sent + 1)

    run_without(without("sendmmsg"), act)


def test_closing(make_files: MakeFiles) -> None:
    """Descriptors in a row are closed one by one where there is no close_range."""
    files = make_files(50)

    def act() -> None:
        assert not info.collect()["kernel"]["close_range"]
        fdpass_c.close_fds(files)
        assert not any(map(is_open, files))

    for code in CODES:
        run_without(without("close_range", code), act)


def test_dropped_owner(stream: Pair, make_files: MakeFiles) -> None:
    """An owner closes what it holds where there is no close_range."""
    left, right = stream
    fdpass_c.send_fds(left, [b"x"], make_files(20))

    def act() -> None:
        data, fds, flags, _ = fdpass_c.recv_fds(right, 16, 20)
        assert (data, len(fds), flags) == (b"x", 20, 0)
        with fdpass_c.Descriptors(fds):
            pass
        assert not any(map(is_open, fds))

    run_without(without("close_range"), act)


@hides_options
def test_peer_pidfd(stream: Pair) -> None:
    """Without SO_PEERPIDFD there is no pidfd of the peer, and its credentials are told still."""

    def act() -> None:
        assert not info.collect()["kernel"]["SO_PEERPIDFD"]
        assert fdpass_c.peer_pidfd(stream[0]) is None
        assert fdpass_c.peer_credentials(stream[0]).pid == os.getppid()

    for code in (errno.ENOPROTOOPT, *CODES):
        run_without([Denial(numbers().getsockopt, code, SO_PEERPIDFD)], act)


@pytest.mark.parametrize(
    "code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES], ids=errno.errorcode.get
)
def test_broadcast_to_pipes(code: int, keep: Keep) -> None:
    """A full pipe makes nobody wait where a write cannot be told not to (Linux before 6.4)."""
    empty, full = os.pipe(), os.pipe()
    keep([*empty, *full])
    os.write(full[1], bytes(fcntl.fcntl(full[1], F_GETPIPE_SZ)))

    def act() -> None:
        assert info.collect()["kernel"]["pwritev2"] is (code == errno.EOPNOTSUPP)
        refused, taken = fdpass_c.broadcast([full[1], empty[1]], [b"hello"])
        assert isinstance(refused, BlockingIOError)
        assert taken == 5
        assert os.read(empty[0], 16) == b"hello"

    run_without([Denial(numbers().pwritev2, code)], act)


def test_large_write_to_a_pipe(keep: Keep) -> None:
    """A pipe with room for a part takes that part, and nobody waits for the rest."""
    reader, writer = os.pipe()
    keep([reader, writer])
    size = fcntl.fcntl(writer, F_GETPIPE_SZ)

    def act() -> None:
        (taken,) = fdpass_c.broadcast([writer], [b"", bytes(2 * size)])
        assert taken == size

    run_without([Denial(numbers().pwritev2, errno.ENOSYS)], act)


def test_pipe_without_a_reader(keep: Keep) -> None:
    """Of a pipe that nobody reads the error is its result, also where the plain write finds it."""
    reader, writer = os.pipe()
    keep([writer])
    os.close(reader)

    def act() -> None:
        (refused,) = fdpass_c.broadcast([writer], [b"hello"])
        assert isinstance(refused, BrokenPipeError)

    run_without([Denial(numbers().pwritev2, errno.ENOSYS)], act)


@hides_options
def test_without_any(stream: Pair, make_files: MakeFiles) -> None:
    """The oldest kernel lacks all of them at once."""
    names = ["sendmmsg", "recvmmsg", "close_range"]
    files = make_files(COUNT)
    option = Denial(numbers().getsockopt, errno.ENOPROTOOPT, SO_PEERPIDFD)

    def act() -> None:
        send_and_receive(stream, files)
        fdpass_c.send_fd(stream[0], files[0], b"one")
        data, fds = fdpass_c.recv_fd(stream[1])
        with fds:
            assert data == b"one"
            assert identities(list(fds)) == identities(files[:1])
        assert fdpass_c.peer_pidfd(stream[1]) is None

    run_without([*[denial for name in names for denial in without(name)], option], act)


@hides_options
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_credentials_are_denied(code: int, tmp_path: Path) -> None:
    """Where a filter hides who the peer is, accept says so, and does not turn away all who come."""
    option = Denial(numbers().getsockopt, code, socket.SO_PEERCRED)

    def act() -> None:
        path = tmp_path / "socket"
        with fdpass_c.Listener(path) as listener, socket.socket(socket.AF_UNIX) as peer:
            listener.settimeout(0.1)
            peer.connect(str(path))
            with pytest.raises(PermissionError) as caught:
                listener.accept()
            assert caught.value.errno == code
            assert peer.recv(1) == b""

    run_without([option], act)


@hides_options
def test_filter_denies_nothing_else() -> None:
    """The filter of these tests hides one option and leaves the others alone."""
    option = Denial(numbers().getsockopt, errno.ENOPROTOOPT, SO_PEERPIDFD)

    def act() -> None:
        left, right = socket.socketpair()
        with left, right:
            with pytest.raises(OSError, match="Protocol not available"):
                left.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
            assert left.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM

    run_without([option], act)
