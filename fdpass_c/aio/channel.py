"""Channel: fdpass_c.Channel under an event loop."""

import errno
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from functools import partial
from operator import index
from typing import Any

import fdpass_c
from fdpass_c._native import lib
from fdpass_c.aio.directions import Direction, Result, growing_pauses
from fdpass_c.aio.loops import running
from fdpass_c.buffers import Buffer
from fdpass_c.channel import IN_FLIGHT_DELAY, end_of, open_connected
from fdpass_c.descriptors import Descriptors, as_list
from fdpass_c.errors import PeerClosedError, raise_oserror
from fdpass_c.options import DEFAULT_MAX_FDS, DEFAULT_MAX_PAYLOAD
from fdpass_c.outcomes import NOTHING_SENT, Batch, Progress
from fdpass_c.owning import NotCopied
from fdpass_c.peer import Credentials
from fdpass_c.sending import Sending, start_many, start_one
from fdpass_c.unix import Path, connect_unix
from fdpass_c.waiting import HasFileno

_DONE = lib.FDP_DONE
_LOOK = lib.FDP_LOOK

# After a try that found nothing, so many receives wait before they try. If the peer answers each
# message, this saves a tenth of the time (two processes, each on its own CPU). If messages are
# queued, it costs a turn of the loop.
_WAIT_FIRST = 3

# Seconds between two checks of a full descriptor table.
_ROOM_INTERVAL = 0.1


