"""Compiles the C core into fdpass_c._native: reads csrc/fdpass_api.h and the sources.

Set FDPASS_WERROR=1 to turn the compiler's warnings into errors (our own CI does; a user's newer
compiler must not fail an installation).
"""

import os
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

if sys.platform == "win32":
    raise SystemExit(
        "fdpass-c passes descriptors over Unix domain sockets with SCM_RIGHTS: "
        "it builds on Linux, macOS and BSD, not on Windows"
    )

CORE = Path(os.path.relpath(Path(__file__).resolve().parent / "csrc"))

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
# Loops are short: unrolled or vectorized they would only be larger. Nothing but the module's init
# function is anybody else's to call.
SMALL = ["-O2", "-fno-unroll-loops", "-fno-tree-vectorize", "-fvisibility=hidden"]
# Without debug information a wheel is a third of the size. CFLAGS=-g is for who looks for a fault.
DEBUG = "-g" in os.environ.get("CFLAGS", "").split()
STRIP = ["-Wl,-s"] if sys.platform == "linux" else []
# For free-threaded CPython, cffi defines this macro both in its source and by an option.
ONCE = ["-U_CFFI_NO_LIMITED_API"] if sysconfig.get_config_var("Py_GIL_DISABLED") else []

ffibuilder = FFI()
# The one type of the API that is the system's own; the compiler checks its layout.
ffibuilder.cdef("struct iovec { void *iov_base; size_t iov_len; ...; };")
ffibuilder.cdef((CORE / "fdpass_api.h").read_text())
# cffi gives up the interpreter's lock around every call. The fdp_try_ functions wait for nothing,
# close nothing, and are over before another thread could make use of it: they keep it.
KEEP_LOCK = """
#include <string.h>
#ifdef Py_BEGIN_ALLOW_THREADS
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define FDP_KEEPS_LOCK (strncmp(__func__, "_cffi_f_fdp_try_", 16) == 0)
#define Py_BEGIN_ALLOW_THREADS { \\
    PyThreadState *_save = FDP_KEEPS_LOCK ? NULL : PyEval_SaveThread();
#define Py_END_ALLOW_THREADS \\
    if (!FDP_KEEPS_LOCK) PyEval_RestoreThread(_save); }
#endif
"""
ffibuilder.set_source(
    "fdpass_c._native",
    KEEP_LOCK + '#include "fdpass.h"\n',
    sources=[str(source) for source in sorted(CORE.glob("*.c"))],
    include_dirs=[str(CORE)],
    depends=[str(header) for header in sorted(CORE.glob("*.h"))],
    extra_link_args=[] if DEBUG else STRIP,
    extra_compile_args=["-std=c11", *SMALL, *ONCE, *([] if DEBUG else ["-g0"])]
    + (WARNINGS if os.environ.get("FDPASS_WERROR") else []),
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
