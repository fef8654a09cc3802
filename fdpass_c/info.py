"""Collects facts for a bug report: versions, how the library was compiled, kernel features,
limits."""

import os
import platform
import resource
import socket
import sys
import sysconfig
from collections.abc import Callable, Mapping
from typing import Any

import _cffi_backend

from fdpass_c import __version__, _native
from fdpass_c._native import ffi, lib
from fdpass_c.errors import MAX_FDS
from fdpass_c.options import HAS_GENERIC_NUMBERS, SO_PASSRIGHTS

_SO_PASSPIDFD = 76

_SINCE = {
    "sendmmsg": "Linux 3.0",
    "recvmmsg": "Linux 2.6.33",
    "pwritev2": "Linux 4.6",
    "close_range": "Linux 5.9, FreeBSD 12.2",
    "pidfd_open": "Linux 5.3",
    "SO_PEERPIDFD": "Linux 6.5",
    "SO_PASSPIDFD": "Linux 6.5",
    "SO_PASSRIGHTS": "Linux 6.16",
    "count of /proc/self/fd": "Linux 6.2",
}


def collect() -> dict[str, Any]:
    """Returns all facts as plain values for json.dumps.

    Each kernel feature is tried in a harmless way. The kernel's version does not tell enough,
    because a container's seccomp filter may hide features.
    """
    return {
        "fdpass_c": {
            "version": __version__,
            "cffi": str(_cffi_backend.__version__),
        },
        "python": {
            "version": platform.python_version(),
            "implementation": platform.python_implementation(),
            "free-threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        },
        "system": {
            "platform": sys.platform,
            "machine": platform.machine(),
            "kernel": f"{platform.system()} {platform.release()}",
            "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        },
        "compiled": {
            "module": os.path.basename(_native.__file__),
            "pointer bits": 8 * ffi.sizeof("void *"),
            "byte order": sys.byteorder,
            "messages a system call": lib.FDP_BATCH,
        },
        "kernel": _try_features(),
        "limits": _read_limits(),
    }


def render(info: Mapping[str, Any]) -> str:
    """Returns what collect has returned as text for people."""
    lines = []
    for section, values in info.items():
        lines.append(f"{section}:")
        width = max(len(name) for name in values)
        for name, value in values.items():
            since = f" ({_SINCE[name]})" if section == "kernel" and value is False else ""
            lines.append(f"  {name:{width}}  {_show(value)}{since}")
    return "\n".join(lines)


def _show(value: object) -> str:
    if value is None:
        return "unlimited"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _try_features() -> dict[str, bool]:
    answered = lib.fdp_find_features()
    return {
        "sendmmsg": bool(answered & lib.FDP_FEATURE_SENDMMSG),
        "recvmmsg": bool(answered & lib.FDP_FEATURE_RECVMMSG),
        "pwritev2": bool(answered & lib.FDP_FEATURE_PWRITEV2),
        "close_range": bool(answered & lib.FDP_FEATURE_CLOSE_RANGE),
        "pidfd_open": _works(_try_pidfd_open),
        "SO_PEERPIDFD": _works(_try_peer_pidfd),
        "SO_PASSPIDFD": _works(lambda: _try_option(_SO_PASSPIDFD)),
        "SO_PASSRIGHTS": _works(lambda: _try_option(SO_PASSRIGHTS)),
        "count of /proc/self/fd": _works(_try_fd_count),
    }


def _works(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except (OSError, AttributeError):
        return False


def _try_pidfd_open() -> bool:
    # Python does not have this function on every system. _works takes an AttributeError as no.
    os.close(os.pidfd_open(os.getpid()))  # type: ignore[attr-defined, unused-ignore]
    return True


def _try_peer_pidfd() -> bool:
    left, right = socket.socketpair()
    with left, right:
        fd = lib.fdp_open_peer(left.fileno())
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _try_option(option: int) -> bool:
    if not HAS_GENERIC_NUMBERS:
        return False
    left, right = socket.socketpair()
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, option, 1)
    return True


def _try_fd_count() -> bool:
    return os.stat("/proc/self/fd").st_size > 0


def _read_limits() -> dict[str, int | None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "descriptors a message": MAX_FDS,
        "RLIMIT_NOFILE soft": None if soft == resource.RLIM_INFINITY else soft,
        "RLIMIT_NOFILE hard": None if hard == resource.RLIM_INFINITY else hard,
    }
