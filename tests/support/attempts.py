"""Every public operation, as something to attack: nothing may be lost, doubled or torn.

An attempt is a generator. It yields the operation, ready to be called; it gets back how that ended,
goes on as the docstring says, and fails where what arrives is not what was sent.
"""

import contextlib
import errno
import itertools
import os
import socket
import tempfile
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fdpass_c
from fdpass_c import Batch, Channel, Descriptors, Listener, Progress
from support.channels import channels
from support.descriptors import identities, open_unique, repeat
from support.messages import Message, assert_stream, described, recv_present, take, take_batch
from support.signals import Interruption
from support.sockets import drain


class Outcome(NamedTuple):
    """How an operation ended: with a value, or with an error."""

    value: Any
    error: BaseException | None


Attempt = Generator[Callable[[], Any], Outcome, None]
STREAM, PACKETS, DATAGRAMS = socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM
KINDS = {"stream": STREAM, "seqpacket": PACKETS, "datagram": DATAGRAMS}

# What may be raised at any place: then a send may have been done, and a plain receive have lost.
# CPython itself now and then makes a SystemError of no memory.
ANYWHERE = (Interruption, MemoryError, SystemError)

# With these, accept may work again later (man 2 accept).
MAY_PASS = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOMEM,
    errno.ECONNABORTED,
    errno.EPERM,
    errno.EPROTO,
}

_numbers = itertools.count()


