"""A soak of everything at once. Two servers, one with threads and one with an event loop, send back
the messages of many clients of two kinds. Meanwhile clients are killed and suspended, and signals
interrupt all processes. Samples show whether anything grows."""

import argparse
import asyncio
import json
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.floor import COMPILER
from benchmarks.process import count_open_fds, read_rss_kib
from benchmarks.results import collect_metadata
from benchmarks.runner import Progress
from fdpass_c import Channel, DescriptorTableFullError, Listener, ProtocolError, aio

_CLIENTS = 6
_LONGEST_LIFE = 10
_ALLOWED_GROWTH_KIB = 4096
# RLIMIT_NOFILE: so few places that the table is full from time to time, and enough for any message.
_TABLE = 700
# Seconds between two actions on clients: one is killed, suspended or replaced.
_TURN = 0.1
# Seconds that the clients may take to end when the time is over.
_END_TIMEOUT = 90
# The errors that a server gets if a client dies in the middle of a message.
_CUT = (ProtocolError, ConnectionError)


@dataclass(frozen=True)
class Sample:
    """What the servers' process holds after so many seconds, and how many messages it has sent
    back."""

    seconds: float
    messages: int
    descriptors: int
    rss_kib: int


class Servers:
    """The two servers, which send every message back, with its descriptors.

    failures: errors that should not have happened. killed: the pids of clients that were killed.
    """

    def __init__(self, folder: str) -> None:
        self.paths: list[str] = [f"{folder}/threads", f"{folder}/loop"]
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.killed: set[int] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()

    def _count(self, messages: int) -> None:
        with self._lock:
            self.counts["messages"] += messages

    def _note(self, error: Exception, pid: int) -> None:
        if pid not in self.killed or not isinstance(error, _CUT):
            self.failures.append(f"client {pid}: {error!r}")

    @contextmanager
    def running(self) -> Iterator[None]:
        listener = Listener(self.paths[0])
        threads = [
            threading.Thread(target=self._serve_in_threads, args=[listener]),
            threading.Thread(target=asyncio.run, args=[self._serve_in_loop()]),
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ending.set()
            listener.close()
            for thread in threads:
                thread.join()

    def _serve_in_threads(self, listener: Listener) -> None:
        threads = []
        while not self._ending.is_set():
            try:
                channel = listener.accept()
            except OSError:  # The listener is closed, or the table is full.
                self._ending.wait(0.01)
                continue
            threads.append(threading.Thread(target=self._answer, args=[channel]))
            threads[-1].start()
            threads = [thread for thread in threads if thread.is_alive()]
        for thread in threads:
            thread.join()

    def _answer(self, channel: Channel) -> None:
        channel.wait_in_flight = True
        try:
            with channel:
                while True:
                    try:
                        batch = channel.recv_many(50)
                    except DescriptorTableFullError:
                        self.counts["full tables"] += 1
                        self._ending.wait(0.01)
                        continue
                    except EOFError:
                        return
                    with batch:
                        payloads, fds = zip(*batch, strict=True)
                        self._count(channel.send_many(payloads, fds))
        except Exception as error:
            self._note(error, channel.peer.pid)

    async def _serve_in_loop(self) -> None:
        async with aio.Listener(self.paths[1]) as listener:
            serving = asyncio.create_task(listener.serve(self._answer_in_loop))
            while not self._ending.is_set():
                await asyncio.sleep(_TURN)
            listener.close()
            await serving

    async def _answer_in_loop(self, channel: aio.Channel) -> None:
        channel.wait_in_flight = True
        try:
            while True:
                try:
                    payload, fds = await channel.recv()
                except DescriptorTableFullError:
                    self.counts["full tables"] += 1
                    await channel.wait_for_room()
                    continue
                except EOFError:
                    return
                with fds:
                    await channel.send(payload, fds)
                self._count(1)
        except Exception as error:
            self._note(error, channel.peer.pid)
            channel.close()  # The client is dead, so the rest of a frame need not be sent.


class Clients:
    """The clients. Starts them, kills and suspends some, and replaces those that have ended."""

    def __init__(self, servers: Servers, chance: random.Random) -> None:
        self._servers = servers
        self._chance = chance
        self._running: list[subprocess.Popen[bytes]] = []
        self._suspended: list[subprocess.Popen[bytes]] = []

    def turn(self, seconds_left: float) -> None:
        for client in self._suspended:
            client.send_signal(signal.SIGCONT)
        self._suspended.clear()
        self._reap()
        while len(self._running) < _CLIENTS and seconds_left > 0:
            self._start(seconds_left)
        if not self._running or seconds_left <= 0:
            return
        victim = self._chance.choice(self._running)
        deed = self._chance.random()
        if deed < 0.05:
            self._servers.killed.add(victim.pid)
            self._servers.counts["killed"] += 1
            victim.kill()
        elif deed < 0.3:
            self._suspended.append(victim)
            self._servers.counts["suspended"] += 1
            victim.send_signal(signal.SIGSTOP)

    def _start(self, seconds_left: float) -> None:
        chance = self._chance
        kind, path = chance.choice(["threads", "tasks"]), chance.choice(self._servers.paths)
        life = min(chance.uniform(0, _LONGEST_LIFE), seconds_left)
        arguments = [kind, path, str(life), str(chance.getrandbits(32))]
        command = [sys.executable, "-m", "benchmarks.mixed_client", *arguments]
        self._running.append(subprocess.Popen(command))
        self._servers.counts["clients"] += 1

    def _reap(self) -> None:
        for client in [*self._running]:
            status = client.poll()
            if status is None:
                continue
            self._running.remove(client)
            if status != 0 and not (
                status == -signal.SIGKILL and client.pid in self._servers.killed
            ):
                self._servers.failures.append(f"client {client.pid} ended with {status}")

    def end(self) -> None:
        """Waits until all clients have ended."""
        deadline = time.monotonic() + _END_TIMEOUT
        while self._running and time.monotonic() < deadline:
            self.turn(0)
            time.sleep(_TURN)
        for client in self._running:
            self._servers.failures.append(f"client {client.pid} did not end")
            client.kill()
            client.wait()


def _take_sample(servers: Servers, seconds: float) -> Sample:
    return Sample(seconds, servers.counts["messages"], count_open_fds(), read_rss_kib())


def _take_samples(servers: Servers, clients: Clients, seconds: float) -> list[Sample]:
    samples: list[Sample] = []
    progress = Progress()
    start = time.monotonic()
    while (spent := time.monotonic() - start) < seconds:
        with suppress(OSError):  # The table is full.
            clients.turn(seconds - spent)
            if spent >= len(samples):
                samples.append(_take_sample(servers, spent))
                progress.show(f"{spent:.0f} s, {samples[-1].messages:,d} messages")
        time.sleep(_TURN)
    progress.clear()
    return samples


def soak(seconds: float, seed: int) -> dict[str, Any]:
    """Runs servers and clients for so many seconds, and returns what was seen."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_TABLE, *limits), limits[1]))
    previous = signal.signal(signal.SIGALRM, lambda _signum, _frame: None)
    open_before = count_open_fds()
    with tempfile.TemporaryDirectory() as folder:
        servers = Servers(folder)
        with servers.running():
            clients = Clients(servers, random.Random(seed))
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            try:
                samples = _take_samples(servers, clients, seconds)
            finally:
                clients.end()
                signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    leaked = count_open_fds() - open_before
    grown = _measure_growth(samples)
    if leaked:
        servers.failures.append(f"{leaked} descriptors leaked")
    if grown > _ALLOWED_GROWTH_KIB:
        servers.failures.append(f"resident memory grew by {grown} KiB")
    return {
        "seconds": seconds,
        "counts": dict(servers.counts),
        "leaked": leaked,
        "grown_kib": grown,
        "failures": servers.failures,
        "samples": [asdict(sample) for sample in samples],
    }


def _measure_growth(samples: Sequence[Sample]) -> int:
    """Returns by how much memory grew from the fourth tenth of the samples, after the warm-up, to
    the last tenth."""
    tenth = max(1, len(samples) // 10)
    rss = [sample.rss_kib for sample in samples]
    return int(
        statistics.median(rss[-tenth:]) - statistics.median(rss[3 * tenth : 4 * tenth] or rss)
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks mixed",
        description="Exit status 1: a message was lost, doubled or changed, something failed or "
        "got stuck, descriptors leaked, or resident memory grew by over "
        f"{_ALLOWED_GROWTH_KIB // 1024} MiB after a warm-up.",
    )
    parser.add_argument("--seconds", type=float, default=120, help="how long (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error("--seconds must be positive")

    found = soak(options.seconds, options.seed)
    counts = ", ".join(f"{count:,d} {name}" for name, count in sorted(found["counts"].items()))
    print(
        f"{options.seconds:g} s: {counts}; {found['leaked']} descriptors leaked, resident memory "
        f"grew by {found['grown_kib']:,d} KiB, {len(found['failures'])} failures"
    )
    if options.json:
        options.json.write_text(
            json.dumps({"metadata": collect_metadata(COMPILER), **found}, indent=1) + "\n"
        )
    for failure in found["failures"]:
        print(f"mixed: {failure}", file=sys.stderr)
    return 1 if found["failures"] else 0
