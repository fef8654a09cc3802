"""What `fdpass info` reports is true of the process that asks."""

import json
import os
import platform
import resource
import socket
import sys

import pytest

import fdpass_c
from fdpass_c import info
from support.marks import linux_only


def test_json_takes_it() -> None:
    """Everything collected survives JSON unchanged."""
    collected = info.collect()
    assert json.loads(json.dumps(collected)) == collected


def test_rendered_text_has_every_entry() -> None:
    """The text leaves nothing out that was collected."""
    collected = info.collect()
    text = info.render(collected)
    for section, values in collected.items():
        assert f"{section}:" in text
        for name in values:
            assert name in text


def test_versions_of_the_running_python() -> None:
    """The interpreter and the word size are those of this process."""
    collected = info.collect()
    assert collected["python"]["version"] == platform.python_version()
    assert collected["compiled"]["pointer bits"] == (64 if sys.maxsize > 2**32 else 32)
    assert collected["compiled"]["module"].startswith("_native.")


@pytest.mark.thread_unsafe
def test_limits_as_they_are_now() -> None:
    """The limits are read anew, not when the module was imported."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        limits = info.collect()["limits"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert limits["RLIMIT_NOFILE soft"] == soft - 1
    assert limits["RLIMIT_NOFILE hard"] == (None if hard == resource.RLIM_INFINITY else hard)
    assert limits["descriptors a message"] == fdpass_c.MAX_FDS


@linux_only
def test_features_agree_with_what_calls_do() -> None:
    """A feature reported as there works, and one reported as missing is missing."""
    kernel = info.collect()["kernel"]
    left, right = socket.socketpair()
    with left, right:
        pidfd = fdpass_c.peer_pidfd(left)
    assert kernel["SO_PEERPIDFD"] is (pidfd is not None)
    if pidfd is not None:
        os.close(pidfd)
    assert kernel["count of /proc/self/fd"] is (os.stat("/proc/self/fd").st_size > 0)


def test_missing_feature_says_since_when() -> None:
    """Who lacks a feature reads which kernel brought it."""
    collected = info.collect()
    collected["kernel"]["close_range"] = False
    assert "no (Linux 5.9" in info.render(collected)


def test_no_limit_has_a_word() -> None:
    """RLIM_INFINITY is no number, so JSON has null and the text says unlimited."""
    collected = info.collect()
    collected["limits"]["RLIMIT_NOFILE hard"] = None
    assert "unlimited" in info.render(collected)
