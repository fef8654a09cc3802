"""The pytest plugin of fdpass_c: on request, tests that leave descriptors open fail.

It is not inside of the package, so that pytest starts without importing the package.
"""

from __future__ import annotations  # pytest 6 does not have the types below.

import sys
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("fdpass_c").addoption(
        "--no-fd-leak",
        action="store_true",
        help="fail every test that leaves descriptors open; with -X tracemalloc, say where from",
    )


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    """Fails a test that leaves descriptors open, or closes descriptors that were open before it."""
    from fdpass_c.testing import no_leak

    _forget_failure()
    leaks = ""
    try:
        with no_leak():
            yield
            _forget_failure()
    except AssertionError as error:
        leaks = str(error)
    if leaks:
        pytest.fail(leaks, pytrace=False)  # Where they are found says nothing about them.


def _forget_failure() -> None:
    """Frees the objects in the frames of a failed test. Otherwise pytest frees them during the next
    test."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        vars(sys).pop(name, None)


@pytest.fixture(autouse=True)
def _no_fd_leak_if_asked(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--no-fd-leak"):
        request.getfixturevalue("no_fd_leak")
