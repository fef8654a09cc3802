"""One message, with one descriptor, and with as many as a message can carry."""

import array
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import fdpass_c
from benchmarks.floor import FloorWay
from benchmarks.results import OURS, STANDARD
from benchmarks.runner import Case, Contender, Table
from benchmarks.ways import Observation, PythonWay, Way, here, identify, open_files, open_pair

_PAYLOAD = b"x"


def _drop_in(
    name: str, library: Any, left: socket.socket, right: socket.socket, fds: list[int]
) -> Way:
    """Uses send_fds, recv_fds and os.close: the same program for either library."""
    recv_fds, count = library.recv_fds, len(fds)

    def receive(close: Callable[[Any], object]) -> bytes:
        data: bytes
        data, received, _, _ = recv_fds(right, len(_PAYLOAD), count)
        for fd in received:
            close(fd)
        return data

    return PythonWay(name, partial(library.send_fds, left, [_PAYLOAD], fds), receive)


def _ours_closing_together(left: socket.socket, right: socket.socket, fds: list[int]) -> Way:
    recv_fds, count = fdpass_c.recv_fds, len(fds)

    def receive(close: Callable[[Any], object]) -> bytes:
        data, received, _, _ = recv_fds(right, len(_PAYLOAD), count)
        close(received)
        return data

    send = partial(fdpass_c.send_fds, left, [_PAYLOAD], fds)
    return PythonWay(OURS, send, receive, fdpass_c.close_fds)


def _by_hand(left: socket.socket, right: socket.socket, fds: list[int]) -> Way:
    """Uses sendmsg and recvmsg, with as little code around them as possible."""
    control_size = socket.CMSG_LEN(len(fds) * array.array("i").itemsize)

    def send() -> None:
        control = array.array("i", fds)
        left.sendmsg((_PAYLOAD,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, control),))

    def receive(close: Callable[[Any], object]) -> bytes:
        data, ancillary, _, _ = right.recvmsg(len(_PAYLOAD), control_size)
        for level, kind, control in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                for fd in array.array("i", control):
                    close(fd)
        return data

    return PythonWay("by hand", send, receive)


def _open(count: int, stack: ExitStack) -> list[Contender]:
    fds = open_files(stack, count)
    left, right = open_pair(stack)
    ways = [_drop_in(STANDARD, socket, left, right, fds), _by_hand(left, right, fds)]
    if count == 1:
        ways.append(_drop_in(OURS, fdpass_c, left, right, fds))
    else:
        ways.append(_drop_in(f"{OURS}, os.close", fdpass_c, left, right, fds))
        ways.append(_ours_closing_together(left, right, fds))
    ways.append(FloorWay(left.fileno(), right.fileno(), [_PAYLOAD], fds))
    expected = Observation([_PAYLOAD], identify(fds))
    return [here(way, expected) for way in ways]


def _cases(_quick: bool) -> list[Case]:
    return [
        Case(f"{count} in a message", count, partial(_open, count))
        for count in (1, fdpass_c.MAX_FDS)
    ]


TABLES = [
    Table(
        "single",
        "send, receive and close, one byte and descriptors in a message",
        "descriptor",
        STANDARD,
        [
            "One process that talks to itself over a pair of stream sockets: no other process is",
            "woken, so this is the price of the calls and not of a conversation.",
            f"{OURS} closes 253 with close_fds, as the floor does with close_range. With more",
            "holes in the descriptor table both close in more pieces.",
            "The standard library's descriptors arrive inheritable, all others' close-on-exec.",
        ],
        _cases,
    )
]
