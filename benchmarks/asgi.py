"""An ASGI application in a pool, and behind uvicorn's own workers: requests a second, and how
evenly the workers are used.

It needs uvicorn and wrk (Debian: wrk).
"""

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPConnection
from typing import Any

from benchmarks import pool_servers as servers

OPEN = 64
"""Connections that stay open."""

_APP = "benchmarks.asgi:app"
_WRK = shutil.which("wrk")
_LOADS = {"kept alive": (), "one a connection": ("-H", "Connection: close")}


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """Answers with this worker's pid."""
    assert scope["type"] == "http"
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"%d" % os.getpid()})


def find_missing() -> str:
    """Returns what the measurement needs and does not find, or an empty string."""
    try:
        import uvicorn  # noqa: F401
    except ModuleNotFoundError:
        return "uvicorn"
    return "" if _WRK else "wrk"


def _serve(listener: socket.socket) -> None:
    from fdpass_c.pool.asgi import AsgiServer

    AsgiServer(_APP, lifespan="off").make_pool(servers.WORKERS).serve(listener)


@contextmanager
def _run_pool() -> Iterator[Any]:
    """Runs a server in the block, and yields its address."""
    with servers.listen() as listener, servers.running(_serve, listener):
        yield listener.getsockname()


@contextmanager
def _run_uvicorn() -> Iterator[Any]:
    with servers.listen() as listener:
        address = listener.getsockname()
    command = [sys.executable, "-m", "uvicorn", "--port", str(address[1]), "--lifespan", "off"]
    command += ["--workers", str(servers.WORKERS), "--no-access-log", "--log-level", "critical"]
    with subprocess.Popen([*command, _APP]) as process:
        try:
            yield address
        finally:
            process.terminate()


_SERVERS = {"fdpass_c": _run_pool, "uvicorn": _run_uvicorn}


def measure(rounds: int, seconds: int) -> list[dict[str, Any]]:
    """Measures the servers in turn. Returns a row for each round of each server."""
    return [
        {"server": name, **_measure(run, seconds)}
        for _ in range(rounds)
        for name, run in _SERVERS.items()
    ]


def _measure(run: Callable[[], AbstractContextManager[Any]], seconds: int) -> dict[str, Any]:
    with run() as address:
        _await_workers(address)
        time.sleep(0.5)  # Then the workers have noticed that those connections are closed.
        counts = sorted(_ask_all(address, OPEN).values(), reverse=True)
        rates = {name: _load(address, seconds, *words) for name, words in _LOADS.items()}
    return {"connections": counts, **rates}


def _await_workers(address: Any) -> None:
    """Returns when every worker has answered, or after 10 s, because a worker may get almost no
    connection."""
    seen: set[bytes] = set()
    deadline = time.monotonic() + 10
    while len(seen) < servers.WORKERS and time.monotonic() < deadline:
        try:
            seen |= {*_ask_all(address, OPEN)}
        except ConnectionRefusedError:
            time.sleep(0.05)


def _ask_all(address: Any, count: int) -> "Counter[bytes]":
    """Opens count connections at once. Returns how many of them each worker answered."""
    with ExitStack() as stack:
        clients = [HTTPConnection(*address) for _ in range(count)]
        for client in clients:
            stack.callback(client.close)
            client.connect()
        answered: Counter[bytes] = Counter()
        for client in clients:
            client.request("GET", "/")
            answered[client.getresponse().read()] += 1
        return answered


def _load(address: Any, seconds: int, *options: str) -> float:
    assert _WRK is not None
    url = f"http://{address[0]}:{address[1]}/"
    command = [_WRK, "-t1", f"-c{OPEN}", f"-d{seconds}", *options, url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec: *([\d.]+)", output)
    assert found is not None, output
    return float(found[1])


def render(rows: list[dict[str, Any]]) -> str:
    """Returns a table of medians, each with the least and the most in brackets."""
    lines = [
        f"ASGI: the same application, {servers.WORKERS} workers, wrk with {OPEN} connections",
        "",
        f"{'requests a second':20}" + "".join(f"{name:>28}" for name in _LOADS),
    ]
    for server in _SERVERS:
        shown = ""
        for load in _LOADS:
            rates = [row[load] for row in rows if row["server"] == server]
            spread = f"({min(rates):,.0f} to {max(rates):,.0f})"
            shown += f"{statistics.median(rates):>9,.0f} {spread:>18}"
        lines.append(f"{server:20}{shown}")
    lines.append("")
    for server in _SERVERS:
        shares = [
            max(row["connections"]) * servers.WORKERS / OPEN
            for row in rows
            if row["server"] == server
        ]
        share = statistics.median(shares)
        lines.append(f"{server:20}the busiest worker has {share:.2f}x the mean of the connections")
    return "\n".join(lines)