class Operations:
    """The attempts by name, and what they use: some files, and a folder."""

    def __init__(self, api: Any = fdpass_c) -> None:
        """api: a module with the names of fdpass_c that are tried."""
        self.api = api
        # An event loop wants sockets in non-blocking mode.
        self._timeouts = (None, 30.0) if api is fdpass_c else (0.0,)
        self._stack = ExitStack()
        self.files = open_unique(5)
        self._stack.callback(fdpass_c.close_fds, self.files)
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self.all: dict[str, Callable[[], Attempt]] = {
            **self._plain(),
            **self._channels(),
            **self._meetings(),
        }
        if api is fdpass_c:
            self.all |= {**self._writes(), **self._owners()}
        else:
            self.all["Listener.serve"] = self._serve

    def close(self) -> None:
        self._stack.close()

    def messages(self, *shape: tuple[int, int]) -> tuple[list[bytes], list[list[int]]]:
        """Payloads and rows of descriptors: a length and a number for each message."""
        payloads = [bytes([65 + at % 26]) * size for at, (size, _) in enumerate(shape)]
        rows = [repeat(self.files[at % 5 :], count) for at, (_, count) in enumerate(shape)]
        return payloads, rows

    def path(self) -> Path:
        return Path(self._folder, f"socket{next(_numbers)}")

    @contextmanager
    def _channels_of(
        self, kind: socket.SocketKind = STREAM, buffer: int | None = None
    ) -> Iterator[tuple[Channel, Channel]]:
        with channels(kind, buffer, make=self.api.Channel) as (sender, receiver):
            yield sender, receiver

    # -- the plain wire ----------------------------------------------------------------------------

    def _plain(self) -> dict[str, Callable[[], Attempt]]:
        found: dict[str, Callable[[], Attempt]] = {}
        for name, kind in KINDS.items():
            for timeout in self._timeouts:
                end = f"{name} {timeout}"
                shapes_of_one = [(3, 1)]
                if timeout != 30:
                    shapes_of_one += [(3000, 5)] + [(0, 0)] * (kind is DATAGRAMS)
                for shape in shapes_of_one:
                    word = f"{shape[0]} bytes, {shape[1]} fds, {end}"
                    found[f"send_fds {word}"] = partial(self._send_fds, kind, shape, timeout)
                    found[f"recv_fds {word}"] = partial(self._recv_fds, kind, shape, timeout)
                found[f"send_fd {end}"] = partial(self._send_fd, kind, 3, timeout)
                found[f"recv_fd {end}"] = partial(self._recv_fd, kind, 3, timeout)
                # Linux queues 10 datagrams.
                for count in (3, 70 if kind is not DATAGRAMS else 9):
                    shapes = [(4, 1)] * count
                    word = f"{count} messages, {end}"
                    found[f"send_many {word}"] = partial(self._send_many, kind, shapes, timeout)
                    found[f"recv_many {word}"] = partial(self._recv_many, kind, shapes, timeout)
                mixed = [(1, 1), (300, 2), (7, 1)]
                found[f"send_many mixed, {end}"] = partial(self._send_many, kind, mixed, timeout)
                found[f"recv_many mixed, {end}"] = partial(self._recv_many, kind, mixed, timeout)
        for name, arguments in {"recv_fds": (100, 10), "recv_fd": (), "recv_many": ()}.items():
            found[f"{name} nothing"] = partial(self._receive_late, name, arguments)
        found["send_fds to an address"] = self._send_to
        found["send_fd 9000 bytes"] = partial(self._send_fd, STREAM, 9000, self._timeouts[0])
        return found

    def _check(self, kind: int, got: list[Message], sent: list[Message]) -> None:
        if kind == STREAM:
            assert_stream(got, sent)
        else:
            assert got == sent

    def _settle(self, kind: int, got: list[Message], sent: list[Message], outcome: Outcome) -> None:
        """A plain send that was interrupted says nowhere how far it came, but tears no message."""
        if isinstance(outcome.error, ANYWHERE):
            assert got == sent[: len(got)]
        else:
            self._check(kind, got, sent)

    def _send_fds(self, kind: int, shape: tuple[int, int], timeout: float | None) -> Attempt:
        payloads, rows = self.messages(shape)
        with _pair(kind, timeout) as (left, right):
            outcome = yield lambda: self.api.send_fds(left, payloads, rows[0])
            sent = outcome.value
            if isinstance(outcome.error, OSError):
                sent = self.api.send_fds(left, payloads, rows[0])
            if sent is not None and sent < len(payloads[0]):
                assert self.api.send_fds(left, [payloads[0][sent:]], []) == len(payloads[0]) - sent
            self._settle(kind, _rest(right), described(payloads, rows), outcome)

    def _send_to(self) -> Attempt:
        with _pair(DATAGRAMS, None) as (left, _), socket.socket(socket.AF_UNIX, DATAGRAMS) as right:
            name = str(self.path())
            right.bind(name)
            payloads, rows = self.messages((3, 1))
            with socket.socket(socket.AF_UNIX, DATAGRAMS) as left:
                left.setblocking(self.api is fdpass_c)
                outcome = yield lambda: self.api.send_fds(left, payloads, rows[0], 0, name)
                if isinstance(outcome.error, OSError):
                    self.api.send_fds(left, payloads, rows[0], 0, name)
            self._settle(DATAGRAMS, _rest(right), described(payloads, rows), outcome)
            os.unlink(name)

    def _send_fd(self, kind: int, size: int, timeout: float | None) -> Attempt:
        payloads, rows = self.messages((size, 1))
        with _pair(kind, timeout) as (left, right):
            outcome = yield lambda: self.api.send_fd(left, rows[0][0], payloads[0])
            if isinstance(outcome.error, OSError):
                left_over = getattr(outcome.error, "characters_written", 0)
                if left_over:
                    left.sendall(payloads[0][left_over:])
                else:
                    self.api.send_fd(left, rows[0][0], payloads[0])
            self._settle(kind, _rest(right), described(payloads, rows), outcome)

    def _send_many(
        self, kind: int, shapes: list[tuple[int, int]], timeout: float | None
    ) -> Attempt:
        payloads, rows = self.messages(*shapes)
        fds: Any = rows if any(len(row) != 1 for row in rows) else [row[0] for row in rows]
        with _pair(kind, timeout) as (left, right):
            outcome = yield lambda: self.api.send_many(left, payloads, fds)
            if isinstance(outcome.error, OSError):
                start = outcome.error.progress  # type: ignore[attr-defined]
                self.api.send_many(left, payloads, fds, start=start)
            self._settle(kind, _rest(right), described(payloads, rows), outcome)

    def _recv_fds(self, kind: int, shape: tuple[int, int], timeout: float | None) -> Attempt:
        payloads, rows = self.messages(shape)
        with _pair(kind, timeout) as (left, right):
            _send_each(left, payloads, rows)
            outcome = yield lambda: self.api.recv_fds(right, 5000, 10)
            got = []
            if outcome.error is None:
                data, fds, flags, _ = outcome.value
                got.append((data, identities(fds)))
                fdpass_c.close_fds(fds)
                assert flags == 0
            self._finish_receiving(kind, got, right, payloads, rows, outcome)

    def _finish_receiving(
        self,
        kind: int,
        got: list[Message],
        right: socket.socket,
        payloads: list[bytes],
        rows: list[list[int]],
        outcome: Outcome,
    ) -> None:
        got += _rest(right)
        sent = described(payloads, rows)
        if isinstance(outcome.error, ANYWHERE):
            # What a plain receive was about to hand out is closed with the exception.
            assert got == sent[len(sent) - len(got) :]
        else:
            self._check(kind, got, sent)

    def _recv_fd(self, kind: int, size: int, timeout: float | None) -> Attempt:
        payloads, rows = self.messages((size, 1))
        with _pair(kind, timeout) as (left, right):
            _send_each(left, payloads, rows)
            outcome = yield lambda: self.api.recv_fd(right)
            got = [take(outcome.value)] if outcome.error is None else []
            self._finish_receiving(kind, got, right, payloads, rows, outcome)

    def _recv_many(
        self, kind: int, shapes: list[tuple[int, int]], timeout: float | None
    ) -> Attempt:
        payloads, rows = self.messages(*shapes)
        with _pair(kind, timeout) as (left, right):
            _send_each(left, payloads, rows)
            count = len(payloads)
            outcome = yield lambda: self.api.recv_many(right, count, 400, 3)
            batch = outcome.value or getattr(outcome.error, "batch", None)
            got = take_batch(batch) if batch is not None else []
            self._finish_receiving(kind, got, right, payloads, rows, outcome)

    def _receive_late(self, name: str, arguments: tuple[int, ...]) -> Attempt:
        with _pair(STREAM, 0.001 if self.api is fdpass_c else 0) as (left, right):
            outcome = yield lambda: getattr(self.api, name)(right, *arguments)
            assert outcome.value is None
            payloads, rows = self.messages((4, 1))
            _send_each(left, payloads, rows)
            assert _rest(right) == described(payloads, rows)

    # -- channels ----------------------------------------------------------------------------------

    def _channels(self) -> dict[str, Callable[[], Attempt]]:
        shapes: dict[str, list[tuple[int, int]]] = {
            "one": [(4, 1)],
            "one without": [(4, 0)],
            "one with three": [(4, 3)],
            "large": [(90_000, 300)],
            "three": [(4, 1)] * 3,
            "mixed": [(0, 0), (3000, 2), (5, 1)],
            "600": [(4, 1)] * 600,
            "large between": [(4, 1), (70_000, 3), (4, 1)],
        }
        found: dict[str, Callable[[], Attempt]] = {}
        for kind in ("stream", "seqpacket"):
            for timeout in (None, 30.0):
                for name, shape in shapes.items():
                    if timeout is not None and name in ("600", "large between", "one with three"):
                        continue
                    arguments = (KINDS[kind], shape, timeout)
                    end = f"{name}, {kind} {timeout}"
                    if len(shape) == 1:
                        found[f"Channel.send {end}"] = partial(self._send, *arguments)
                    found[f"Channel.send_many {end}"] = partial(self._send_batch, *arguments)
                    found[f"Channel.recv {end}"] = partial(self._recv, *arguments)
                    found[f"Channel.recv_many {end}"] = partial(self._recv_batch, *arguments)
        found["Channel.send view"] = partial(self._send, STREAM, [(3000, 2)], None, memoryview)
        found["Channel.send object"] = partial(self._send, STREAM, [(3000, 2)], None, _as_array)
        for timeout in (0.0, 0.001):
            found[f"Channel.recv nothing {timeout}"] = partial(
                self._receive_nothing, "recv", timeout
            )
            found[f"Channel.recv_many nothing {timeout}"] = partial(
                self._receive_nothing, "recv_many", timeout
            )
            for name in ("one long", "large", "600"):
                found[f"Channel.send_many unread {name}, {timeout}"] = partial(
                    self._send_unread, shapes.get(name, [(60_000, 2)]), timeout
                )
        found["Channel.flush"] = self._flush
        found["Channel.close"] = self._close
        found["Channel.detach"] = self._detach
        found["Channel.pending"] = self._pending
        return found

    def _end(
        self, sender: Channel, receiver: Channel, sent: list[Message], outcome: Outcome, done: int
    ) -> None:
        """Receives what arrives before another message, which must be the first done of sent."""
        sender.send(b"the end", self.files[:1])
        got: list[Message] = []
        while got[-1:] != [(b"the end", identities(self.files[:1]))]:
            got.append(take(receiver.recv()))
        got.pop()
        if isinstance(outcome.error, ANYWHERE):
            assert got == sent[: len(got)]
        else:
            assert got == sent[:done]
        _assert_no_more(receiver)

    def _send(
        self, kind: Any, shapes: list[tuple[int, int]], timeout: float | None, wrap: Any = bytes
    ) -> Attempt:
        payloads, (row,) = self.messages(*shapes)
        with self._channels_of(kind, BUFFER) as (sender, receiver):
            sender.settimeout(timeout)
            payload = wrap(payloads[0])
            outcome = yield lambda: sender.send(payload, row)
            if isinstance(outcome.error, OSError):
                sender.send(payload, row)
            self._end(sender, receiver, described(payloads, [row]), outcome, 1)

    def _send_batch(
        self, kind: Any, shapes: list[tuple[int, int]], timeout: float | None
    ) -> Attempt:
        payloads, rows = self.messages(*shapes)
        fds: Any = rows if any(len(row) != 1 for row in rows) else [row[0] for row in rows]
        with self._channels_of(kind, BUFFER) as (sender, receiver):
            sender.settimeout(timeout)
            outcome = yield lambda: sender.send_many(payloads, fds)
            if isinstance(outcome.error, OSError):
                done: Progress = outcome.error.progress  # type: ignore[attr-defined]
                assert done.bytes == 0
                sender.send_many(payloads[done.messages :], fds[done.messages :])
            self._end(sender, receiver, described(payloads, rows), outcome, len(payloads))

    def _recv(self, kind: Any, shapes: list[tuple[int, int]], timeout: float | None) -> Attempt:
        yield from self._receive(kind, shapes, timeout, "recv", _take_one)

    def _recv_batch(
        self, kind: Any, shapes: list[tuple[int, int]], timeout: float | None
    ) -> Attempt:
        yield from self._receive(kind, shapes, timeout, "recv_many", take_batch)

    def _receive(
        self,
        kind: Any,
        shapes: list[tuple[int, int]],
        timeout: float | None,
        name: str,
        look: Callable[[Any], list[Message]],
    ) -> Attempt:
        payloads, rows = self.messages(*shapes)
        with self._channels_of(kind, BUFFER) as (sender, receiver):
            receiver.settimeout(timeout)
            sender.send_many(payloads, rows)
            outcome = yield lambda: getattr(receiver, name)()
            got = look(outcome.value) if outcome.error is None else []
            while len(got) < len(payloads):
                got += look(getattr(receiver, name)())
            assert got == described(payloads, rows)
            _assert_no_more(receiver)

    def _receive_nothing(self, name: str, timeout: float) -> Attempt:
        with self._channels_of() as (sender, receiver):
            receiver.settimeout(timeout)
            outcome = yield lambda: getattr(receiver, name)()
            assert outcome.value is None
            sender.send(b"at last", self.files[:1])
            assert take(receiver.recv()) == (b"at last", identities(self.files[:1]))
            _assert_no_more(receiver)

    def _send_unread(self, shapes: list[tuple[int, int]], timeout: float) -> Attempt:
        """More than the buffer takes, while nobody reads."""
        payloads, rows = self.messages(*shapes)
        with self._channels_of(STREAM, 5000) as (sender, receiver):
            sender.settimeout(timeout)
            outcome = yield lambda: sender.send_many(payloads, rows)
            done = len(payloads)
            if isinstance(outcome.error, OSError):
                done = outcome.error.progress.messages  # type: ignore[attr-defined]
            sender.setblocking(False)
            receiver.setblocking(False)
            got: list[Message] = []
            ended = False
            while got[-1:] != [(b"the end", [])]:
                with contextlib.suppress(BlockingIOError):
                    if ended:
                        sender.flush()
                    else:
                        sender.send(b"the end")
                    ended = True
                with contextlib.suppress(BlockingIOError):
                    got.append(take(receiver.recv()))
            got.pop()
            sent = described(payloads, rows)
            if isinstance(outcome.error, ANYWHERE):
                done = len(got)
            assert got == sent[:done]
            _assert_no_more(receiver)

    def _flush(self) -> Attempt:
        """A frame of which a part has left, and then a buffer that is empty again."""
        with self._channels_of(STREAM, 5000) as (sender, receiver):
            sender.setblocking(False)
            data = bytes(60_000)
            with contextlib.suppress(BlockingIOError):
                sender.send(data, self.files[:2])
            begun = sender.unsent
            assert begun
            receiver.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                receiver.recv()
            outcome = yield sender.flush
            assert sender.unsent <= begun
            got: list[Message] = []
            while not got:
                with contextlib.suppress(BlockingIOError):
                    sender.flush()
                with contextlib.suppress(BlockingIOError):
                    got.append(take(receiver.recv()))
            assert got == described([data], [self.files[:2]])
            assert outcome.error is None or isinstance(outcome.error, (OSError, *ANYWHERE))

    def _close(self) -> Attempt:
        with self._channels_of() as (sender, receiver):
            sender.send_many([b"x"] * 3, self.files[:3])
            sender.send(bytes(70_000), self.files)
            take(receiver.recv())
            yield receiver.close
            receiver.close()
            assert receiver.closed

    def _detach(self) -> Attempt:
        """The socket is the caller's, or the channel's, which has no number of a closed one."""
        with self._channels_of() as (sender, receiver):
            fd = receiver.fileno()
            outcome = yield receiver.detach
            assert receiver.closed or _is_open(fd)
            if outcome.error is None:
                with outcome.value as sock:
                    assert receiver.closed
                    assert sock.fileno() == fd
            elif not receiver.closed:
                sender.send(b"x", self.files[:1])
                assert take(receiver.recv()) == (b"x", identities(self.files[:1]))

    def _pending(self) -> Attempt:
        with self._channels_of() as (sender, receiver):
            sender.send_many([b"1", b"2", b"3"], self.files[:3])
            take(receiver.recv())
            yield lambda: receiver.pending
            assert receiver.pending == 2
            assert [take(receiver.recv())[0] for _ in range(2)] == [b"2", b"3"]

    # -- writing -----------------------------------------------------------------------------------

    def _writes(self) -> dict[str, Callable[[], Attempt]]:
        lists: dict[str, list[Any]] = {
            "2": [b"one", b"two"],
            "2 large": [b"x" * 3000, b"y" * 3000],
            "5": [b"%d" % number for number in range(5)],
            "5 wide": [b"%d" % number * 100 for number in range(5)],
            "5 large": [b"%d" % number * 900 for number in range(5)],
            "1500": [b"%d" % number for number in range(1500)],
            "views": [memoryview(b"one"), bytearray(b"two"), b"three"],
            "none": [],
        }
        targets = {"pipe": _pipe, "socket": _stream, "file": _file}
        found: dict[str, Callable[[], Attempt]] = {}
        for name, buffers in lists.items():
            for target, make in targets.items():
                found[f"writev {name}, {target}"] = partial(self._writev, buffers, make, None)
                found[f"broadcast {name}, {target}"] = partial(self._broadcast, buffers, make)
            found[f"writev {name}, offset"] = partial(self._writev, buffers, _file, 5)
        return found

    def _writev(self, buffers: list[Any], make: Any, offset: int | None) -> Attempt:
        data = b"".join(buffers)
        with make() as (fd, read):
            outcome = yield lambda: fdpass_c.writev(fd, buffers, offset=offset)
            start = 0 if offset is None else offset
            if isinstance(outcome.error, OSError):
                done = outcome.error.characters_written  # type: ignore[attr-defined]
                rest = data[done:]
                at = None if offset is None else offset + done
                assert fdpass_c.writev(fd, [rest], offset=at) == len(rest)
            elif outcome.error is None:
                assert outcome.value == len(data)
            got = read()[start:]
            if isinstance(outcome.error, ANYWHERE):
                assert data.startswith(got)
            else:
                assert got == data

    def _broadcast(self, buffers: list[Any], make: Any) -> Attempt:
        data = b"".join(buffers)
        with make() as one, make() as two, make() as three:
            fds = [one[0], two[0], three[0]]
            outcome = yield lambda: fdpass_c.broadcast(fds, buffers)
            for (_, read), result in zip((one, two, three), outcome.value or [], strict=False):
                assert read() == (b"" if isinstance(result, OSError) else data[:result])
            if outcome.error is not None:
                assert isinstance(outcome.error, ANYWHERE), outcome.error
                assert all(data.startswith(read()) for _, read in (one, two, three))

    # -- owners ------------------------------------------------------------------------------------

    def _owners(self) -> dict[str, Callable[[], Attempt]]:
        return {
            "Descriptors": self._own,
            "Descriptors.close": partial(self._use, Descriptors.close),
            "Descriptors.as_socket": partial(self._use, Descriptors.as_socket),
            "Descriptors.as_file": partial(self._use, _as_file),
            "Batch.close": self._close_batch,
            "close_fds": self._close_fds,
            "peer_credentials": partial(self._ask, fdpass_c.peer_credentials),
        }

    def _own(self) -> Attempt:
        fds = [os.dup(fd) for fd in self.files]
        owned: list[Descriptors] = []

        def own() -> None:
            nonlocal owned
            owner = Descriptors(fds)
            owned = [owner]

        yield own
        for owner in owned:
            owner.close()
        if not owned:  # Nobody took them.
            fdpass_c.close_fds(fds)

    def _use(self, use: Callable[[Descriptors], Any]) -> Attempt:
        """What one of an owner's descriptors is made into owns it, or the owner does."""
        with _pair(STREAM, None) as (left, right), _pair(STREAM, None) as (passed, _):
            _send_each(left, [b"x"], [[passed.fileno()]])
            _, fds = fdpass_c.recv_fd(right)
            with fds:
                before = fds[0]
                outcome = yield lambda: use(fds)
                if outcome.value is not None:
                    assert outcome.value.fileno() == before
                    outcome.value.close()

    def _close_batch(self) -> Attempt:
        with self._channels_of() as (sender, receiver):
            sender.send_many([b"x"] * 3, self.files[:3])
            batch: Batch = receiver.recv_many()
            yield batch.close
            batch.close()
            assert batch.fds.closed

    def _close_fds(self) -> Attempt:
        fds = [os.dup(fd) for fd in self.files]
        outcome = yield lambda: fdpass_c.close_fds(fds)
        if isinstance(outcome.error, ANYWHERE):
            # Before or after: a handler that raises cannot tell. All of them, or none.
            still = [fd for fd in fds if _is_open(fd)]
            assert still in ([], fds)
            fdpass_c.close_fds(still)

    def _ask(self, ask: Callable[[socket.socket], Any]) -> Attempt:
        with _pair(STREAM, None) as (left, _):
            yield lambda: ask(left)
            assert ask(left) == (os.getpid(), os.getuid(), os.getgid())

    # -- listening and connecting ------------------------------------------------------------------

    def _meetings(self) -> dict[str, Callable[[], Attempt]]:
        return {
            "Listener": self._listen,
            "Listener over a stale file": partial(self._listen, True),
            "Listener of a socket": self._listen_at_a_socket,
            "Listener.detach": self._detach_a_listener,
            "Listener.close": self._stop_listening,
            "Listener.accept": self._accept,
            "Listener.accept 30.0": partial(self._accept, 30.0),
            "Channel.connect": self._connect,
            "Channel.connect 30.0": partial(self._connect, 30.0),
            "Channel.pair": self._make_pair,
            "Channel": self._make_channel,
        }

    def _meet(self, listener: Listener, path: Path) -> None:
        with self.api.Channel.connect(path) as client:
            client.send(b"another")
            _accept_from(listener, b"another")

    def _listen(self, stale: bool = False) -> Attempt:
        path = self.path()
        if stale:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(path))
        outcome = yield lambda: self.api.Listener(path, mode=0o640)
        if outcome.error is not None:
            assert not path.exists() or stale or isinstance(outcome.error, ANYWHERE)
        with outcome.value or self.api.Listener(path, mode=0o640) as listener:
            assert path.stat().st_mode & 0o777 == 0o640
            self._meet(listener, path)
        assert not path.exists()
        Path(f"{path}.lock").unlink(missing_ok=True)

    def _listen_at_a_socket(self) -> Attempt:
        path = self.path()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            sock.listen()
            outcome = yield lambda: self.api.Listener(sock)
            with outcome.value or self.api.Listener(sock) as listener:
                self._meet(listener, path)
        path.unlink()

    def _detach_a_listener(self) -> Attempt:
        path = self.path()
        with self.api.Listener(path) as listener:
            outcome = yield listener.detach
            if outcome.error is None:
                assert listener.fileno() == -1
                with self.api.Listener(outcome.value) as other:
                    self._meet(other, path)
                path.unlink()
            elif not isinstance(outcome.error, ANYWHERE):
                self._meet(listener, path)
        path.unlink(missing_ok=True)

    def _stop_listening(self) -> Attempt:
        path = self.path()
        listener = self.api.Listener(path)
        yield listener.close
        listener.close()
        assert listener.fileno() == -1
        path.unlink(missing_ok=True)

    def _accept(self, timeout: float | None = None) -> Attempt:
        path = self.path()
        with self.api.Listener(path) as listener, ExitStack() as stack:
            listener.settimeout(timeout)
            client = stack.enter_context(self.api.Channel.connect(path))
            outcome = yield listener.accept
            if outcome.error is not None and not _was_dropped(client):
                outcome = Outcome(listener.accept(), None)
            if outcome.error is None:
                with outcome.value as accepted:
                    client.send(b"hello", self.files[:1])
                    assert take(accepted.recv()) == (b"hello", identities(self.files[:1]))
            self._meet(listener, path)

    def _serve(self) -> Attempt:
        path = self.path()
        sent = (b"hello", identities(self.files[:1]))
        with self.api.Listener(path) as listener, self.api.Channel.connect(path) as client:
            client.send(b"hello", self.files[:1])
            outcome = yield listener.serve_one
            # After these it tries again.
            assert getattr(outcome.error, "errno", None) not in MAY_PASS
            received = outcome.value
            if received is None and listener.fileno() >= 0 and not _was_dropped(client):
                received = listener.serve_one()
            # Otherwise the handler got an error.
            assert received == [sent] or (not received and _was_dropped(client))
        path.unlink(missing_ok=True)

    def _connect(self, timeout: float | None = None) -> Attempt:
        path = self.path()
        with self.api.Listener(path) as listener:
            outcome = yield lambda: self.api.Channel.connect(path, timeout=timeout)
            with outcome.value or self.api.Channel.connect(path, timeout=timeout) as client:
                client.send(b"hello")
                _accept_from(listener, b"hello")

    def _make_pair(self) -> Attempt:
        outcome = yield self.api.Channel.pair
        if outcome.value is not None:
            here, there = outcome.value
            with here, there:
                here.send(b"x")
                assert take(there.recv()) == (b"x", [])

    def _make_channel(self) -> Attempt:
        left, right = socket.socketpair()
        with left, right:
            outcome = yield lambda: self.api.Channel(left)
            if outcome.value is None and left.fileno() < 0:
                # Its owner was made, and dropped with the handler's exception.
                assert isinstance(outcome.error, ANYWHERE)
                return
            with outcome.value or self.api.Channel(left) as channel:
                channel.send(b"x", self.files[:1])
                with self.api.Channel(right) as receiver:
                    assert take(receiver.recv()) == (b"x", identities(self.files[:1]))


