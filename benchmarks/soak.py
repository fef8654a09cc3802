"""Passes many descriptors through one pair of sockets. Checks whether any leak, whether memory
grows, and how long other tasks of an event loop have to wait."""

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import fdpass_c
from benchmarks.aio import installed_loops, run_in_loop
from benchmarks.process import count_open_fds, read_rss_kib
from benchmarks.runner import Progress
from benchmarks.ways import open_files, open_pair
from fdpass_c import aio

_SAMPLES = 100
_WARM_UP_SAMPLES = 5
_ALLOWED_GROWTH_KIB = 1024
_LONGEST_TURN_MS = 20


@dataclass(frozen=True)
class Soaked:
    """What one way left behind after so many descriptors. longest_turn_ms: the longest time that
    another task of the event loop had to wait, in CPU time of this process."""

    name: str
    descriptors: int
    leaked: int
    first_kib: int
    last_kib: int
    max_kib: int
    longest_turn_ms: float | None

    @property
    def failed(self) -> bool:
        starved = (self.longest_turn_ms or 0) > _LONGEST_TURN_MS
        grown = self.max_kib - self.first_kib > _ALLOWED_GROWTH_KIB
        return self.leaked != 0 or grown or starved

    def describe(self) -> str:
        text = (
            f"{self.name}: {self.descriptors:,d} descriptors, {self.leaked} leaked, "
            f"resident memory first {self.first_kib:,d}, last {self.last_kib:,d}, "
            f"max {self.max_kib:,d} KiB"
        )
        if self.longest_turn_ms is not None:
            text += f", longest turn of the loop {self.longest_turn_ms:.1f} ms"
        return text


Sockets = tuple[socket.socket, socket.socket]
Way = Callable[[Sockets, list[int], int], float | None]
"""Passes the descriptors so many times. In an event loop, returns its longest turn, otherwise
None."""


def _repeat(pass_once: Callable[[Sockets, list[int]], None]) -> Way:
    def way(pair: Sockets, fds: list[int], passes: int) -> None:
        for _ in range(passes):
            pass_once(pair, fds)

    return way


def _pass_drop_in(pair: Sockets, fds: list[int]) -> None:
    fdpass_c.send_fds(pair[0], [b"x"], fds)
    _, received, _, _ = fdpass_c.recv_fds(pair[1], 1, len(fds))
    for fd in received:
        os.close(fd)


def _pass_drop_in_together(pair: Sockets, fds: list[int]) -> None:
    fdpass_c.send_fds(pair[0], [b"x"], fds)
    fdpass_c.close_fds(fdpass_c.recv_fds(pair[1], 1, len(fds))[1])


def _pass_strict(pair: Sockets, fds: list[int]) -> None:
    fdpass_c.send_fd(pair[0], fds[0], b"x")
    with fdpass_c.recv_fd(pair[1], 1)[1]:
        pass


def _pass_batch(pair: Sockets, fds: list[int]) -> None:
    fdpass_c.send_many(pair[0], [b"x"] * len(fds), fds)
    with fdpass_c.recv_many(pair[1], len(fds), 1):
        pass


def _over_channels(pair: Sockets, fds: list[int], passes: int) -> None:
    left, right = (fdpass_c.Channel(sock.dup()) for sock in pair)
    with left, right:
        for _ in range(passes):
            left.send_many([b"x"] * len(fds), fds)
            right.recv_many(len(fds)).close()


def _in_loop(loop: str) -> Way:
    """Runs two tasks that pass messages as fast as they can, and one that measures how long it has
    to wait."""

    def way(pair: Sockets, fds: list[int], passes: int) -> float:
        longest = 0.0
        done = False

        async def send(channel: aio.Channel) -> None:
            for _ in range(passes):
                await channel.send(b"x", fds)

        async def receive(channel: aio.Channel) -> None:
            nonlocal done
            for _ in range(passes):
                (await channel.recv())[1].close()
            done = True

        async def tick(pause: Callable[[float], Awaitable[object]]) -> None:
            nonlocal longest
            last = time.process_time()
            while not done:
                await pause(0)
                now = time.process_time()
                longest = max(longest, now - last)
                last = now

        async def work() -> None:
            left, right = (aio.Channel(sock.dup()) for sock in pair)
            async with left, right:
                if loop == "trio":
                    import trio

                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(send, left)
                        nursery.start_soon(receive, right)
                        nursery.start_soon(tick, trio.sleep)
                else:
                    await asyncio.gather(send(left), receive(right), tick(asyncio.sleep))

        run_in_loop(loop, work)
        return 1000 * longest

    return way


# The way, and how many descriptors it passes in one pass.
_WAYS: dict[str, tuple[Way, int]] = {
    "send_fds, recv_fds, os.close": (_repeat(_pass_drop_in), 1),
    "send_fd, recv_fd": (_repeat(_pass_strict), 1),
    "send_fds, recv_fds, close_fds": (_repeat(_pass_drop_in_together), fdpass_c.MAX_FDS),
    "send_many, recv_many": (_repeat(_pass_batch), 64),
    "Channel": (_over_channels, 1),
    "Channel, 253 a call": (_over_channels, 253),
    **{f"aio.Channel on {loop}": (_in_loop(loop), 1) for loop in installed_loops()},
}


def _soak(name: str, passes: int, pair: Sockets, progress: Progress) -> Soaked:
    """Passes at least so many descriptors: one in each message, or several."""
    way, count = _WAYS[name]
    rss = []
    turns = []
    with ExitStack() as stack:
        fds = open_files(stack, count)
        per_sample = -(-passes // count // _SAMPLES)
        way(pair, fds, 1)  # A first event loop opens descriptors that stay open.
        open_before = count_open_fds()
        for sample in range(_SAMPLES):
            progress.show(f"{name}: {sample * per_sample * count:,d} descriptors")
            turns.append(way(pair, fds, per_sample))
            rss.append(read_rss_kib())
        progress.clear()
        leaked = count_open_fds() - open_before
    warm = rss[_WARM_UP_SAMPLES:]
    longest = max((turn for turn in turns if turn is not None), default=None)
    total = _SAMPLES * per_sample * count
    return Soaked(name, total, leaked, warm[0], warm[-1], max(warm), longest)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks soak",
        description="Exit status 1: descriptors leaked, resident memory grew by over "
        f"{_ALLOWED_GROWTH_KIB // 1024} MiB after a warm-up, or a turn of an event loop took over "
        f"{_LONGEST_TURN_MS} ms of CPU time.",
    )
    parser.add_argument("--passes", type=int, default=1_000_000, help="of each way (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args(arguments)
    if options.passes < 1:
        parser.error("--passes must be at least 1")

    results = []
    with ExitStack() as stack:
        pair = open_pair(stack)
        for name in _WAYS:
            results.append(_soak(name, options.passes, pair, Progress()))
            print(results[-1].describe(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    failed = [one.name for one in results if one.failed]
    for name in failed:
        print(f"soak: {name} failed", file=sys.stderr)
    return 1 if failed else 0
