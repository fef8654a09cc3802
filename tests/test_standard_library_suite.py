"""CPython's own tests of send_fds and recv_fds pass with ours in their place."""

import importlib
import socket
import unittest
import warnings

import pytest

import fdpass_c


@pytest.mark.thread_unsafe
@pytest.mark.parametrize("replaced", [("send_fds",), ("recv_fds",), ("send_fds", "recv_fds")])
def test_send_recv_fds_tests(replaced: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """SendRecvFdsTests of this interpreter's test_socket runs unchanged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            suite = importlib.import_module("test.test_socket")
        except ImportError as error:
            pytest.skip(f"this interpreter comes without its tests: {error}")
    for name in replaced:
        monkeypatch.setattr(socket, name, getattr(fdpass_c, name))
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(suite.SendRecvFdsTests).run(result)
    assert result.testsRun > 0
    assert result.wasSuccessful(), result.failures + result.errors
