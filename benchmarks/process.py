"""Counts what this process holds: open descriptors and resident memory."""

import os
import resource
import sys
from collections.abc import Callable


def count_open_fds() -> int:
    """Returns how many descriptors are open, without the one that the counting needs."""
    return len(os.listdir("/dev/fd")) - 1


def _read_status(field: str) -> int | None:
    """Returns a field of /proc/self/status in KiB, or None if there is no such file."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
    except OSError:
        pass
    return None


def read_rss_kib() -> int:
    """Returns the resident memory. If the system does not report it, returns the highest so far."""
    current = _read_status("VmRSS")
    if current is not None:
        return current
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest // 1024 if sys.platform == "darwin" else highest


def measure_growth_kib(run: Callable[[], object]) -> int | None:
    """Calls run. Returns by how much resident memory was higher at its peak than before, or None if
    the system does not report that."""
    try:
        with open("/proc/self/clear_refs", "w") as clear_refs:
            clear_refs.write("5")  # Resets VmHWM to VmRSS (man 5 proc).
    except OSError:
        return None
    before = _read_status("VmHWM")
    run()
    after = _read_status("VmHWM")
    return None if before is None or after is None else after - before
