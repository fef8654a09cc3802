"""Every kind of system call of a pool's master, and of a worker, made to fail.

    python -m faults.pools [--quick] [scenario ...]     from the tests' folder

A child process runs a pool with a plan, and this process is its clients. Then it stops the pool.
"""

import argparse
import asyncio
import contextlib
import errno
import faulthandler
import gc
import itertools
import json
import logging
import os
import re
import select
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from faults.library import ALL, ALONE, Fault, Library, Step, is_loaded, start
from faults.plans import ERRORS, IMPOSSIBLE, IMPOSSIBLE_IN_MASTER, PASSING, REPEATED, STREAMING
from fdpass_c.pool import Pool, metrics_server
from fdpass_c.testing import list_fds
from support.processes import adopt_orphans

_leave = os._exit

_REQUEST = b"what the client sends"
_ANSWER = _REQUEST * 100
_IN_HANDLER = "the handler got an error"

_DRAIN = 3
_PATIENCE = 8
_PATIENCE_WITH_LASTING = 0.5
"""Seconds for all answers of a round. With an error that lasts there may be none."""

_END = 12
"""Seconds from the signal to the end of the pool."""

_QUICK = 19
"""Of how many faults one is tried, where it is to be quick."""

_MOST_CPU = 1.0
_MOST_CALLS = 2000
"""CPU seconds of all processes of a pool, and calls of one. Usually it takes a tenth."""


def _answer(sock: socket.socket, _address: object) -> None:
    try:
        if sock.recv(1000):
            sock.sendall(_ANSWER)
    except OSError:
        logging.info(_IN_HANDLER)
        raise


async def _answer_async(sock: socket.socket, _address: object) -> None:
    loop = asyncio.get_running_loop()
    try:
        if await loop.sock_recv(sock, 1000):
            await loop.sock_sendall(sock, _ANSWER)
    except OSError:
        logging.info(_IN_HANDLER)
        raise


class Scenario(NamedTuple):
    handler: Callable[[socket.socket, object], object]
    workers: int
    capacity: int
    family: socket.AddressFamily
    rounds: tuple[int | signal.Signals | str, ...]
    """How many clients come at once, a signal, or a question that a client of the metrics asks."""

    @property
    def asks(self) -> bool:
        return any(isinstance(step, str) for step in self.rounds)


SCENARIOS = {
    "plain": Scenario(_answer, 1, 1, socket.AF_INET, (1, 3)),
    "plain, 2 workers": Scenario(_answer, 2, 1, socket.AF_UNIX, (1, 3)),
    "queue": Scenario(_answer, 1, 4, socket.AF_UNIX, (1, 6)),
    "queue, 2 workers": Scenario(_answer, 2, 4, socket.AF_INET, (1, 6)),
    "coroutine": Scenario(_answer_async, 1, 10, socket.AF_INET, (1, 6)),
    "coroutine, 2 workers": Scenario(_answer_async, 2, 10, socket.AF_UNIX, (1, 6)),
    "reload": Scenario(_answer, 1, 4, socket.AF_UNIX, (1, signal.SIGHUP, 2, 2)),
    "metrics": Scenario(_answer, 1, 1, socket.AF_UNIX, (1, "/status", 2, "/metrics")),
}


class Plan(NamedTuple):
    """Where it goes wrong: in the master, or in its first worker."""

    in_worker: bool
    fault: Fault = Fault()
    is_passing: bool = True
    """Whether the pool serves on in spite of it."""

    @property
    def lasts(self) -> bool:
        return self.fault.times == ALL

    def __str__(self) -> str:
        call, number, error, most, *_ = self.fault
        did = []
        if most:
            did.append(f"moves {most}")
        if error:
            did.append(f"{'always ' if self.lasts else ''}gives {errno.errorcode[error]}")
        where = "worker" if self.in_worker else "master"
        return f"{where}: {call or 'nothing'} {number} {' then '.join(did)}"


class Result(NamedTuple):
    """What came of a run. told: the answers about the pool. master: what the pool's process has
    reported, or nothing. workers: the calls of those that have ended by themselves. cpu, seconds:
    how long all took."""

    answers: list[bytes | None]
    told: list[bytes | None]
    master: dict[str, Any]
    workers: list[list[Step]]
    fired: int
    log: str
    cpu: float
    seconds: float
    problems: list[str]


