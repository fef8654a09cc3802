"""The check that runs around every test sees what it has to see."""

import os

import pytest

from support.descriptors import no_leak


def test_names_what_was_left_open() -> None:
    """A descriptor left open fails the block, and the text says what it points to."""
    with pytest.raises(AssertionError, match=r"left open: .*null"), no_leak():
        fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)


def test_names_what_was_closed() -> None:
    """A descriptor closed behind its owner's back fails the block."""
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(AssertionError, match=r"closed, though open before: .*null"), no_leak():
        os.close(fd)


def test_sees_a_number_reused() -> None:
    """A descriptor closed and its number taken by another file fails the block."""
    zero = os.open("/dev/zero", os.O_RDONLY)
    fd = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(AssertionError, match=r"left open: .*zero"), no_leak():
        os.dup2(zero, fd, inheritable=False)
    os.close(fd)
    os.close(zero)


def test_is_silent_when_all_is_well() -> None:
    """Opening and closing leaves nothing to complain of."""
    with no_leak():
        os.close(os.open(os.devnull, os.O_RDONLY))
