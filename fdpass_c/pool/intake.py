"""Receives connections in a plain worker, one after the other."""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Any

from fdpass_c._native import ffi, lib
from fdpass_c.channel import Channel, end_of
from fdpass_c.descriptors import new_memory
from fdpass_c.errors import PeerClosedError
from fdpass_c.pool.connected import ConnectedSocket, Kind, find_origin, read_address
from fdpass_c.pool.counters import Counters
from fdpass_c.pool.offers import Offers
from fdpass_c.scratch import make_scratch
from fdpass_c.waiting import READABLE, Deadline

_receive = lib.fdp_receive
_take = lib.fdp_take_fd
_take_offer = lib.fdp_try_take_offer
_MORE = lib.FDP_MORE_OFFERS
_WAIT = lib.FDP_WAIT
_LENGTH = lib.FDP_MIXED_LENGTHS - 1
_AGAIN = {-errno.EINTR, lib.FDP_LOOK}


class Intake:
    """Does what Channel.recv and take_connection do, with one system call if nothing is queued.

    Unlike Channel.recv, it does not check whether the descriptor table has room. A worker without
    room ends with a ProtocolError, and other workers get its connections, because the master has
    copies of them.
    """

    def __init__(
        self,
        channel: Channel,
        counters: Counters,
        offers: Offers | None,
        kinds: Sequence[Kind],
    ) -> None:
        """Borrows its arguments. kinds: the Kind of each listener's connections."""
        self._channel = channel
        self._counters = counters
        self._offers = offers
        self._end = end_of(channel)
        self._inbox = self._end.inbox
        self._inbox.sender_keeps = True
        self._kinds = kinds
        self._scratch, self._view = make_scratch()
        self._owner = new_memory(1)
        self._owner.fds[0] = lib.FDP_TAKEN
        self._words = ffi.from_buffer("unsigned int[]", counters.shared)
        self._offered = ffi.new("unsigned char[]", lib.FDP_ORIGIN_SIZE + lib.FDP_ADDRESS_SIZE)
        self._offered_view = ffi.buffer(self._offered)
        self._failure = 0

    @property
    def pending(self) -> int:
        """How many received connections are queued in this process."""
        return self._channel.pending

    def take_offer(self) -> bool:
        """Takes one of the connections that are offered to all workers, if there is one. The next
        receive() and take() then return this connection.

        Returns whether the master has to know now that this worker has finished a connection: no
        other connection is offered.
        """
        if self._offers is None or self._counters.is_leaving:
            return True
        code = _take_offer(self._offers.fileno(), self._words, self._offered, self._owner)
        if code > 0:
            self._counters.begin_taken()
            self._payload = self._offered_view[: code & ~_MORE]
        self._failure = min(code, 0)
        return code <= 0 or not code & _MORE

    def receive(self) -> None:
        """Waits for the next connection, which take() then returns, and counts it as begun.

        Raises one of MASTER_GONE after the master has closed its side or has died. OSError: the
        last take_offer failed, for instance with EMFILE.
        """
        if self._failure:
            raise OSError(-self._failure, os.strerror(-self._failure))
        if self._owner.fds[0] >= 0:
            return
        while (code := _receive(self._inbox, 1, _WAIT, self._scratch, self._owner)) <= 0:
            if code == 0:
                raise PeerClosedError("the master has closed the channel")
            if code not in _AGAIN:
                self._end.raise_failure()
                # This waits only if gevent has made the socket non-blocking.
                Deadline(self._channel, READABLE).handle(-code)
        self._payload = self._view[: code & _LENGTH]
        self._counters.begin(1)

    def take(self) -> tuple[ConnectedSocket, Any]:
        """Returns the connection as a socket, which owns it, and the peer's address."""
        kind = find_origin(self._payload, self._kinds)
        sock = ConnectedSocket.__new__(ConnectedSocket)
        try:
            sock.__init__(*kind, self._owner.fds[0])  # type: ignore[misc]
            _take(self._owner, 0)
        except BaseException:
            if self._owner.fds[0] >= 0:
                socket.socket.detach(sock)  # self._owner still owns the descriptor.
            raise
        return sock, read_address(self._payload, kind.family, sock)
