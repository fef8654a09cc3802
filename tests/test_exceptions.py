"""An exception of this package can be sent to another process, as multiprocessing does."""

import copy
import pickle

import pytest

import fdpass_c
from fdpass_c.pool import PoolError


@pytest.mark.parametrize(
    "error",
    [
        fdpass_c.DescriptorTableFullError(3, 1),
        fdpass_c.PeerClosedError("text"),
        fdpass_c.ProtocolError("text"),
        fdpass_c.TruncatedError("text"),
        PoolError("text"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_copies(error: Exception) -> None:
    """The copy has the same type, text and attributes."""
    error.note = "more"  # type: ignore[attr-defined]
    for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)