class _Child:
    """The process of a pool."""

    def __init__(self, library: Library, scenario: Scenario, plan: Plan, folder: Path) -> None:
        self._library = library
        self._scenario = scenario
        self._plan = plan
        self._folder = folder
        self._forks = 0

    def serve(self, listener: socket.socket, metrics: socket.socket) -> NoReturn:
        """Writes to the folder what came of it, and ends this process."""
        try:
            log = os.open(self._folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(log, 2)
            os.close(log)
            faulthandler.enable()
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            # After the pool, and before it: it comes once all clients have what they get.
            for signum in (signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, lambda *_: None)
            metrics_server._RETRY_DELAY = 0.1
            os.register_at_fork(before=self._count_fork, after_in_child=self._arm_in_worker)
            os._exit = self._end_worker
            self._write("master", self._serve(listener, metrics))
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(0)

    def _serve(self, listener: socket.socket, metrics: socket.socket) -> dict[str, Any]:
        scenario = self._scenario
        pool = Pool(
            scenario.handler,
            scenario.workers,
            scenario.capacity,
            drain=_DRAIN,
            start_timeout=_DRAIN,
        )
        outcome, code, told = "", 0, ""
        gc.collect()
        before = list_fds()
        self._arm(Fault() if self._plan.in_worker else self._plan.fault)
        try:
            pool.serve(listener, metrics=metrics if self._scenario.asks else None)
        except BaseException as error:
            self._library.disarm()
            outcome, told = type(error).__name__, traceback.format_exc()
            code = getattr(error, "errno", 0)
        self._library.disarm()
        gc.collect()
        status = pool.status()
        children = ""
        with contextlib.suppress(ChildProcessError):
            children = f"{os.waitpid(-1, os.WNOHANG)}"
        return {
            "outcome": outcome,
            "errno": code,
            "told": told,
            "children": children,
            "modes": [listener.gettimeout(), os.get_blocking(listener.fileno())],
            "fds": sorted({*list_fds().items()} ^ {*before.items()}),
            "handled": status.handled,
            "failed": status.failed,
            "lost": status.lost,
            "left": status.waiting + len(status.workers),
            **self._describe_calls(),
        }

    def _count_fork(self) -> None:
        self._forks += 1

    def _arm_in_worker(self) -> None:
        if self._plan.in_worker and self._forks == 1:
            self._arm(self._plan.fault)

    def _arm(self, fault: Fault) -> None:
        self._library.arm(fault._replace(process=ALONE))

    def _end_worker(self, status: int) -> NoReturn:
        """In place of os._exit."""
        self._library.disarm()
        if self._plan.in_worker and self._forks == 1:
            self._write("worker", self._describe_calls())
        _leave(status)

    def _describe_calls(self) -> dict[str, Any]:
        return {"fired": self._library.fired, "steps": self._library.list_steps()}

    def _write(self, name: str, found: dict[str, Any]) -> None:
        (self._folder / name).write_text(json.dumps(found))


class Pools:
    """Runs pools, and notes what went wrong."""

    def __init__(self, quick: bool) -> None:
        self._quick = quick
        self._library = Library()
        self._folder = tempfile.TemporaryDirectory()
        self._runs = 0
        self.counts: Counter[str] = Counter()
        self.by_scenario: Counter[str] = Counter()
        self.found: list[str] = []
        self.slowest: list[tuple[float, str]] = []
        adopt_orphans()

    def attack(self, name: str, scenario: Scenario) -> None:
        for in_worker in (False, True):
            plans = self._plan(name, scenario, in_worker)
            # Others of each scenario.
            some = itertools.islice(plans, self._runs % _QUICK, None, _QUICK)
            for plan in some if self._quick else plans:
                self._try(name, scenario, plan)

    def _plan(self, name: str, scenario: Scenario, in_worker: bool) -> Iterator[Plan]:
        """Of the calls that two runs make which nothing disturbs."""
        counts: Counter[str] = Counter()
        before: Counter[str] = Counter()
        for _ in range(2):
            result = self._try(name, scenario, Plan(in_worker))
            steps = [Step(*step) for step in result.master.get("steps", ())]
            names = [step.call for step in steps]
            before = Counter(names[: names.index("fork")] if "fork" in names else names)
            if in_worker:
                names = [step.call for step in result.workers[0]] if result.workers else []
            counts |= Counter(names)
        for call, count in sorted(counts.items()):
            impossible = IMPOSSIBLE.get(call, "").split()
            if not in_worker:
                impossible += IMPOSSIBLE_IN_MASTER.get(call, "").split()
            allowed = [error for error in ERRORS[call].split() if error not in impossible]
            for number in self._choose(count, 0 if in_worker else before[call]):
                for error in allowed:
                    passes = in_worker or (
                        number >= before[call] and error in PASSING.get(call, "").split()
                    )
                    fault = Fault(call, number, getattr(errno, error))
                    yield Plan(in_worker, fault, passes or error == "EINTR")
            if call in STREAMING:
                yield from self._cut(call, count, in_worker)
            for error in REPEATED.get(call, "").split():
                number = 0 if in_worker else before[call]
                yield Plan(in_worker, Fault(call, number, getattr(errno, error), 0, ALL), False)

    def _cut(self, call: str, count: int, in_worker: bool) -> Iterator[Plan]:
        """What moves less than it was asked for; and after it an error for a while, or for good."""
        for number in self._choose(count, 0):
            for most in (1, 9, 20):
                yield Plan(in_worker, Fault(call, number, 0, most))
        if call == "sendmsg":
            for error in PASSING[call].split():
                for times in (2, 4):
                    yield Plan(in_worker, Fault(call, 0, getattr(errno, error), 9, times))

    def _choose(self, count: int, before: int) -> Sequence[int]:
        """Which calls of a kind: the first, those once it serves, and the last; there may be more
        than were counted."""
        if self._quick:
            return sorted({0, before, before + (count - before) // 2})
        later = (before + (count - before) // 2, count - 2, count - 1, count)
        some = {*range(4), *range(before, before + 4), *later}
        return sorted(number for number in some if 0 <= number <= count)

    def _try(self, name: str, scenario: Scenario, plan: Plan) -> Result:
        result = self._run(scenario, plan)
        kind = "in a worker" if plan.in_worker else "in the master"
        if not plan.fault.call:
            kind = "where nothing fails"
        elif not result.fired:
            kind = "not reached"
        self.by_scenario[f"{kind}: {name}"] += 1
        self.counts[kind] += 1
        self.slowest = sorted([*self.slowest, (result.seconds, f"{name}: {plan}")])[-10:]
        if problems := [*result.problems, *_judge(plan, result)]:
            told = {key: value for key, value in result.master.items() if key != "steps"}
            text = "\n  ".join([f"{name}: {plan}", *problems, f"{told}", *result.log.splitlines()])
            self.found.append(text)
            print(text, "\n", flush=True)
        return result

    def _run(self, scenario: Scenario, plan: Plan) -> Result:
        self._runs += 1
        folder = Path(self._folder.name, f"{self._runs}")
        folder.mkdir()
        began = time.monotonic()
        address: Any = str(folder / "sock")
        if scenario.family == socket.AF_INET:
            address = ("127.0.0.1", 0)
        told_at = str(folder / "metrics")
        with (
            _listen(scenario.family, address) as listener,
            _listen(socket.AF_UNIX, told_at) as metrics,
        ):
            address = listener.getsockname()
            pid = os.fork()
            if pid == 0:
                _Child(self._library, scenario, plan, folder).serve(listener, metrics)
        problems: list[str] = []
        patience = _PATIENCE_WITH_LASTING if plan.lasts else _PATIENCE
        clients: list[_Client] = []
        asking: list[_Client] = []
        for step in scenario.rounds:
            if isinstance(step, signal.Signals):
                os.kill(pid, step)
                continue
            if isinstance(step, str):
                some = [_Client(socket.AF_UNIX, told_at, f"GET {step} HTTP/1.1\r\n\r\n".encode())]
                asking += some
            else:
                some = [_Client(scenario.family, address, _REQUEST) for _ in range(step)]
                clients += some
            deadline = time.monotonic() + patience
            if not all(client.read(deadline) for client in some) and not plan.lasts:
                problems.append("a client waits without end")
        if not plan.lasts and not _has_workers(pid, folder / "log", scenario.workers):
            problems.append("a dead worker is not replaced")
        os.kill(pid, signal.SIGTERM)
        if not _wait(pid, _END):
            problems.append("the pool does not end")
            os.kill(pid, signal.SIGABRT)
        _, status, usage = os.wait4(pid, 0)
        deadline = time.monotonic() + 1
        if not all(client.read(deadline) for client in [*clients, *asking]):
            problems.append("a client waits for a pool that has ended")
        if left := _kill_children():
            problems.append(f"{left} processes left")
        if status:
            problems.append(f"the pool's process ended with wait status {status}")
        reports = {path.name: json.loads(path.read_text()) for path in folder.glob("*er")}
        master = reports.get("master", {})
        worker = reports.get("worker")
        armed = worker if plan.in_worker else master
        return Result(
            [client.answer for client in clients],
            [client.answer for client in asking],
            master,
            [] if worker is None else [[Step(*step) for step in worker["steps"]]],
            armed["fired"] if armed else 1,
            (folder / "log").read_text(),
            usage.ru_utime + usage.ru_stime,
            time.monotonic() - began,
            problems,
        )


def _judge(plan: Plan, result: Result) -> Iterator[str]:
    """What is wrong with a run."""
    master = result.master
    if not master:
        yield "the pool's process has reported nothing"
        return
    outcome, told = master["outcome"], master["told"]
    if outcome and plan.is_passing:
        yield f"ended by {outcome}"
    elif outcome and outcome != "PoolError" and master["errno"] != plan.fault.error:
        yield f"ended by {outcome}: {told}"
    if master["children"]:
        yield f"it has left child processes: {master['children']}"
    if master["fds"] or master["left"]:
        yield f"it has left or closed descriptors {master['fds']}, or {master['left']} more"
    for answer in result.answers:
        if answer not in (b"", _ANSWER):
            yield f"a part of an answer, {len(answer or b'')} bytes"
    for answer in result.told:
        head, _, body = (answer or b"").partition(b"\r\n\r\n")
        if answer != b"" and f"Content-Length: {len(body)}\r\n".encode() not in head:
            yield f"a part of what the pool tells: {answer!r}"
    if master["modes"] != [None, True]:
        yield "the listener is not as it was"
    accepted = sum(call == "accept4" and result >= 0 for call, _, result, _ in master["steps"])
    found = re.findall(r"dropping (\d+) connections", result.log)
    ended = master["handled"] + master["lost"] + sum(map(int, found))
    # What serve closes when it raises an error is in no count.
    most = ended + len(result.told)
    if accepted < ended or (accepted > most and not master["errno"]):
        yield f"{accepted} accepted, {ended} handled, lost or dropped"
    unanswered = result.answers.count(b"")
    fair = master["lost"] + result.log.count(_IN_HANDLER)
    if unanswered > fair and not outcome and not plan.lasts:
        yield f"{unanswered} clients have no answer, {fair} lost or failed"
    if master["failed"] > result.log.count(_IN_HANDLER):
        yield f"{master['failed']} failed"
    # Where it has given up, the signal is a second one, which kills.
    if "did not" in result.log and not plan.lasts and not outcome:
        yield "a worker hung"
    if not plan.fault.call and ("Traceback" in result.log or unanswered):
        yield "trouble although nothing went wrong"
    if result.cpu > _MOST_CPU:
        yield f"{result.cpu:.1f} s of CPU time"
    for steps in (master["steps"], *result.workers):
        if len(steps) > _MOST_CALLS:
            yield f"{len(steps)} system calls or more"


def _listen(family: socket.AddressFamily, address: Any) -> socket.socket:
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    return listener


class _Client:
    """answer: nothing as long as the connection is open, then all that came."""

    def __init__(self, family: socket.AddressFamily, address: Any, request: bytes) -> None:
        """It may be too late."""
        self.answer: bytes | None = None
        self._received = b""
        self._sock = socket.socket(family)
        self._sock.settimeout(1)
        try:
            self._sock.connect(address)
            self._sock.sendall(request)
        except OSError:
            self._end()

    def _end(self) -> None:
        self._sock.close()
        self.answer = self._received

    def read(self, deadline: float) -> bool:
        """Whether there is an answer, by then."""
        while self.answer is None:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                piece = self._sock.recv(1 << 16)
            except TimeoutError:
                return False
            except OSError:
                piece = b""
            self._received += piece
            if not piece:
                self._end()
        return True


def _wait(pid: int, timeout: float) -> bool:
    """Whether a child ends."""
    pidfd = os.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], timeout)[0])
    finally:
        os.close(pidfd)


def _has_workers(pid: int, log: Path, count: int) -> bool:
    """Whether there are so many at some time, as the log tells, or the pool ends by itself."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        text = log.read_text() if log.exists() else ""
        begun = len(re.findall(r"^worker \d+ started", text, re.MULTILINE))
        ended = len(re.findall(r"^worker \d+ (?:was|exited|ended)", text, re.MULTILINE))
        if begun - ended == count or "stopping" in text or _wait(pid, 0):
            return True
        time.sleep(0.002)
    return False


def _kill_children() -> int:
    """Returns how many there were, which this process inherits."""
    count = 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                for child in Path("/proc/thread-self/children").read_text().split():
                    os.kill(int(child), signal.SIGKILL)
                os.waitpid(-1, 0)
            count += 1
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults.pools")
    parser.add_argument("--quick", action="store_true", help="some faults only")
    parser.add_argument("scenarios", nargs="*", help="what their names begin with")
    options = parser.parse_args()
    if not is_loaded():
        return start("faults.pools", *sys.argv[1:])
    pools = Pools(options.quick)
    for name, scenario in SCENARIOS.items():
        if name.startswith(tuple(options.scenarios) or ""):
            pools.attack(name, scenario)
    for seconds, what in pools.slowest:
        print(f"{seconds:.1f} s: {what}")
    for kind, count in pools.by_scenario.items():
        print(f"{count} {kind}")
    counts = ", ".join(f"{count} {kind}" for kind, count in pools.counts.items())
    print(f"{counts}; {len(pools.found)} that went wrong")
    return 1 if pools.found else 0


if __name__ == "__main__":
    sys.exit(main())
