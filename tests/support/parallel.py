"""Has pytest-run-parallel run tests in several threads at once, each with fixtures of its own.

    PYTHONPATH=tests python -m pytest -p support.parallel --parallel-threads 4

Every test runs; those marked thread_unsafe, in one thread.
"""

import functools
import inspect
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import pytest

TESTS = str(Path(__file__).parent.parent)


def _is_ours(function: object) -> bool:
    return isinstance(function, FunctionType) and function.__code__.co_filename.startswith(TESTS)


class Fixtures:
    """The fixtures of one test for one thread: made anew where they are ours and the test's own."""

    def __init__(self, item: pytest.Function, stack: ExitStack) -> None:
        self._item = item
        self._stack = stack
        self._made: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Any:
        if name == "tmp_path":
            return Path(tempfile.mkdtemp(dir=str(self._item.funcargs["tmp_path"])))
        definition = find_fixture(self._item, name)
        if definition is None or definition.scope != "function" or not _is_ours(definition.func):
            return self._item.funcargs[name]
        arguments = {
            argument: self._request(name) if argument == "request" else self.get(argument)
            for argument in definition.argnames
        }
        if inspect.isgeneratorfunction(definition.func):
            return self._stack.enter_context(contextmanager(definition.func)(**arguments))
        return definition.func(**arguments)

    def _request(self, name: str) -> Any:
        return SimpleNamespace(param=_parameters(self._item).get(name), getfixturevalue=self.get)


def find_fixture(item: pytest.Function, name: str) -> Any:
    found = item.session._fixturemanager.getfixturedefs(name, item)
    return found[-1] if found else None


def _parameters(item: pytest.Function) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _with_own_fixtures(item: pytest.Function) -> Callable[..., None]:
    test = item.obj

    @functools.wraps(test)
    def run(**arguments: Any) -> None:
        with ExitStack() as stack:
            fixtures = Fixtures(item, stack)
            test(**{name: fixtures.get(name) for name in arguments})

    return run


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    assert isinstance(item, pytest.Function)
    if item.get_closest_marker("thread_unsafe") is None:
        item.obj = _with_own_fixtures(item)
