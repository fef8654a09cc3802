"""Attacks every receiving function in all ways, says what it found."""

import argparse
import asyncio
import gc
import importlib.util
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sized
from contextlib import closing, suppress
from typing import Any, NamedTuple

import fdpass_c
from fdpass_c import FdpassError, PeerClosedError, aio
from fdpass_c.testing import ATTACKS, hostile_peers
from support.attacks import MOST_MEMORY, measure_memory
from support.loops import run
from support.processes import become_nobody
from support.tables import limit_table

# Seconds that a receive waits for more, and that all receives after one attack may take.
_TIMEOUT = 0.005
_MOST_SECONDS = 5

# The places of the descriptor table. Half of them is what incomplete messages may hold.
_PLACES = 1024


class Limits(NamedTuple):
    """The most bytes and descriptors that a message may have, and messages that a receive may
    return."""

    payload: int
    fds: int
    messages: int = 1


Receive = Callable[[Any, Any], Any]

PLAIN: dict[str, tuple[Receive, Limits]] = {
    "recv_fds": (lambda api, sock: api.recv_fds(sock, 500, 5), Limits(500, 5)),
    "recv_fd": (lambda api, sock: api.recv_fd(sock, 500), Limits(500, 1)),
    "recv_many": (lambda api, sock: api.recv_many(sock, 64, 500, 5), Limits(500, 5, 64)),
}

# With the most messages.
CHANNEL: dict[str, tuple[Receive, int]] = {
    "Channel.recv": (lambda _, channel: channel.recv(), 1),
    "Channel.recv_many": (lambda _, channel: channel.recv_many(200), 200),
}

# A channel's max_payload and max_fds, by turns.
_CHANNEL_LIMITS = [(1 << 20, 65_536), (1000, 10), (5, 2)]


class Receiver:
    """Receives what an attack left, and compares it with the limits."""

    def __init__(self, api: Any, receive: Receive, source: Any, limits: Limits) -> None:
        """api: fdpass_c or fdpass_c.aio. source: a channel of it, or a socket."""
        self.count = 0
        self.is_over = False
        self.exceeded: list[str] = []
        self._api = api
        self._receive = receive
        self._source = source
        self._limits = limits

    async def receive_all(self) -> None:
        """Receives until the connection ends. May be cancelled and called again."""
        is_plain = isinstance(self._source, socket.socket)
        while not self.is_over:
            try:
                received = self._receive(self._api, self._source)
                if self._api is aio:
                    received = await received
                is_empty = self._take(received)
                self.is_over = is_plain and is_empty
            except (PeerClosedError, ConnectionError, TimeoutError):
                self.is_over = True
            except FdpassError as error:
                if batch := getattr(error, "batch", None):
                    self._take(batch)
                self.is_over = not is_plain
            self.count += 1

    def _take(self, received: Any) -> bool:
        """Checks and closes what a receive returned. Returns whether it has no bytes."""
        if isinstance(received, fdpass_c.Batch):
            with received:
                for payload, fds in received:
                    self._check(payload, fds)
            if len(received) > self._limits.messages:
                self.exceeded.append(f"{len(received)} messages at once")
            return not any(received.payloads)
        payload, fds = received[:2]
        self._check(payload, fds)
        if isinstance(fds, list):
            fdpass_c.close_fds(fds)
        else:
            fds.close()
        return not payload

    def _check(self, payload: bytes, fds: Sized) -> None:
        if len(payload) > self._limits.payload or len(fds) > self._limits.fds:
            self.exceeded.append(f"a message of {len(payload)} bytes with {len(fds)} descriptors")


async def _cancel_after(seconds: float, loop: str, function: Callable[[], Awaitable[None]]) -> None:
    """Calls function, and cancels it after so many seconds."""
    if loop == "trio":
        import trio

        with trio.move_on_after(seconds):
            await function()
    else:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(function(), seconds)


def _count_open() -> int:
    return len(os.listdir("/proc/self/fd"))


