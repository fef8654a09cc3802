"""Whatever both ends of a channel do, in any order: messages come once, whole and in order.

Many more examples are `nox -s stateful`.
"""

import asyncio
import importlib.util

import pytest

from stateful import run_blocking, run_loop
from support.loops import every_loop, run
from support.marks import linux_only

pytestmark = [linux_only, pytest.mark.thread_unsafe, pytest.mark.untraced]


@pytest.fixture(scope="module", autouse=True)
def _a_loop_before() -> None:
    """uvloop keeps a pipe for the next loop."""
    if importlib.util.find_spec("uvloop"):
        run("uvloop", asyncio.sleep, 0)


def test_blocking() -> None:
    """Sends, receives, full tables, interrupts, ends: as the model says."""
    run_blocking(20, shrinks=False)


@every_loop
def test_tasks(loop: str) -> None:
    """Tasks that send, receive and are cancelled: as the model says."""
    run_loop(loop, 5, shrinks=False)
