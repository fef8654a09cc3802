"""Passes descriptors for long through one pair, and sees whether any leak or memory grows."""

import argparse
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import fdpass_c
from benchmarks.process import count_open_fds, read_rss_kib
from benchmarks.runner import Progress
from benchmarks.ways import open_files, open_pair

_SAMPLES = 100
_WARM_UP_SAMPLES = 5
_ALLOWED_GROWTH_KIB = 1024


@dataclass(frozen=True)
class Soaked:
    """What one way left behind after so many descriptors."""

    name: str
    descriptors: int
    leaked: int
    first_kib: int
    last_kib: int
    max_kib: int

    @property
    def failed(self) -> bool:
        return self.leaked != 0 or self.max_kib - self.first_kib > _ALLOWED_GROWTH_KIB


Sockets = tuple[socket.socket, socket.socket]


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


# The way and how many descriptors go for one pass.
_WAYS: dict[str, tuple[Callable[[Sockets, list[int]], None], int]] = {
    "send_fds, recv_fds, os.close": (_pass_drop_in, 1),
    "send_fd, recv_fd": (_pass_strict, 1),
    "send_fds, recv_fds, close_fds": (_pass_drop_in_together, fdpass_c.MAX_FDS),
    "send_many, recv_many": (_pass_batch, 64),
}


def _soak(name: str, passes: int, pair: Sockets, progress: Progress) -> Soaked:
    """At least that many passes of one descriptor, or as many descriptors in larger messages."""
    pass_once, count = _WAYS[name]
    rss = []
    with ExitStack() as stack:
        fds = open_files(stack, count)
        open_before = count_open_fds()
        per_sample = -(-passes // count // _SAMPLES)
        for sample in range(_SAMPLES):
            progress.show(f"{name}: {sample * per_sample * count:,d} descriptors")
            for _ in range(per_sample):
                pass_once(pair, fds)
            rss.append(read_rss_kib())
        progress.clear()
        leaked = count_open_fds() - open_before
    warm = rss[_WARM_UP_SAMPLES:]
    return Soaked(name, _SAMPLES * per_sample * count, leaked, warm[0], warm[-1], max(warm))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks soak",
        description="Exit status 1: descriptors leaked, or resident memory grew by over "
        f"{_ALLOWED_GROWTH_KIB // 1024} MiB after a warm-up.",
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
            print(
                "{name}: {descriptors:,d} descriptors, {leaked} leaked, resident memory "
                "first {first_kib:,d}, last {last_kib:,d}, max {max_kib:,d} KiB".format(
                    **asdict(results[-1])
                ),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    failed = [one.name for one in results if one.failed]
    for name in failed:
        print(f"soak: {name} leaks", file=sys.stderr)
    return 1 if failed else 0
