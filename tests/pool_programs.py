"""Programs with pools that the command line cannot ask for: pool_programs.py NAME ARGUMENT..."""

import ctypes
import logging
import os
import platform
import signal
import socket
import struct
import sys

from fdpass_c.pool import Pool, open_listener
from support.handlers import begin_and_wait, obey

# linux/filter.h, linux/seccomp.h, linux/prctl.h
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_NUMBER, _FIRST_ARGUMENT = 0, 16
ACCEPT4 = {"x86_64": 288, "aarch64": 242, "riscv64": 242}


def _deny_accept(fd: int, code: int) -> None:
    """Has every accept of this process on descriptor fd fail from now on."""
    program = [
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_EQUAL, 0, 3, ACCEPT4[platform.machine()]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_EQUAL, 0, 1, fd),
        (_RETURN, 0, 0, _FAIL | code),
        (_RETURN, 0, 0, _ALLOW),
    ]
    lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filtering = struct.pack("HP", len(program), ctypes.addressof(lines))
    libc = ctypes.CDLL(None)
    nothing = [ctypes.c_ulong(0)] * 2
    assert libc.prctl(38, ctypes.c_ulong(1), ctypes.c_ulong(0), *nothing) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(filtering), *nothing) == 0


def accept_fails(code: str, *addresses: str) -> None:
    """A pool of one worker that can accept nothing at the first address."""
    listeners = [open_listener(address) for address in addresses]
    _deny_accept(listeners[0].fileno(), int(code))
    Pool(obey, 1).serve(*listeners)


def shut_down_listeners(*addresses: str) -> None:
    """A pool of two workers; USR2 shuts the first listener that is still open."""
    listeners = [open_listener(address) for address in addresses]
    left = iter(listeners)
    signal.signal(signal.SIGUSR2, lambda *_: next(left).shutdown(socket.SHUT_RDWR))
    Pool(begin_and_wait, 2).serve(*listeners)


def print_to(where: str, *addresses: str) -> None:
    """A pool in a program that cannot print what it has printed."""
    if where == "closed":
        sys.stdout.close()
    elif where == "none":
        sys.stdout = None
    elif where == "no stream":
        sys.stdout = object()
    else:
        reader, writer = os.pipe()
        os.close(reader)
        sys.stdout = open("/dev/full" if where == "full" else writer, "w")  # noqa: SIM115
        print("never seen")
    Pool(obey, 1).serve(*addresses)


def main(name: str, *arguments: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    globals()[name](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
