"""Channel: fdpass_c.Channel under an event loop."""

import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import fdpass_c
from fdpass_c._native import lib
from fdpass_c.aio.loops import Direction, Result, keep_trying, running
from fdpass_c.batches import NOTHING_SENT, Batch, Progress
from fdpass_c.buffers import Buffer
from fdpass_c.channel import IN_FLIGHT_DELAY
from fdpass_c.descriptors import Descriptors
from fdpass_c.errors import NotCopied, PeerClosedError, raise_oserror
from fdpass_c.peer import Credentials
from fdpass_c.sending import Sending
from fdpass_c.unix import Path, connect_unix
from fdpass_c.waiting import HasFileno

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fdpass_c.channel import ChannelOptions

_DONE = lib.FDP_DONE
_LOOK = lib.FDP_LOOK

# Seconds between two tries to connect to a full backlog: no loop tells when there is a place.
_FIRST_DELAY = 0.001
_LONGEST_DELAY = 0.1

# After a try that found nothing, so many receives wait first: where answers are waited for, that
# saves a tenth (two processes, each on a CPU of its own). Where messages are there it costs a turn.
_IN_VAIN = 3

# Seconds between two looks at a full descriptor table.
_LOOK_AGAIN = 0.1


class Channel(NotCopied):
    """Passes whole messages, each a payload and descriptors, over a connected Unix socket.

    As fdpass_c.Channel, and the two understand each other: names, meanings, errors and limits are
    the same, but nothing times out by itself: asyncio.timeout and trio.fail_after do that. An async
    context manager, whose exit sends what is unsent unless an exception leaves the block, and then
    closes; and an async iterator over (payload, fds) until the peer closes.

    It belongs to the event loop that runs when it is made: RuntimeError without one and in another.

    Tasks: one may send while another receives. Several may send, or receive: they take turns, first
    come first served.

    Cancellation loses nothing. A receive has taken nothing. A send has sent what error.progress
    counts, and nothing else: a frame that is begun counts, and its rest goes with the next send,
    with flush() or at the end of the block; a large message that is not whole is withdrawn.

    Fairness: of 32 calls in a loop at least one lets it turn, before it takes or sends anything.
    Asyncio delivers a cancellation where a call waits or lets the loop turn, trio at every call.
    """

    def __init__(
        self,
        sock: socket.socket,
        **options: "Unpack[ChannelOptions]",
    ) -> None:
        """Takes ownership of sock, which becomes non-blocking. Options and errors: as blocking."""
        running()
        self._take_over(fdpass_c.Channel(sock, **options))

    def _take_over(self, channel: fdpass_c.Channel) -> None:
        _, loop = running()
        channel.setblocking(False)
        self._channel = channel
        self._reading: Direction[Any] = loop.watch(channel, False)
        self._writing: Direction[Any] = loop.watch(channel, True)
        self._sleep = loop.sleep
        self._vain = 0

    @classmethod
    def adopt(cls, channel: fdpass_c.Channel) -> "Channel":
        """A channel of the running loop from a blocking one, which must not be used any more."""
        running()
        adopted = cls.__new__(cls)
        adopted._take_over(channel)
        return adopted

    @classmethod
    def pair(cls, **options: "Unpack[ChannelOptions]") -> tuple["Channel", "Channel"]:
        """Two connected channels, both of the running loop. options: as for Channel."""
        running()
        ours, theirs = fdpass_c.Channel.pair(**options)
        return cls.adopt(ours), cls.adopt(theirs)

    @classmethod
    async def connect(cls, path: Path, **options: "Unpack[ChannelOptions]") -> "Channel":
        """A channel to whoever listens at path; a leading NUL means Linux's abstract namespace.

        Waits for a place in a full backlog, asking again after growing delays. options: as for
        Channel. Errors as blocking.
        """
        _, loop = running()
        delay = _FIRST_DELAY
        await loop.sleep(0)
        while True:
            try:
                sock = connect_unix(path, 0)
                break
            except BlockingIOError:
                await loop.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
        try:
            return cls(sock, **options)
        except BaseException:
            sock.close()
            raise

    async def send(self, payload: Buffer, fds: Iterable[int | HasFileno] = ()) -> None:
        """Sends one message: payload, bytes-like, may be empty; any number of descriptors.

        fds: ints or objects with fileno(), borrowed: they, and payload, must stay as they are until
        the await has returned. Errors as blocking; none for a full buffer, which it waits for.

        Cancelled, or after any other exception: the receiver gets the message if
        error.progress.messages is 1, as where only the rest of a begun frame was left, and
        otherwise nothing of it.
        """
        if self._writing.is_free():
            sending = self._channel.start_sending(payload, fds)
            if sending is not None:
                self._writing.occupy()
                await self._finish(sending)
        else:
            await self._send_in_turn(self._channel.start_sending, payload, fds)

    async def send_many(
        self,
        payloads: Sequence[Buffer],
        fds: Sequence[int | HasFileno] | Sequence[Iterable[int | HasFileno]] = (),
        *,
        start: Progress = NOTHING_SENT,
    ) -> int:
        """Sends many messages, packed into as few as the kernel allows; returns len(payloads).

        All as blocking; payloads and fds must stay as they are until the await has returned.
        Errors as for send; error.progress.messages says how many messages the receiver gets.
        """
        data = [*payloads]
        if self._writing.is_free():
            sending = self._channel.start_sending_many(data, [*fds], start)
            if sending is not None:
                self._writing.occupy()
                await self._finish(sending)
        else:
            await self._send_in_turn(self._channel.start_sending_many, data, [*fds], start)
        return len(data)

    async def flush(self) -> None:
        """Sends what unsent counts."""
        await self._send_in_turn(self._channel.start_flushing)

    async def _send_in_turn(self, start: Callable[..., Sending | None], *arguments: Any) -> None:
        """Waits for its turn, and begins only then."""
        try:
            await self._writing.enter()
        except BaseException as error:
            error.progress = Progress()  # type: ignore[attr-defined]
            raise
        try:
            sending = start(*arguments)
        except BaseException:
            self._writing.leave()
            raise
        if sending is None:
            self._writing.leave()
        else:
            await self._finish(sending)

    async def _finish(self, sending: Sending) -> None:
        """Sends what is left, in the turn of its own that this ends."""
        try:
            while (result := sending.step(socket.MSG_DONTWAIT)) != _DONE:
                if result == -errno.EAGAIN:
                    await self._writing.wait()
                elif result == _LOOK:
                    await self._writing.pause()
                elif result == -errno.ETOOMANYREFS and self._channel.wait_in_flight:
                    await self._sleep(IN_FLIGHT_DELAY)
                elif result != -errno.EINTR:
                    self._channel.raise_failure()
                    raise_oserror(-result)
        except BaseException as error:
            sending.give_up(error)
            raise
        finally:
            self._writing.leave()

    @property
    def wait_in_flight(self) -> bool:
        """As blocking: whether sends wait while too many descriptors are in flight; may be set."""
        return self._channel.wait_in_flight

    @wait_in_flight.setter
    def wait_in_flight(self, waits: bool) -> None:
        self._channel.wait_in_flight = waits

    @property
    def unsent(self) -> int:
        """How many bytes of a frame that is begun wait for the next send, or for flush()."""
        return self._channel.unsent

    async def recv(self) -> tuple[bytes, Descriptors]:
        """Receives one message: its payload and the owner of its descriptors, perhaps of none.

        Errors as blocking. After DescriptorTableFullError, wait_for_room() waits for places.
        """
        channel = self._channel
        tries = self._reading.is_free() and (not self._vain or channel.pending)
        if tries:
            try:
                return channel.recv()
            except BlockingIOError:
                pass
        return await self._receive(channel.recv, tries)

    async def recv_many(self, max_messages: int = 253) -> Batch:
        """Receives at least one message, and with it those that came in the same frame or are
        already here, at most max_messages; others may still be queued. Errors as for recv.
        """
        channel = self._channel
        tries = self._reading.is_free() and (not self._vain or channel.pending)
        if tries:
            try:
                return channel.recv_many(max_messages)
            except BlockingIOError:
                pass
        return await self._receive(partial(channel.recv_many, max_messages), tries)

    async def _receive(self, attempt: Callable[[], Result], has_tried: object) -> Result:
        """What a receive does that has not found anything, or not tried."""
        waits = bool(has_tried or self._vain)
        self._vain = _IN_VAIN if has_tried else max(self._vain - 1, 0)
        await self._reading.enter(pauses=not waits)
        return await keep_trying(self._reading, attempt, waits, self._has_more)

    def _has_more(self) -> int:
        """A long message can end in what one try receives and only the next one hands out."""
        return self._channel.pending

    async def wait_for_room(self) -> None:
        """After DescriptorTableFullError: returns once there may be room for that message.

        Nothing tells when a descriptor is closed, so it looks every 0.1 s.
        """
        self._reading.check_loop()
        while True:
            await self._sleep(_LOOK_AGAIN)
            if self._channel.has_room():
                return

    def __aiter__(self) -> AsyncIterator[tuple[bytes, Descriptors]]:
        """The messages until the peer closes; each Descriptors is the loop's to close."""
        return self

    async def __anext__(self) -> tuple[bytes, Descriptors]:
        try:
            return await self.recv()
        except PeerClosedError:
            raise StopAsyncIteration from None

    @property
    def pending(self) -> int:
        """How many whole messages are here and not handed out."""
        return self._channel.pending

    def fileno(self) -> int:
        """The socket's descriptor, borrowed; -1 once closed."""
        return self._channel.fileno()

    @property
    def peer(self) -> Credentials:
        """Who was at the other end when it was connected: pid, uid, gid."""
        return self._channel.peer

    def peer_pidfd(self) -> int | None:
        """As fdpass_c.peer_pidfd: a pidfd of the peer, which the caller owns, or None."""
        return self._channel.peer_pidfd()

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._channel.closed

    def shutdown(self, how: int) -> None:
        """Ends one direction or both, as blocking."""
        self._channel.shutdown(how)

    def detach(self) -> socket.socket:
        """Hands over the socket, which stays non-blocking, as blocking. Tasks that wait inside a
        call are woken and get an OSError (EBADF)."""
        self._channel.check_empty()
        self._reading.stop()
        self._writing.stop()
        return self._channel.detach()

    def close(self) -> None:
        """Closes the socket and every descriptor received and not handed out. Again is harmless.

        Complete when it returns, also after the loop has ended. Tasks that wait inside a call are
        woken and get an OSError (EBADF). What unsent counts is lost: flush() before. A forked child
        may close its copy, which does not disturb the parent. RuntimeError in another thread than
        the one in which the loop runs.
        """
        if not self._channel.closed:
            self._reading.stop()
            self._writing.stop()
        self._channel.close()

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None and self.unsent:
                await self.flush()
        finally:
            self.close()

    def __del__(self) -> None:
        # The blocking one warns, and closes.
        if hasattr(self, "_writing") and not self._channel.closed:
            self._reading.drop()
            self._writing.drop()

    def __repr__(self) -> str:
        return f"<fdpass_c.aio.Channel over {self._channel!r}>"
