"""Measures what the pool costs, and how long requests wait.

The load comes from ab (Debian: apache2-utils) if it is installed, and otherwise from a client in
this module.
"""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import asgi
from benchmarks import pool_servers as servers
from benchmarks.floor import COMPILER
from benchmarks.results import collect_metadata, describe

CLIENTS = 8
SHARE_OF_LONG = 0.05
AT_ONCE = 800

_AB = shutil.which("ab")


# -- load ------------------------------------------------------------------------------------------


def ask(address: Any, path: bytes = b"/") -> bytes:
    with socket.create_connection(address) as sock:
        sock.sendall(b"GET %s HTTP/1.0\r\n\r\n" % path)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.0 200 OK"), answer
    return answer.rpartition(b"\r\n\r\n")[2]


def flood(address: Any, count: int) -> None:
    """Makes count connections, many at once, each with one short request."""
    if _AB is None:
        ask_overlapping(address, count, AT_ONCE)
        return
    command = [
        _AB,
        "-q",
        "-l",  # The answers are pids, which may have different lengths.
        "-n",
        str(count),
        "-c",
        str(AT_ONCE),
        f"http://{address[0]}:{address[1]}/",
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "Failed requests:        0" in output, output


def ask_overlapping(address: Any, count: int, at_once: int) -> "Counter[bytes]":
    """Makes count connections, at_once of them at a time. Returns how many each worker answered."""
    answered: Counter[bytes] = Counter()
    open_ones: deque[socket.socket] = deque()
    for number in range(count + at_once):
        if number < count:
            open_ones.append(socket.create_connection(address))
            open_ones[-1].sendall(b"GET / HTTP/1.0\r\n\r\n")
        if number >= at_once or number >= count:
            if not open_ones:
                break
            with open_ones.popleft() as sock, sock.makefile("rb") as stream:
                answered[stream.read().rpartition(b"\r\n\r\n")[2]] += 1
    return answered


def _measure_short(address: Any, count: int, seed: int) -> list[int]:
    """Runs a client that sends each request when the one before was answered. Returns how many
    nanoseconds each of its short requests took."""
    choose = random.Random(seed)
    took = []
    for _ in range(count):
        is_long = choose.random() < SHARE_OF_LONG
        start = time.perf_counter_ns()
        ask(address, b"/long" if is_long else b"/")
        if not is_long:
            took.append(time.perf_counter_ns() - start)
    return took


def measure_latencies(address: Any, count: int) -> list[int]:
    """Returns the times of the short requests of CLIENTS processes, which send count requests
    each."""
    readers = []
    for seed in range(CLIENTS):
        reader, writer = os.pipe()
        if os.fork() == 0:
            with open(writer, "w") as pipe:
                json.dump(_measure_short(address, count, seed), pipe)
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    took: list[int] = []
    for reader in readers:
        with open(reader) as pipe:
            took += json.load(pipe)
    for _ in readers:
        os.wait()
    return took


def read_cpu_ns(pid: int) -> int:
    """Returns the CPU time of another process (clock_getcpuclockid, Linux)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


# -- tables ----------------------------------------------------------------------------------------

_FLOODED: list[tuple[str, Any, int]] = [
    ("one at a time", servers.handle, 1),
    ("queues of 64", servers.handle, 64),
    ("event loops of 64", servers.handle_async, 64),
]


def measure_flood(rounds: int, count: int) -> list[dict[str, Any]]:
    """Measures our pool, and in turns the same pool with calls of the socket module."""
    rows = []
    for name, handler, capacity in _FLOODED:
        kinds = {"fdpass_c": servers.serve_pool, "pure sockets": servers.serve_pure}
        cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
        rate: dict[str, list[float]] = {kind: [] for kind in kinds}
        with ExitStack() as stack:
            pids = {}
            for kind, make in kinds.items():
                listener = stack.enter_context(servers.listen())
                serve = make(handler, capacity)
                pid = stack.enter_context(servers.running(serve, listener))
                pids[kind] = (pid, listener.getsockname())
                flood(pids[kind][1], AT_ONCE)
            for _ in range(rounds):
                for kind, (pid, address) in pids.items():
                    start, used = time.perf_counter(), read_cpu_ns(pid)
                    flood(address, count)
                    cpu[kind].append((read_cpu_ns(pid) - used) / count)
                    rate[kind].append(count / (time.perf_counter() - start))
        rows.append({"name": name, "cpu_ns": cpu, "connections_a_second": rate})
    return rows


_SERVERS: dict[str, tuple[Callable[[socket.socket], object], bool]] = {
    "fdpass_c": (servers.serve_pool(servers.handle, 1), True),
    "SO_REUSEPORT": (servers.serve_reuseport, False),
    "shared accept": (servers.serve_shared_accept, True),
}


def measure_latency(rounds: int, count: int) -> dict[str, list[int]]:
    took: dict[str, list[int]] = {name: [] for name in _SERVERS}
    for _ in range(rounds):
        for name, (serve, shared) in _SERVERS.items():
            with servers.listen(shared=shared) as listener:
                address = listener.getsockname()
                if not shared:
                    # This socket does not listen. It is bound, so that the port is kept.
                    listener.close()
                    listener = socket.socket()
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    listener.bind(address)
                with listener, servers.running(serve, listener):
                    _await_workers(address)
                    took[name] += measure_latencies(address, count)
    return took


def _await_workers(address: Any) -> None:
    """Returns when every worker has answered."""
    seen: set[bytes] = set()
    while len(seen) < servers.WORKERS:
        try:
            seen.add(ask(address))
        except ConnectionRefusedError:
            time.sleep(0.01)


_SPREAD: dict[str, Callable[[socket.socket], object]] = {
    "one at a time, fdpass_c": servers.serve_pool(servers.handle, 1),
    "one at a time, shared accept": servers.serve_shared_accept,
    "event loops, fdpass_c": servers.serve_pool(servers.handle_async, 64),
    "event loops, shared accept": servers.serve_shared_accept_async,
}


def measure_spread(count: int) -> dict[str, list[int]]:
    """Returns how many connections each worker of each server got."""
    spread = {}
    for name, serve in _SPREAD.items():
        with servers.listen() as listener, servers.running(serve, listener):
            address = listener.getsockname()
            answered = ask_overlapping(address, count, 64)
            spread[name] = sorted(answered.values(), reverse=True)
            spread[name] += [0] * (servers.WORKERS - len(answered))
    return spread


# -- report ----------------------------------------------------------------------------------------


def render_flood(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"flood: {AT_ONCE} connections at once, one short request each, {servers.WORKERS} workers",
        "",
        f"{'':20} {'connections a second':>28}   {'master, us of CPU each':>28}",
        f"{'':20} {'fdpass_c':>14}{'pure sockets':>14}   {'fdpass_c':>10}{'pure':>8}{'ratio':>10}",
    ]
    for row in rows:
        ours, pure = (statistics.median(row["cpu_ns"][kind]) / 1000 for kind in row["cpu_ns"])
        fast, slow = (statistics.median(rates) for rates in row["connections_a_second"].values())
        lines.append(
            f"{row['name']:20} {fast:14,.0f}{slow:14,.0f}   "
            f"{ours:10.1f}{pure:8.1f}{ours / pure:10.2f}"
        )
    source = "ab" if _AB else "a client in Python"
    return "\n".join(
        [*lines, "", f"  Load from {source}, on the same CPUs: the rate is that of both together."]
    )


def render_latency(took: dict[str, list[int]]) -> str:
    lines = [
        f"latency: ms that short requests take, {CLIENTS} clients in a closed loop, "
        f"{servers.WORKERS} workers one at a time, {SHARE_OF_LONG:.0%} of all take 50 ms",
        "",
        f"{'':16}{'p50':>10}{'p90':>10}{'p99':>10}{'requests':>10}",
    ]
    for name, values in took.items():
        cuts = statistics.quantiles(values, n=100)
        shown = "".join(f"{cuts[p - 1] / 1e6:10.2f}" for p in (50, 90, 99))
        lines.append(f"{name:16}{shown}{len(values):10,d}")
    return "\n".join(lines)


def render_spread(spread: dict[str, list[int]]) -> str:
    lines = ["spread: connections that each worker got, 64 at once", ""]
    for name, counts in spread.items():
        share = max(counts) * len(counts) / sum(counts)
        numbers = "".join(f"{count:8,d}" for count in counts)
        lines.append(f"{name:30}{numbers}   the busiest has {share:.2f}x the mean")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks pool", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds in all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the raw results")
    options = parser.parse_args(arguments)
    metadata = {**collect_metadata(COMPILER), "quick": options.quick}
    print(describe(metadata))
    rounds, count = (1, 200) if options.quick else (7, 5000)
    rows = measure_flood(rounds, max(count, AT_ONCE))
    print(f"\n{render_flood(rows)}", flush=True)
    took = measure_latency(1 if options.quick else 3, 100 if options.quick else 500)
    print(f"\n{render_latency(took)}", flush=True)
    spread = measure_spread(count)
    print(f"\n{render_spread(spread)}", flush=True)
    applications: list[dict[str, Any]] = []
    if missing := asgi.find_missing():
        print(f"\nASGI: not measured without {missing}", flush=True)
    else:
        applications = asgi.measure(*((1, 1) if options.quick else (5, 3)))
        print(f"\n{asgi.render(applications)}", flush=True)
    if options.json:
        found = {
            "metadata": metadata,
            "flood": rows,
            "latency_ns": took,
            "spread": spread,
            "asgi": applications,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0
