"""Which loop runs the caller."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Protocol

from fdpass_c.aio import asyncio_loop
from fdpass_c.aio.directions import Direction
from fdpass_c.waiting import HasFileno


class Loop(Protocol):
    """What both have."""

    def watch(self, source: HasFileno, writes: bool) -> Direction:
        """A direction of source, which stays open and alive as long as the loop watches it."""

    async def sleep(self, seconds: float) -> None:
        """Waits that long."""


def _finds(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except RuntimeError:
        return False
    return True


def in_trio() -> bool:
    """Whether trio runs the caller; else it has to be asyncio. Either can run inside of the other:
    a run of trio in a task of asyncio's, or as the guest of asyncio's loop."""
    # Not there before trio is imported, nor while another thread is at it.
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)
    if lowlevel is None:
        return False
    if _finds(lowlevel.current_task):
        return True
    return not _finds(asyncio.get_running_loop) and _finds(lowlevel.current_trio_token)


def running() -> tuple[Any, Loop]:
    """The loop that runs the caller, as a key, and what waits in it. RuntimeError without one."""
    if in_trio():
        from fdpass_c.aio import trio_loop

        return trio_loop.current(), trio_loop
    return asyncio.get_running_loop(), asyncio_loop
