"""Connections that are offered to all workers at once, instead of given to one."""

import socket
from typing import Any

from fdpass_c._native import ffi, lib


class Offers:
    """A socket pair whose reading end all workers share.

    A worker that takes one connection at a time would have to sleep after each, until the master
    has noticed that it is free and has passed on the next. While all are busy the master therefore
    offers as many connections as there are workers, and a worker that finishes takes one. It is
    free only when there is none.

    record: a struct fdp_offers *, with the master's copies.
    """

    def __init__(self) -> None:
        """Must be made before the fork."""
        self._sender, self._receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.record: Any = ffi.gc(ffi.new("struct fdp_offers *"), lib.fdp_free_offers)
        self.record.sender = self._sender.fileno()
        self.record.receiver = self._receiver.fileno()

    def close_in_child(self) -> None:
        """In a worker, which only takes."""
        self._sender.close()
        lib.fdp_free_offers(self.record)

    def fileno(self) -> int:
        """The end from which workers take."""
        return self._receiver.fileno()

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()
        lib.fdp_free_offers(self.record)
