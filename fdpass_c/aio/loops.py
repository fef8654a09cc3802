"""Finds the event loop that runs the caller."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Protocol

from fdpass_c.aio import asyncio_loop
from fdpass_c.aio.directions import Direction
from fdpass_c.waiting import HasFileno


class Loop(Protocol):
    """What the modules asyncio_loop and trio_loop have in common."""

    def watch(self, source: HasFileno, writes: bool) -> Direction:
        """Makes one direction of source. source must stay open as long as the loop watches it."""

    async def sleep(self, seconds: float) -> None:
        """Waits so many seconds."""


def _finds(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except RuntimeError:
        return False
    return True


def in_trio() -> bool:
    """Whether trio runs the caller. Otherwise it must be asyncio.

    Both can be running: trio may run in a task of asyncio, or as the guest of asyncio's loop.
    """
    # lowlevel is missing before trio is imported, and while another thread is importing it.
    lowlevel = getattr(sys.modules.get("trio"), "lowlevel", None)
    if lowlevel is None:
        return False
    if _finds(lowlevel.current_task):
        return True
    return not _finds(asyncio.get_running_loop) and _finds(lowlevel.current_trio_token)


def running() -> tuple[Any, Loop]:
    """Returns the loop that runs the caller, as a key for dicts, and the module that waits in it.
    RuntimeError: no loop is running."""
    if in_trio():
        from fdpass_c.aio import trio_loop

        return trio_loop.current(), trio_loop
    return asyncio.get_running_loop(), asyncio_loop
