import platform
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# One wheel for every CPython with a GIL. A free-threaded one, a debug build and PyPy have no
# stable ABI that all of these share, so they get wheels of their own; cffi compiles accordingly.
STABLE_ABI = (
    platform.python_implementation() == "CPython"
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not hasattr(sys, "gettotalrefcount")
)


class BuildCore(build_ext):
    """Says in a sentence what is missing where the C core does not compile."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError) as error:
            raise SystemExit(
                f"fdpass-c: the C core was not compiled: {error}. It takes a C compiler and "
                "Python's headers (Debian: gcc python3-dev, Fedora: gcc python3-devel, "
                "Alpine: gcc musl-dev python3-dev, macOS: xcode-select --install)"
            ) from None


setup(
    cmdclass={"build_ext": BuildCore},
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
)
