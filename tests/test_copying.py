"""What owns descriptors is not copied, and is closed whatever becomes of a warning."""

import copy
import gc
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fdpass_c
from fdpass_c import Batch, Channel, Descriptors, Listener
from support.sockets import Pair


@pytest.mark.thread_unsafe
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"]
)
def test_no_second_owner(duplicate: Callable[[Any], Any], file: int, tmp_path: Path) -> None:
    """Copying or pickling an owner is a TypeError that says what to do, and changes nothing."""
    here, there = Channel.pair()
    with here, there, Listener(tmp_path / "socket") as listener:
        here.send_many([b"one", b"two"], [file, file])
        with there.recv_many() as batch:
            for owner in (batch, batch.fds):
                with pytest.raises(TypeError, match="send descriptors over a Channel"):
                    duplicate(owner)
            for end in (here, listener):
                advice = f"pass a socket, and make a {type(end).__name__} of it there"
                with pytest.raises(TypeError, match=advice):
                    duplicate(end)
            assert isinstance(batch, Batch)
            assert isinstance(batch.fds, Descriptors)
            assert len([*batch.fds]) == 2


@pytest.mark.thread_unsafe
def test_dropped_where_warnings_are_errors(
    stream: Pair, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner that is dropped open is closed also where its warning raises."""
    raised: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: raised.append(told.exc_value))
    fdpass_c.send_fds(stream[0], [b"x"], [file])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, fds = fdpass_c.recv_fd(stream[1])
        del fds
        here, there = Channel.pair()
        there.close()
        del here
        gc.collect()
    assert [type(exception) for exception in raised] == [ResourceWarning] * 2
