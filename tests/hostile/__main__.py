"""Attacks every receiving function in all ways, says what it found."""

import argparse
import gc
import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import fdpass_c
from fdpass_c import Channel, FdpassError
from fdpass_c.testing import ATTACKS, hostile_peers
from support.processes import become_nobody

# Seconds that it may take to receive what one attack left.
_MOST_SECONDS = 5


def _close(received: Any) -> bool:
    """Closes what a receive returned; False at the end of the connection."""
    if isinstance(received, fdpass_c.Batch):
        received.close()
        return bool(received.payloads)
    data, fds = received[:2]
    if isinstance(fds, list):
        fdpass_c.close_fds(fds)
    else:
        fds.close()
    return bool(data)


def _use_channel(sock: socket.socket, receive: Callable[[Channel], Any]) -> int:
    count = 0
    with (
        Channel(sock, max_payload=1 << 20) as channel,
        suppress(FdpassError, ConnectionError, TimeoutError),
    ):
        while True:
            _close(receive(channel))
            count += 1
    return count


def _use_plain(sock: socket.socket, receive: Callable[[socket.socket], Any]) -> int:
    count = 0
    while True:
        count += 1
        try:
            if not _close(receive(sock)):
                return count
        except fdpass_c.PeerClosedError:
            return count
        except FdpassError as error:
            if batch := getattr(error, "batch", None):
                batch.close()


USES: dict[str, Callable[[socket.socket], int]] = {
    "recv_fds": lambda sock: _use_plain(sock, lambda sock: fdpass_c.recv_fds(sock, 500, 5)),
    "recv_fd": lambda sock: _use_plain(sock, lambda sock: fdpass_c.recv_fd(sock, 500)),
    "recv_many": lambda sock: _use_plain(sock, lambda sock: fdpass_c.recv_many(sock, 64, 500, 5)),
    "Channel.recv": lambda sock: _use_channel(sock, Channel.recv),
    "Channel.recv_many": lambda sock: _use_channel(sock, Channel.recv_many),
}


def _count_open() -> int:
    return len(os.listdir("/proc/self/fd"))


class Hostile:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []
        self._left: list[socket.socket] = []

    def _connect(self) -> socket.socket:
        left, right = socket.socketpair()
        self._left.append(right)
        return left

    def attack(self, name: str, use: Callable[[socket.socket], int], seed: int) -> None:
        before = _count_open()
        # Whoever cannot send on gives up at once, and has gone when it is received from.
        for _ in hostile_peers(self._connect, [name], seed=seed, timeout=0.001):
            pass
        start = time.monotonic()
        with self._left.pop() as sock:
            # A peer that has sent its own end lives on in what was received.
            sock.settimeout(0.005)
            try:
                self.counts["receives"] += use(sock)
            except (ConnectionError, TimeoutError):
                pass
            except Exception as error:
                self.found.append(f"{name}, seed {seed}: {error!r}")
            if time.monotonic() - start > _MOST_SECONDS:
                self.found.append(f"{name}, seed {seed}: {time.monotonic() - start} s")
        self.counts["hostile connections"] += 1
        if _count_open() != before:
            gc.collect()
            if _count_open() != before:
                self.found.append(f"{name}, seed {seed}: {_count_open() - before} descriptors more")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hostile")
    parser.add_argument("--quick", action="store_true", help="20 rounds")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--nobody", action="store_true", help="as an ordinary user, if root")
    options = parser.parse_args()
    if options.nobody:
        become_nobody()
    hostile = Hostile()
    memory = 0
    for seed in range(20 if options.quick else options.rounds):
        for name in ATTACKS:
            for use in USES.values():
                hostile.attack(name, use, seed)
        if seed == 10:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    if grown > 20_000:
        hostile.found.append(f"{grown} KiB of memory more")
    for problem in hostile.found:
        print(problem)
    counts = ", ".join(f"{count} {kind}" for kind, count in hostile.counts.items())
    print(f"{counts}; {grown} KiB of memory more; {len(hostile.found)} that went wrong")
    return 1 if hostile.found else 0


if __name__ == "__main__":
    sys.exit(main())
