"""A client of the mixed soak: sends messages of all kinds, and checks that each comes back once,
whole and in order.

    python -m benchmarks.mixed_client threads PATH SECONDS SEED

It sends for so many seconds, waits until everything is back, and exits with status 0.
"""

import asyncio
import faulthandler
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack

from benchmarks.ways import identify
from fdpass_c import Channel, aio

# The most messages under way, so that neither side fills the other's descriptor table.
_WINDOW = 100
_LONGEST_ANSWER = 60

Message = tuple[bytes, list[int]]


class Talk:
    """Makes the messages of one client, and compares them with what comes back."""

    def __init__(self, fds: list[int], seconds: float, seed: int) -> None:
        """Borrows fds."""
        self._chance = random.Random(seed)
        self._fds = fds
        self._files = dict(zip(fds, identify(fds), strict=True))
        self._end = time.monotonic() + seconds
        self._expected: deque[Message] = deque()
        self._made = 0

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end

    @property
    def has_room(self) -> bool:
        return len(self._expected) < _WINDOW

    @property
    def is_answered(self) -> bool:
        return not self._expected

    def make(self) -> list[Message]:
        """Returns the next messages: many small ones, or one that may be large."""
        chance = self._chance
        if chance.random() < 0.5:
            size = chance.randrange(200)
            messages = [self._make_one(size, 1) for _ in range(chance.randrange(1, 40))]
        elif chance.random() < 0.9:
            messages = [self._make_one(chance.randrange(5000), chance.randrange(4))]
        else:
            messages = [self._make_one(chance.randrange(500_000), chance.randrange(300))]
        self._expected.extend(messages)
        return messages

    def _make_one(self, size: int, fd_count: int) -> Message:
        self._made += 1
        payload = self._made.to_bytes(8, "big") + self._chance.randbytes(size)
        return payload, self._chance.choices(self._fds, k=fd_count)

    def check(self, payload: bytes, fds: Iterable[int]) -> None:
        sent, sent_fds = self._expected.popleft()
        assert payload == sent, (payload[:8], sent[:8])
        assert identify(fds) == [self._files[fd] for fd in sent_fds], payload[:8]


def _talk_in_threads(path: str, talk: Talk) -> None:
    """Sends in one thread while another receives."""
    room = threading.Semaphore(0)

    def send(channel: Channel) -> None:
        while not talk.is_over:
            messages = talk.make()
            if len(messages) == 1:
                channel.send(*messages[0])
            else:
                channel.send_many(*zip(*messages, strict=True))
            while not talk.has_room:
                room.acquire()
        channel.shutdown(socket.SHUT_WR)

    with Channel.connect(path) as channel:
        channel.wait_in_flight = True
        sender = threading.Thread(target=send, args=[channel])
        sender.start()
        for payload, fds in channel:
            with fds:
                talk.check(payload, fds)
            room.release()
        sender.join()


async def _talk_in_loop(path: str, talk: Talk) -> None:
    """Sends in one task while another receives. Receives are cancelled and begun again all the
    time."""
    room = asyncio.Event()

    async def send(channel: aio.Channel) -> None:
        while not talk.is_over:
            messages = talk.make()
            if len(messages) == 1:
                await channel.send(*messages[0])
            else:
                await channel.send_many(*zip(*messages, strict=True))
            while not talk.has_room:
                room.clear()
                await room.wait()
        await channel.flush()
        channel.shutdown(socket.SHUT_WR)

    async with await aio.Channel.connect(path) as channel:
        channel.wait_in_flight = True
        sender = asyncio.create_task(send(channel))
        while True:
            try:
                batch = await asyncio.wait_for(channel.recv_many(20), 0.01)
            except asyncio.TimeoutError:
                continue
            except EOFError:
                break
            with batch:
                for payload, fds in batch:
                    talk.check(payload, fds)
            room.set()
        await sender


def main(kind: str, path: str, seconds: str, seed: str) -> None:
    faulthandler.dump_traceback_later(float(seconds) + _LONGEST_ANSWER, exit=True)
    signal.signal(signal.SIGALRM, lambda _signum, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(5)]
        talk = Talk([file.fileno() for file in files], float(seconds), int(seed))
        if kind == "threads":
            _talk_in_threads(path, talk)
        else:
            asyncio.run(_talk_in_loop(path, talk))
    assert talk.is_answered


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