BUFFER = 1_000_000


def _as_array(data: bytes) -> "array[int]":
    """Memory that the package does not copy."""
    return array("B", data)


def _rest(sock: socket.socket) -> list[Message]:
    sock.settimeout(None)  # With a timeout Python waits in spite of MSG_DONTWAIT.
    return recv_present(sock)


def _take_one(message: tuple[bytes, Descriptors]) -> list[Message]:
    return [take(message)]


def _as_file(owner: Descriptors) -> Any:
    return owner.as_file(0, "r+b", buffering=0)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _send_each(sock: socket.socket, payloads: Sequence[bytes], rows: Sequence[list[int]]) -> None:
    for payload, row in zip(payloads, rows, strict=True):
        socket.send_fds(sock, [payload], row)


def _assert_no_more(receiver: Channel) -> None:
    receiver.setblocking(False)
    assert receiver.pending == 0
    try:
        receiver.recv()
    except BlockingIOError:
        return
    raise AssertionError("a message that nobody sent")


def _accept_from(listener: Listener, payload: bytes) -> None:
    """Accepts until one brings payload; others, which never had a channel, have gone."""
    while True:
        gone = contextlib.suppress(fdpass_c.PeerClosedError, ConnectionResetError)
        with listener.accept() as accepted, gone:
            assert take(accepted.recv()) == (payload, [])
            return


def _was_dropped(client: Channel) -> bool:
    client.setblocking(False)
    try:
        client.recv()
    except BlockingIOError:
        client.setblocking(True)
        return False
    except (fdpass_c.PeerClosedError, ConnectionResetError):
        return True
    raise AssertionError("a message that nobody sent")


@contextmanager
def _pair(kind: Any, timeout: float | None) -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    with left, right:
        left.settimeout(timeout)
        right.settimeout(timeout)
        yield left, right


Target = tuple[int, Callable[[], bytes]]
"""A descriptor to write to, and what reads all that has been written."""


@contextmanager
def _pipe() -> Iterator[Target]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    found = bytearray()

    def read() -> bytes:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(reader, 1 << 16):
                found.extend(piece)
        return bytes(found)

    try:
        yield writer, read
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def _stream() -> Iterator[Target]:
    found = bytearray()

    def read() -> bytes:
        found.extend(drain(right))
        return bytes(found)

    with _pair(STREAM, None) as (left, right):
        yield left.fileno(), read


@contextmanager
def _file() -> Iterator[Target]:
    with tempfile.TemporaryFile() as file:
        yield file.fileno(), lambda: os.pread(file.fileno(), 1 << 20, 0)
