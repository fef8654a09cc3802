"""Event loops that a test runs under."""

import asyncio
import contextlib
import importlib.util
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import fdpass_c
from support.messages import progress_of


def _named(name: str) -> Any:
    missing = name in ("uvloop", "trio") and importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"no {name}"))


asyncio_loops = pytest.mark.parametrize("loop", [*map(_named, ["asyncio", "debug", "uvloop"])])
every_loop = pytest.mark.parametrize("loop", [*map(_named, ["asyncio", "debug", "uvloop", "trio"])])
# uvloop is asked for the same as asyncio's own loop: for what only its answers could change.
both_backends = pytest.mark.parametrize("loop", [*map(_named, ["asyncio", "trio"])])
# Of the kind of socket no loop knows: each kind under one of them.
loops_and_kinds = pytest.mark.parametrize(
    ("loop", "kind"),
    [
        pytest.param(*named.values, kind, marks=named.marks, id=f"{named.values[0]}-{kind.name}")
        for named, kind in [
            (_named("asyncio"), socket.SOCK_STREAM),
            (_named("debug"), socket.SOCK_SEQPACKET),
            (_named("uvloop"), socket.SOCK_STREAM),
            (_named("trio"), socket.SOCK_STREAM),
        ]
    ],
)


def run(loop: str, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Runs function(*arguments) in a new event loop."""
    if loop == "trio":
        import trio

        return trio.run(function, *arguments)

    async def call() -> Any:
        return await function(*arguments)

    if loop == "uvloop":
        import uvloop

        return uvloop.run(call())
    return asyncio.run(call(), debug=loop == "debug")


def new_loop(loop: str) -> asyncio.AbstractEventLoop:
    """One of asyncio's kind, which the caller runs and closes."""
    if loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    new = asyncio.new_event_loop()
    new.set_debug(loop == "debug")
    return new


def _do_nothing() -> None:
    pass


class Task:
    """A call that runs beside the test; what it returned or raised is kept."""

    def __init__(
        self, group: "Group", function: Callable[..., Awaitable[Any]], *arguments: Any
    ) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False
        self._function = function
        self._arguments = arguments
        self._group = group
        self._cancel: Callable[[], object]
        if group.loop == "trio":
            import trio

            self._scope = trio.CancelScope()
            self._cancel = self._scope.cancel
            group.nursery.start_soon(self._run_in_trio)
        else:
            task = asyncio.get_running_loop().create_task(self._run())
            group.tasks.append(task)
            self._cancel = task.cancel

    async def _run(self) -> None:
        try:
            self.result = await self._function(*self._arguments)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.done = True
            self._cancel = _do_nothing

    async def _run_in_trio(self) -> None:
        with self._scope, contextlib.suppress(Exception):
            await self._run()

    @property
    def progress(self) -> fdpass_c.Progress:
        """That of its error."""
        assert self.error is not None
        return progress_of(self.error)

    def cancel(self) -> None:
        self._cancel()

    async def wait(self) -> "Task":
        while not self.done:
            await self._group.turn()
        return self


class Group:
    """Tasks of a test, all of which have ended at the end of the block."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        self.nursery: Any = None
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Group":
        if self.loop == "trio":
            import trio

            self._manager = trio.open_nursery()
            self.nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        if self.loop == "trio":
            if error[1] is not None:
                self.nursery.cancel_scope.cancel()
            await self._manager.__aexit__(*error)
            return
        if error[1] is not None:
            for task in self.tasks:
                task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()  # Python 3.11 cannot collect a circle with a task that was cancelled.

    def start(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Task:
        return Task(self, function, *arguments)

    async def started(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Task:
        """A task that has come as far as it can by itself."""
        task = self.start(function, *arguments)
        await self.turn(5)
        return task

    async def within(
        self, seconds: float, function: Callable[..., Awaitable[Any]], *arguments: Any
    ) -> Task:
        """A task that is done, or was cancelled after so many seconds."""
        task = self.start(function, *arguments)
        await pause(self.loop, seconds)
        task.cancel()
        return await task.wait()

    async def turn(self, times: int = 1) -> None:
        """Lets the loop turn."""
        for _ in range(times):
            await pause(self.loop)


async def pause(loop: str, seconds: float = 0) -> None:
    if loop == "trio":
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)
