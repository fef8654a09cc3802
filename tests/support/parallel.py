"""Has pytest-run-parallel run tests in several threads at once, each with fixtures of its own.

    PYTHONPATH=tests python -m pytest -p support.parallel --parallel-threads 4

Every test runs; those that change the whole process, or ask something of all of it, in one thread.
"""

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import pytest

TESTS = str(Path(__file__).parent.parent)

# What does something to the whole process, or depends on which numbers are free, who the children
# are, which limits and signal handlers stand and what was warned of. Python 3.11 counts the depth
# of ast for all threads together.
PROCESS_WIDE = {
    "EBADF",
    "ast",
    "catch_warnings",
    "fork",
    "gc",
    "is_open",
    "list_fds",
    "monkeypatch",
    "no_leak",
    "resource",
    "serve",
    "signal",
    "subprocess",
    "tracemalloc",
    "warns",
}


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_ours(function: object) -> bool:
    return isinstance(function, FunctionType) and function.__code__.co_filename.startswith(TESTS)


def _is_process_wide(function: Callable[..., object], seen: set[object]) -> bool:
    """Whether function, or a function of ours that it names, names one of PROCESS_WIDE."""
    function = inspect.unwrap(function)
    if function in seen or not _is_ours(function):
        return False
    seen.add(function)
    assert isinstance(function, FunctionType)
    for name in _names(function.__code__):
        named = function.__globals__.get(name)
        if name in PROCESS_WIDE or (callable(named) and _is_process_wide(named, seen)):
            return True
    return False


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
    test = item.function
    inner = getattr(test, "hypothesis", SimpleNamespace(inner_test=test)).inner_test
    fixtures = [find_fixture(item, name) for name in item.fixturenames if name[0] != "_"]
    functions = [inner, *_parameters(item).values(), *(one.func for one in fixtures if one)]
    seen: set[object] = set()
    # One that asks for fixtures by itself gets those of all threads.
    asks = "request" in inspect.signature(inner).parameters
    if asks or any(_is_process_wide(one, seen) for one in functions if callable(one)):
        item.add_marker(pytest.mark.thread_unsafe)
    else:
        item.obj = _with_own_fixtures(item)
