"""Every system call of every operation made to fail, or to do less, and every allocation.

The commands of the command line are tried after the operations; their names begin with "fdpass".

    python -m faults [--quick] [operation ...]     from this folder's parent

prints what was tried and what was found, and ends with status 1 if that is anything.
"""
