"""Random operations on both ends of a Channel, compared with a model.

    python -m stateful [--examples N] [--nobody]     from this folder's parent

prints what was tried, and ends with a traceback and the steps that led to it if anything is wrong.
"""

import importlib.util

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from stateful.blocking import ChannelMachine
from stateful.loops import Step, follow, steps

LOOPS = ["asyncio", *[name for name in ("uvloop", "trio") if importlib.util.find_spec(name)]]


def _settings(examples: int, shrinks: bool) -> settings:
    return settings(
        max_examples=examples,
        phases=[Phase.generate, *[Phase.shrink] * shrinks],
        stateful_step_count=50,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def run_blocking(examples: int, shrinks: bool = True) -> None:
    """shrinks: looks, for minutes, for the fewest steps that fail."""
    run_state_machine_as_test(ChannelMachine, settings=_settings(examples, shrinks))


def run_loop(loop: str, examples: int, shrinks: bool = True) -> None:
    @_settings(examples, shrinks)
    @given(plan=steps, buffer=st.sampled_from([1, 20_000, 1 << 20]))
    def check(plan: list[Step], buffer: int) -> None:
        follow(loop, plan, buffer)

    check()
