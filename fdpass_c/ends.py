"""One end of a channel in the C core, as a Channel, the event loops and the pool use it."""

import errno
from typing import Any, NoReturn

from fdpass_c._native import ffi, lib
from fdpass_c.errors import ProtocolError, raise_oserror
from fdpass_c.sending import Sending

_VIOLATIONS = {
    lib.FDP_MALFORMED: "the peer sent something other than a frame",
    lib.FDP_TORN: "the peer closed the connection inside a message",
    lib.FDP_MISSING: "a frame came without all of the descriptors that it announced",
    lib.FDP_SURPLUS: "descriptors came that no frame announced",
    lib.FDP_UNWANTED: "descriptors came to a channel with receive_fds=False",
    lib.FDP_TRUNCATED: "descriptors were lost: the descriptor table is full (RLIMIT_NOFILE) "
    "or a security module refused them",
    lib.FDP_TOO_LONG: "a message of {needed} bytes, max_payload is {max_payload}",
    lib.FDP_TOO_MANY: "a message with {needed} descriptors, max_fds is {max_fds}",
    lib.FDP_NO_MEMORY: "no memory for what was received",
}


class End:
    """Owns the struct fdp_inbox and the struct fdp_outbox of a channel."""

    __slots__ = ("_closers", "inbox", "outbox")

    def __init__(self, sock: int, max_payload: int, max_fds: int, receive_fds: bool) -> None:
        """sock: borrowed."""
        self.inbox: Any = ffi.new("struct fdp_inbox *")
        self.outbox: Any = ffi.new("struct fdp_outbox *", {"sock": sock})
        lib.fdp_start_inbox(self.inbox, sock, max_payload, max_fds, receive_fds)
        # These are separate objects, so that the memory outlives them: in a reference cycle, other
        # finalisers that run later may still use it.
        self._closers = (
            ffi.gc(self.inbox, lib.fdp_close_inbox),
            ffi.gc(self.outbox, lib.fdp_close_outbox),
        )

    def raise_failure(self) -> None:
        """Raises an exception if the reason of a failure is that the channel is closed, or that the
        peer broke the protocol."""
        if self.inbox.violation:
            self._raise_violation()
        self.check_open()

    def check_open(self) -> None:
        """OSError: EBADF: the channel is closed."""
        if self.inbox.sock < 0:
            raise_oserror(errno.EBADF, "the channel is closed")

    def _raise_violation(self) -> NoReturn:
        inbox = self.inbox
        text = _VIOLATIONS[inbox.violation].format(
            needed=inbox.needed, max_payload=inbox.max_payload, max_fds=inbox.max_fds
        )
        raise ProtocolError(f"{text}; every descriptor received and not handed out is closed")

    def start_flushing(self) -> Sending | None:
        """Returns the rest of a frame to be sent, or None if there is none."""
        self.raise_failure()
        return Sending(self.outbox, None, 0) if self.outbox.unsent else None

    @property
    def has_kept(self) -> bool:
        """Whether anything was received, whole or in part, and not handed out."""
        return bool(self.inbox.store)

    def has_room(self) -> bool:
        """After a DescriptorTableFullError: whether there may be room for that message now.

        It does not consider the incomplete messages of other channels.
        """
        self.raise_failure()
        room = lib.fdp_count_room()
        return room < 0 or bool(room >= self.inbox.needed)

    def check_empty(self) -> None:
        """Raises the exceptions of Channel.detach."""
        self.raise_failure()
        sends = self.outbox.unsent or self.outbox.job != ffi.NULL
        if self.has_kept or self.inbox.large.is_open or sends:
            raise ValueError(
                "received messages or unsent bytes would be lost: "
                "receive until pending is 0, and flush()"
            )
