"""What this process holds: open descriptors and resident memory."""

import os
import resource
import sys
from collections.abc import Callable


def count_open_fds() -> int:
    """Open descriptors, without the one that the counting needs."""
    return len(os.listdir("/dev/fd")) - 1


def _read_status(field: str) -> int | None:
    """A field of /proc/self/status in KiB; None where there is no such file."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
    except OSError:
        pass
    return None


def read_rss_kib() -> int:
    """Resident memory; the highest so far where the system does not tell the current one."""
    current = _read_status("VmRSS")
    if current is not None:
        return current
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest // 1024 if sys.platform == "darwin" else highest


def measure_growth_kib(run: Callable[[], object]) -> int | None:
    """By how much resident memory rises at most while run runs; None where that is not told."""
    try:
        with open("/proc/self/clear_refs", "w") as clear_refs:
            clear_refs.write("5")  # Sets VmHWM back to VmRSS (man 5 proc).
    except OSError:
        return None
    before = _read_status("VmHWM")
    run()
    after = _read_status("VmHWM")
    return None if before is None or after is None else after - before
