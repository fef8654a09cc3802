"""Connections that are offered to all workers at once, instead of being given to one."""

import socket
from typing import Any

from fdpass_c._native import ffi, lib


class Offers:
    """A socket pair whose reading end all workers share.

    A worker that handles one connection at a time would have to sleep after each, until the master
    has noticed that it is free and has passed on the next. Therefore the master offers as many
    connections as there are workers while all of them are busy. A worker that has finished takes
    one of these. Only if none is offered, it counts as free.

    record: a struct fdp_offers *, with the master's copies of the connections.
    """

    def __init__(self) -> None:
        """The master must call this before it forks the workers."""
        self._sender, self._receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.record: Any = ffi.gc(ffi.new("struct fdp_offers *"), lib.fdp_free_offers)
        self.record.sender = self._sender.fileno()
        self.record.receiver = self._receiver.fileno()

    def close_in_child(self) -> None:
        """In a worker, which only takes connections: closes the end for sending, and the copies."""
        self._sender.close()
        lib.fdp_free_offers(self.record)

    def fileno(self) -> int:
        """The descriptor of the end from which workers take connections."""
        return self._receiver.fileno()

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()
        lib.fdp_free_offers(self.record)
