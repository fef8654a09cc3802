import platform
import sys
import sysconfig

from setuptools import setup

# One wheel for every CPython with a GIL. A free-threaded one, a debug build and PyPy have no
# stable ABI that all of these share, so they get wheels of their own; cffi compiles accordingly.
STABLE_ABI = (
    platform.python_implementation() == "CPython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not hasattr(sys, "gettotalrefcount")
)

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
)