class Channel(NotCopied):
    """Passes whole messages, each a payload and descriptors, over a connected Unix socket.

    Names, meanings, errors and limits are those of fdpass_c.Channel, and each of the two can be the
    peer of the other. But no call has a timeout of its own: use asyncio.timeout or
    trio.fail_after. A channel is an async context manager: its exit sends what is unsent, unless an
    exception leaves the block, and then closes. It is also an async iterator over (payload, fds)
    until the peer closes.

    A channel belongs to the event loop that is running when it is made. Its methods raise a
    RuntimeError if no event loop or another one is running.

    Tasks: one may send while another receives. If several send, or several receive, they take turns
    in the order of their calls.

    Cancellation loses nothing. A cancelled receive has taken nothing. A cancelled send has sent
    what error.progress counts, and nothing else. A frame that was begun counts as sent. Its rest
    goes with the next send, with flush(), or at the end of the block. A large message that is not
    complete is withdrawn.

    Fairness: at least one of 32 calls in a row lets the loop run other tasks, before it takes or
    sends anything. asyncio delivers a cancellation where a call waits or lets other tasks run. trio
    delivers it at every call.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> None:
        """Takes ownership of sock, which becomes non-blocking.

        Args:
            sock: As for fdpass_c.Channel. For a trio socket, pass socket.socket(fileno=x.detach()).
            max_payload: As for fdpass_c.Channel.
            max_fds: As for fdpass_c.Channel.
            allow_uids: As for fdpass_c.Channel.
            receive_fds: As for fdpass_c.Channel.

        Raises:
            RuntimeError: No event loop is running.
            TypeError: As for fdpass_c.Channel.
            ValueError: As for fdpass_c.Channel.
            OSError: As for fdpass_c.Channel.
        """
        running()
        channel = fdpass_c.Channel(
            sock,
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        self._take_over(channel)

    def _take_over(self, channel: fdpass_c.Channel) -> None:
        _, loop = running()
        channel.setblocking(False)
        self._channel = channel
        self._end = end_of(channel)
        self._outbox = self._end.outbox
        self._reading: Direction = loop.watch(channel, False)
        self._writing: Direction = loop.watch(channel, True)
        self._uncancelled = self._writing.uncancelled
        self._sleep = loop.sleep
        self._wait_first = 0  # So many of the next receives wait before they try.

    @classmethod
    def adopt(cls, channel: fdpass_c.Channel) -> "Channel":
        """Makes a channel of the running loop from a blocking one, which must not be used any more.

        Args:
            channel: The blocking channel. Messages that it has received and not handed out are
                received from the new channel.

        Raises:
            RuntimeError: No event loop is running.
        """
        adopted = cls.__new__(cls)
        adopted._take_over(channel)
        return adopted

    @classmethod
    def pair(
        cls,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> tuple["Channel", "Channel"]:
        """Makes two connected channels of the running loop.

        Args:
            max_payload: As for Channel, for both.
            max_fds: As for Channel, for both.
            allow_uids: As for Channel, for both.
            receive_fds: As for Channel, for both.

        Returns:
            Two channels, which the caller owns and closes.
        """
        running()
        ours, theirs = fdpass_c.Channel.pair(
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        return cls.adopt(ours), cls.adopt(theirs)

    @classmethod
    async def connect(
        cls,
        path: Path,
        *,
        max_payload: int = DEFAULT_MAX_PAYLOAD,
        max_fds: int = DEFAULT_MAX_FDS,
        allow_uids: Collection[int] | None = None,
        receive_fds: bool = True,
    ) -> "Channel":
        """Connects to a Listener.

        If the listener's backlog is full, this tries again with growing delays.

        Args:
            path: The path of the socket file, or a name in Linux's abstract namespace: a NUL
                followed by the name.
            max_payload: As for Channel.
            max_fds: As for Channel.
            allow_uids: As for Channel.
            receive_fds: As for Channel.

        Returns:
            The channel, which the caller owns and closes.

        Raises:
            OSError: As for fdpass_c.Channel.connect.
        """
        _, loop = running()
        make = partial(
            fdpass_c.Channel,
            max_payload=max_payload,
            max_fds=max_fds,
            allow_uids=allow_uids,
            receive_fds=receive_fds,
        )
        wait = growing_pauses(loop.sleep)
        await loop.sleep(0)
        while True:
            try:
                sock = connect_unix(path, 0)
                break
            except BlockingIOError:
                await wait()  # No loop can report when the backlog has room.
        return cls.adopt(open_connected(make, sock, path))

    async def send(self, payload: Buffer, fds: Iterable[int | HasFileno] = ()) -> None:
        """Sends one message. It waits while the socket's buffer is full.

        After a cancellation or any other exception, error.progress.messages is 1 if the receiver
        will get the message, because only the rest of a begun frame was unsent. Otherwise the
        receiver gets no part of it.

        Args:
            payload: A bytes-like object, which may be empty. It must not change until the await
                returns.
            fds: Any number of ints or objects with fileno(). The caller still owns them, and they
                must stay open until the await returns.

        Raises:
            OSError: As for fdpass_c.Channel.send.
            ProtocolError: As for fdpass_c.Channel.send.
        """
        if self._writing.is_free() and (self._uncancelled is None or await self._uncancelled()):
            sending = start_one(self._outbox, payload, fds)
            if sending is not None:
                await self._finish(sending)
        else:
            await self._finish(None, NOTHING_SENT, start_one, self._outbox, payload, fds)

    async def send_many(
        self,
        payloads: Sequence[Buffer],
        fds: Sequence[int | HasFileno | Iterable[int | HasFileno]] = (),
        *,
        start: Progress = NOTHING_SENT,
    ) -> int:
        """Sends many messages, packed into few frames: see fdpass_c.Channel.send_many.

        Args:
            payloads: One bytes-like object for each message. They must not change until the await
                returns.
            fds: As for fdpass_c.Channel.send_many. They must stay open until the await returns.
            start: As for fdpass_c.Channel.send_many.

        Returns:
            The number of messages, which is len(payloads).

        Raises:
            OSError: As for send. error.progress.messages says how many messages the receiver gets.
            ProtocolError: As for send.
        """
        data = [*payloads]
        if self._writing.is_free() and (self._uncancelled is None or await self._uncancelled()):
            sending = start_many(self._outbox, data, as_list(fds), start)
            if sending is not None:
                await self._finish(sending)
        else:
            listed = as_list(fds)
            await self._finish(None, start, start_many, self._outbox, data, listed, start)
        return len(data)

    async def flush(self) -> None:
        """Sends the bytes that unsent counts. It waits while the socket's buffer is full."""
        self._writing.check_loop()
        await self._finish(None, NOTHING_SENT, self._end.start_flushing)

    async def _finish(
        self,
        sending: Sending | None,
        before: Progress = NOTHING_SENT,
        begin: Callable[..., Sending | None] | None = None,
        *arguments: Any,
    ) -> None:
        """Takes a turn and sends until everything is sent.

        sending: a send that has begun and now waits. If it is None, begin(*arguments) begins one
        when the turn has come. before: the progress to report if this fails before that.
        """
        writing = self._writing
        me = object()
        try:
            if begin is None:
                writing.holder = me
            else:
                await writing.enter(me)
                sending = begin(*arguments)
            while sending is not None and (result := sending.step(socket.MSG_DONTWAIT)) != _DONE:
                if result == -errno.EAGAIN:
                    await writing.wait()
                elif result == _LOOK:
                    await writing.pause()
                elif result == -errno.ETOOMANYREFS and self._channel.wait_in_flight:
                    await self._sleep(IN_FLIGHT_DELAY)
                elif result != -errno.EINTR:
                    self._end.raise_failure()
                    raise_oserror(-result)
        except BaseException as error:
            if sending is not None:
                sending.give_up(error)
            else:
                error.progress = before  # type: ignore[attr-defined]
            raise
        finally:
            if writing.holder is me:
                writing.holder = None
                if writing.queue:
                    writing.pass_on()

    @property
    def wait_in_flight(self) -> bool:
        """Whether a send waits while the user has too many descriptors in flight. It may be
        set."""
        return self._channel.wait_in_flight

    @wait_in_flight.setter
    def wait_in_flight(self, waits: bool) -> None:
        self._channel.wait_in_flight = waits

    @property
    def unsent(self) -> int:
        """How many bytes of a begun frame wait for the next send, or for flush()."""
        return self._channel.unsent

    async def recv(self) -> tuple[bytes, Descriptors]:
        """Receives one message.

        Returns:
            A tuple (payload, fds): the bytes, and the Descriptors that own the descriptors that
                came with them, possibly none. The caller closes fds.

        Raises:
            DescriptorTableFullError: The descriptor table has no room for the descriptors of the
                next message, which stays queued. wait_for_room() waits for room.
            PeerClosedError: As for fdpass_c.Channel.recv.
            ProtocolError: As for fdpass_c.Channel.recv.
            OSError: As for fdpass_c.Channel.recv.
        """
        channel = self._channel
        tries = self._reading.is_free() and (not self._wait_first or self._end.has_kept)
        if tries and self._uncancelled is not None:
            tries = await self._uncancelled()
        if tries:
            try:
                return channel.recv()
            except BlockingIOError:
                pass
        return await self._receive(channel.recv, tries)

    async def recv_many(self, max_messages: int = 253) -> Batch:
        """Receives at least one message, and others that have already arrived.

        Args:
            max_messages: The largest number of messages to receive.

        Returns:
            A Batch, which owns the descriptors of all its messages. The caller closes it.

        Raises:
            DescriptorTableFullError: As for recv, and so are all other errors.
        """
        channel = self._channel
        if not 1 <= index(max_messages) <= sys.maxsize:
            return channel.recv_many(max_messages)  # Raises a ValueError or an OverflowError.
        tries = self._reading.is_free() and (not self._wait_first or self._end.has_kept)
        if tries and self._uncancelled is not None:
            tries = await self._uncancelled()
        if tries:
            try:
                return channel.recv_many(max_messages)
            except BlockingIOError:
                pass
        return await self._receive(partial(channel.recv_many, max_messages), tries)

    async def _receive(self, attempt: Callable[[], Result], has_tried: bool) -> Result:
        """Takes a turn and receives. has_tried: the caller has tried, and found nothing.

        Nothing is awaited between the last try and the return. So no cancellation can come after a
        try that has received something.
        """
        reading = self._reading
        waits = has_tried or self._wait_first > 0
        self._wait_first = _WAIT_FIRST if has_tried else max(self._wait_first - 1, 0)
        me = object()
        try:
            if waits and reading.holder is None:
                reading.holder = me
            else:
                await reading.enter(me)
            while True:
                # If bytes or messages are already received, this must not wait for the socket,
                # because the peer may never send more. Before the first try, has_kept decides,
                # which also counts bytes of incomplete messages: only a try tells whether a
                # message is complete. After a try, pending decides, which counts messages: a large
                # message can be complete although the try did not return it.
                if waits and (self._channel.pending if has_tried else self._end.has_kept):
                    await reading.pause()
                elif waits:
                    await reading.wait()
                try:
                    return attempt()
                except BlockingIOError:
                    waits = has_tried = True
        finally:
            if reading.holder is me:
                reading.holder = None
                if reading.queue:
                    reading.pass_on()

    async def wait_for_room(self) -> None:
        """Waits, after a DescriptorTableFullError, until there may be room for that message.

        The system does not report that a descriptor was closed, so this checks every 0.1 s.
        """
        self._reading.check_loop()
        while True:
            await self._sleep(_ROOM_INTERVAL)
            if self._end.has_room():
                return

    def __aiter__(self) -> AsyncIterator[tuple[bytes, Descriptors]]:
        """Receives messages until the peer closes. The caller owns and closes each Descriptors."""
        return self

    async def __anext__(self) -> tuple[bytes, Descriptors]:
        """Receives one message."""
        try:
            return await self.recv()
        except PeerClosedError:
            raise StopAsyncIteration from None

    @property
    def pending(self) -> int:
        """How many whole messages have been received and not handed out."""
        return self._channel.pending

    def fileno(self) -> int:
        """Returns the socket's descriptor, which the channel still owns, or -1 after close()."""
        return self._channel.fileno()

    @property
    def peer(self) -> Credentials:
        """The pid, uid and gid of the peer as it was when the connection was made.

        For both ends of a socket pair, they are those of the process that made the pair.
        """
        return self._channel.peer

    def peer_pidfd(self) -> int | None:
        """Returns a pidfd of the process that peer names, or None: see fdpass_c.peer_pidfd.

        The caller owns it.
        """
        return self._channel.peer_pidfd()

    @property
    def closed(self) -> bool:
        """Whether close() or detach() was called."""
        return self._channel.closed

    def shutdown(self, how: int) -> None:
        """Ends one direction or both: see fdpass_c.Channel.shutdown.

        Tasks that wait in a call for that direction get the same errors as later calls.

        Raises:
            RuntimeError: It is called in a thread other than the loop's.
            OSError: As for fdpass_c.Channel.shutdown.
        """
        self._writing.stop()  # A shutdown does not make the loop wake a task that waits for room.
        self._channel.shutdown(how)

    def detach(self) -> socket.socket:
        """Hands over the socket, which stays non-blocking: see fdpass_c.Channel.detach.

        Tasks that wait for messages get an OSError (EBADF).

        Raises:
            RuntimeError: It is called in a thread other than the loop's.
            ValueError: As for fdpass_c.Channel.detach, or a task is sending: flush() waits for it.
            OSError: As for fdpass_c.Channel.detach.
        """
        self._end.check_empty()
        self._reading.stop()
        self._writing.stop()
        return self._channel.detach()

    def close(self) -> None:
        """Closes the socket and every descriptor that was received and not handed out.

        Calling it again does nothing. Everything is closed when it returns, even after the loop has
        ended. Tasks that wait in another call get an OSError (EBADF). The bytes that unsent counts
        are lost, so call flush() first. A forked child may close its copy, which does not disturb
        the parent.

        Raises:
            RuntimeError: It is called in a thread other than the loop's.
        """
        if not self._channel.closed:
            self._reading.stop()
            self._writing.stop()
        self._channel.close()

    async def __aenter__(self) -> "Channel":
        """Returns the object itself."""
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Sends what is unsent, unless an exception leaves the block, and calls close()."""
        try:
            if kind is None and self.unsent:
                await self.flush()
        finally:
            self.close()

    def __del__(self) -> None:
        """Makes the loop forget the descriptor, unless the channel was closed. Then the blocking
        channel closes it with a ResourceWarning."""
        if hasattr(self, "_writing") and not self._channel.closed:
            self._reading.drop()
            self._writing.drop()

    def __repr__(self) -> str:
        return f"<fdpass_c.aio.Channel over {self._channel!r}>"
