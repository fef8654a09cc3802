"""Python finds no memory, at every allocation of every operation. The core's own: python -m faults.

    python -m allocations [--quick] [operation ...]     from this folder's parent

prints what was tried and what was found, and ends with status 1 if that is anything.
"""
