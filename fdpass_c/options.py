"""The options of a Channel."""

import contextlib
import operator
import os
import socket
import sys
from collections.abc import Collection

# Python has no name for the newest options of Linux. Two architectures have other numbers than
# asm-generic/socket.h.
HAS_GENERIC_NUMBERS: bool = sys.platform == "linux" and os.uname().machine not in {
    "parisc",
    "parisc64",
    "sparc",
    "sparc64",
}
SO_PASSRIGHTS = 83

DEFAULT_MAX_PAYLOAD = 16 * 2**20
DEFAULT_MAX_FDS = 65536


def check_int(name: str, value: int) -> int:
    """value as an int. The TypeError for anything else has the name of the argument."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is an int, not {type(value).__name__}") from None


def check_options(
    max_payload: int, max_fds: int, allow_uids: Collection[int] | None, receive_fds: bool
) -> None:
    """Raises the TypeError and ValueError of Channel for options that are wrong for any
    connection."""
    for name, limit, most in (
        ("max_payload", max_payload, 2**64 - 1),
        ("max_fds", max_fds, 2**32 - 1),
    ):
        if not 0 <= check_int(name, limit) <= most:
            raise ValueError(f"{name} is {limit}, which is not in 0 to {most}")
    if not isinstance(receive_fds, int):
        raise TypeError(f"receive_fds is a bool, not {type(receive_fds).__name__}")
    text = isinstance(allow_uids, str | bytes)
    if allow_uids is not None and (text or not isinstance(allow_uids, Collection)):
        kind = type(allow_uids).__name__
        raise TypeError(f"allow_uids is a collection of ints, such as {{1000}}, not {kind}")
    # A range needs no check, and may have 2**32 elements.
    for uid in () if allow_uids is None or isinstance(allow_uids, range) else allow_uids:
        if not isinstance(uid, int):
            raise TypeError(f"allow_uids is a collection of ints, {uid!r} is none")


def refuse_fds(sock: socket.socket) -> None:
    """Makes the kernel refuse descriptors for sock, if it can: then the sender's call fails."""
    if HAS_GENERIC_NUMBERS:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