class Hostile:
    """Attacks the functions of one module."""

    def __init__(self, api: Any, loop: str) -> None:
        """api: fdpass_c or fdpass_c.aio. loop: the one that will run attack_all."""
        self._api = api
        self._loop = loop
        self._counts: Counter[str] = Counter()
        self._found: list[str] = []
        self._left: list[socket.socket] = []
        self._memory = 0

    def _connect(self) -> socket.socket:
        left, right = socket.socketpair()
        self._left.append(right)
        return left

    async def attack_all(self, rounds: int) -> None:
        for seed in range(rounds):
            for attack in ATTACKS:
                for name, (receive, limits) in PLAIN.items():
                    await self._attack(attack, name, seed, receive, limits)
                for name, (receive, most) in CHANNEL.items():
                    limits = Limits(*_CHANNEL_LIMITS[seed % 3], most)
                    await self._attack(attack, name, seed, receive, limits)
            if seed == min(rounds // 2, 10):
                self._memory = measure_memory()

    async def _attack(
        self, attack: str, name: str, seed: int, receive: Receive, limits: Limits
    ) -> None:
        before = _count_open()
        # Whoever cannot send on gives up at once, and has gone when it is received from.
        for _ in hostile_peers(self._connect, [attack], seed=seed, timeout=0.001):
            pass
        problems = []
        start = time.monotonic()
        with closing(self._left.pop()) as sock:
            # A peer that has sent its own end lives on in what was received.
            sock.settimeout(_TIMEOUT if self._api is fdpass_c else 0)
            source: Any = sock
            if name in CHANNEL:
                source = self._api.Channel(sock, max_payload=limits.payload, max_fds=limits.fds)
            receiver = Receiver(self._api, receive, source, limits)
            with closing(source):
                try:
                    await self._receive(receiver)
                except Exception as error:
                    problems.append(repr(error))
                held = _count_open() - before - 1  # The socket itself is open too.
                if held > _PLACES // 2:
                    problems.append(f"{held} descriptors held")
        if (seconds := time.monotonic() - start) > _MOST_SECONDS:
            problems.append(f"{seconds} s")
        problems += receiver.exceeded
        if _count_open() != before:
            gc.collect()
            if _count_open() != before:
                problems.append(f"{_count_open() - before} descriptors more")
        self._counts["hostile connections"] += 1
        self._counts["receives"] += receiver.count
        self._found += [f"{attack}, {name}, seed {seed}: {problem}" for problem in problems]

    async def _receive(self, receiver: Receiver) -> None:
        """Receives until the connection ends, or nothing more comes."""
        if self._api is fdpass_c:
            await receiver.receive_all()
        count = -1
        while not receiver.is_over and receiver.count > count:
            count = receiver.count
            await _cancel_after(_TIMEOUT, self._loop, receiver.receive_all)

    def report(self) -> bool:
        """Prints what was tried and found. Returns whether nothing was found."""
        grown = measure_memory() - self._memory
        if grown > MOST_MEMORY:
            self._found.append(f"{grown} KiB of memory more")
        for problem in self._found:
            print(problem)
        counts = ", ".join(f"{count} {kind}" for kind, count in self._counts.items())
        which = f"{self._api.__name__} in {self._loop}" if self._api is aio else "blocking"
        print(f"{which}: {counts}; {grown} KiB of memory more; {len(self._found)} that went wrong")
        return not self._found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hostile")
    parser.add_argument("--quick", action="store_true", help="20 rounds, 3 in event loops")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--nobody", action="store_true", help="as an ordinary user, if root")
    options = parser.parse_args()
    limit_table(_PLACES)
    if options.nobody:
        become_nobody()
    rounds, in_loops = (20, 3) if options.quick else (options.rounds, options.rounds)
    is_fine = True
    for api, loop, count in (
        (fdpass_c, "asyncio", rounds),
        (aio, "asyncio", in_loops),
        (aio, "trio", in_loops),
    ):
        if importlib.util.find_spec(loop):
            hostile = Hostile(api, loop)
            run(loop, hostile.attack_all, count)
            is_fine &= hostile.report()
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
