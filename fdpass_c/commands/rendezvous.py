"""How two commands meet at a named socket: either side listens, the other connects."""

import argparse
import os
import socket
import time
from typing import Any

from fdpass_c.commands.arguments import duration
from fdpass_c.unix import bind_unix

_RETRY = 0.05


def add_arguments(parser: Any) -> None:
    side = parser.add_mutually_exclusive_group(required=True)
    side.add_argument(
        "--listen", metavar="PATH", help="make the socket, for this user alone; serve one peer"
    )
    side.add_argument("--connect", metavar="PATH", help="connect to a peer that listens")
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="SECONDS",
        help="wait at most so long for the peer, with --connect also for its socket to appear, "
        "and for each message",
    )


def meet(options: argparse.Namespace) -> socket.socket:
    """The connected stream socket that the options ask for; the caller closes it.

    OSError with the path in it; TimeoutError where nobody came.
    """
    path = options.listen or options.connect
    try:
        sock = _await_peer(path, options) if options.listen else _connect(path, options.timeout)
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), path) from None
    sock.settimeout(options.timeout)
    return sock


def _await_peer(path: str, options: argparse.Namespace) -> socket.socket:
    with bind_unix(path, backlog=1) as listener:
        try:
            listener.settimeout(options.timeout)
            return listener.accept()[0]
        finally:
            os.unlink(path)


def _connect(path: str, timeout: float | None) -> socket.socket:
    until = time.monotonic() + (timeout or 0)
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            return sock
        except BaseException as error:
            sock.close()
            missing = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
            if not missing or time.monotonic() >= until:
                raise
        time.sleep(_RETRY)
