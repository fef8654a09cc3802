"""Marks of tests that hold in some places only."""

import sys

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a fact of Linux")
# PyPy may run them between any two instructions.
places_known = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="where CPython runs signal handlers"
)
