"""What multiprocessing does at the start and end of a process, and os.fork and os._exit do not."""

import os
import sys


def begin_multiprocessing() -> None:
    """In a new worker: makes objects of multiprocessing from before the fork usable.

    Proxies of managers make connections of their own, and queues start threads of their own.
    """
    if util := sys.modules.get("multiprocessing.util"):
        util._run_after_forkers()


def end_multiprocessing() -> None:
    """At the end of a process.

    Managers and pools end, queues deliver what was put into them, and daemons are terminated. What
    belongs to the parent process stays.
    """
    if (util := sys.modules.get("multiprocessing.util")) is None:
        return
    util._run_finalizers(0)
    for child in [*util.process._children]:
        if child.daemon and child._parent_pid == os.getpid():
            child.terminate()
    util._run_finalizers()
