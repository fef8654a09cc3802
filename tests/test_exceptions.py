"""An exception of this package can be sent to another process, as multiprocessing does."""

import copy
import pickle
from typing import Any

import fdpass_c
from fdpass_c.pool import PoolError


def test_copies() -> None:
    """The copy has the same type, text and attributes."""
    errors: list[Any] = [
        fdpass_c.DescriptorTableFullError(3, 1),
        fdpass_c.PeerClosedError("text"),
        fdpass_c.ProtocolError("text"),
        fdpass_c.TruncatedError("text"),
        PoolError("text"),
    ]
    for error in errors:
        error.note = "more"
        for copied in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(copied) is type(error)
            assert str(copied) == str(error)
            assert vars(copied) == vars(error)
