"""The work of multiprocessing at the start and the end of a process, which os.fork and os._exit do
not do."""

import os
import sys


def begin_multiprocessing() -> None:
    """In a new worker: makes objects of multiprocessing from before the fork usable.

    A manager's proxy makes a new connection, and a queue starts a new thread.
    """
    if util := sys.modules.get("multiprocessing.util"):
        util._run_after_forkers()


def end_multiprocessing() -> None:
    """At the end of a process: ends managers and pools, lets queues deliver what was put into them,
    and terminates daemons. Objects of the parent process are not touched.
    """
    if (util := sys.modules.get("multiprocessing.util")) is None:
        return
    util._run_finalizers(0)
    for child in [*util.process._children]:
        if child.daemon and child._parent_pid == os.getpid():
            child.terminate()
    util._run_finalizers()
