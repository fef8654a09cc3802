"""What multiprocessing does where a process begins and ends, and os.fork and os._exit do not."""

import os
import sys


def begin_multiprocessing() -> None:
    """In a new worker: what the program has made of multiprocessing is to be used here too.

    Proxies of managers make connections of their own, and queues start threads of their own.
    """
    if util := sys.modules.get("multiprocessing.util"):
        util._run_after_forkers()


def end_multiprocessing() -> None:
    """At the end of a process.

    Managers and pools end, queues deliver what was put into them, and daemons are terminated. What
    belongs to the process that this one was forked from stays.
    """
    if (util := sys.modules.get("multiprocessing.util")) is None:
        return
    util._run_finalizers(0)
    for child in [*util.process._children]:
        if child.daemon and child._parent_pid == os.getpid():
            child.terminate()
    util._run_finalizers()
