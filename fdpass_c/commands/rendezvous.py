"""Connects two commands at a named socket: one side listens, the other connects."""

import argparse
import os
import socket
import time
from pathlib import Path
from typing import Any

from fdpass_c.commands.arguments import duration
from fdpass_c.unix import SocketFile, connect_unix

_RETRY = 0.05


def add_arguments(parser: Any) -> None:
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument(
        "--listen",
        metavar="PATH",
        help="create the socket, for this user alone, and wait for one peer",
    )
    side.add_argument("--connect", metavar="PATH", help="connect to a listening peer")
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="SECONDS",
        help="how long to wait at most: for the peer (with --connect, for its socket too), "
        "for each message, and in all for the content of each received pipe or socket",
    )


def meet(options: argparse.Namespace) -> socket.socket:
    """Returns a stream socket, connected in the way that the options say. The caller closes it.

    OSError: connecting failed; the error names the path. TimeoutError: no peer connected.
    """
    listens = options.listen is not None
    path = options.listen if listens else options.connect
    try:
        sock = (_await_peer if listens else _connect)(path, options.timeout)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), path) from None
    sock.settimeout(options.timeout)
    return sock


def _await_peer(path: str, timeout: float | None) -> socket.socket:
    file = SocketFile(path)
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            file.listen(listener, backlog=1, mode=0o600)
            listener.settimeout(timeout)
            return listener.accept()[0]
        finally:
            file.remove()


def _connect(path: str, timeout: float | None) -> socket.socket:
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if until is None else max(until - time.monotonic(), _RETRY)
        try:
            return connect_unix(path, left)
        except (FileNotFoundError, ConnectionRefusedError):
            is_other = os.path.exists(path) and not Path(path).is_socket()
            if is_other or until is None or time.monotonic() >= until:
                raise
        time.sleep(_RETRY)
