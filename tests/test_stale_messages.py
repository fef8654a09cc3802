"""A receive that fails before it received anything brings nothing back that was handed out."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from fdpass_c import Channel
from fdpass_c.channel import end_of
from support.channels import channels
from support.marks import places_known
from support.messages import take
from support.signals import Interruption


def _find_refused(_receiver: Channel, receive: Callable[..., object]) -> None:
    with pytest.raises((TypeError, OverflowError)):
        receive(1.5)


def _find_busy(receiver: Channel, receive: Callable[..., object]) -> None:
    end_of(receiver).inbox.busy = 1  # Another thread is inside.
    with pytest.raises(BlockingIOError):
        receive()
    end_of(receiver).inbox.busy = 0


def _stop_at_each_line(_receiver: Channel, receive: Callable[..., object]) -> None:
    """As who leaves a debugger."""
    for line in range(1, 100):
        left = line

        def trace(_frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            left -= event == "line"
            if not left:
                raise Interruption
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            receive()
        except BlockingIOError:
            break
        except Interruption:
            pass
        finally:
            sys.settrace(before)


@pytest.mark.thread_unsafe
@pytest.mark.untraced
@pytest.mark.parametrize(
    ("function", "fail"),
    [
        ("recv_many", _find_refused),
        ("recv", _find_busy),
        ("recv_many", _find_busy),
        pytest.param("recv", _stop_at_each_line, marks=places_known),
        pytest.param("recv_many", _stop_at_each_line, marks=places_known),
    ],
)
def test_of_another_channel(
    function: str, fail: Callable[[Channel, Callable[..., object]], None], file: int
) -> None:
    """What another channel has received, in the same memory, does not come again here."""
    with channels() as (sender, receiver), channels() as (elsewhere, other):
        receiver.setblocking(False)
        elsewhere.send_many([b"of another"] * 70, [file] * 70)
        for _ in range(70):  # Enough for all memory that is kept.
            take(other.recv())
            fail(receiver, getattr(receiver, function))
            assert receiver.pending == 0
        sender.send(b"own")
        assert take(receiver.recv()) == (b"own", [])
