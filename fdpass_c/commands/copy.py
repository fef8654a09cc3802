"""From a received descriptor to a file or to standard output."""

import errno
import os

from fdpass_c.vectors import writev
from fdpass_c.waiting import HasFileno, fileno

_CHUNK = 1 << 20


def copy(source: int, target: int | HasFileno) -> int:
    """Copies from where source stands up to its end; borrows both.

    Returns 0, or the errno with which reading ended early. OSError where writing failed.
    """
    while True:
        try:
            chunk = os.read(source, _CHUNK)
        except OSError as error:
            return error.errno or errno.EIO
        if not chunk:
            return 0
        writev(fileno(target), [chunk])
