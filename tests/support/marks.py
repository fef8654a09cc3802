"""Marks of tests that hold in some places only."""

import os
import sys

import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a fact of Linux")
# An ordinary user may have only as many descriptors in flight as a process may have open.
any_in_flight = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may send no more")
# PyPy may run them between any two instructions.
places_known = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="where CPython runs signal handlers"
)
