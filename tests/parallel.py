"""Which tests pytest-run-parallel may run in several threads at once, and which it may not.

    PYTHONPATH=tests python -m pytest -p parallel --parallel-threads 4

Every test runs; those that change the whole process, or whose fixtures are one socket for all the
threads, run in one thread.
"""

import pytest

# One socket, or one file's position, for all threads of a test.
FIXTURES = {
    "c_peers",
    "connection",
    "datagram",
    "pair",
    "pairs",
    "path",
    "request",
    "seqpacket",
    "stream",
    "target",
    "tcp",
    "tmp_path",
    "udp",
}

# What a module that has one of these names does, it does to the whole process or asks of it: whose
# numbers its descriptors have, who its children are, its limits and signals.
NAMES = {
    "fork",
    "handling",
    "is_open",
    "list_fds",
    "monkeypatch",
    "no_leak",
    "once_blocked",
    "resource",
    "run_in_child",
    "run_program",
    "signal",
    "subprocess",
}

# These have threads of their own, look at the whole table, or parse (ast of Python 3.11 counts its
# depth for all threads together).
MODULES = {
    "test_channel_all_or_nothing",
    "test_exports",
    "test_pool",
    "test_standard_library_suite",
}


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    assert isinstance(item, pytest.Function)
    module = vars(item.module)
    if (
        FIXTURES.intersection(item.fixturenames)
        or NAMES.intersection(module)
        or item.module.__name__ in MODULES
    ):
        item.add_marker(pytest.mark.thread_unsafe)
