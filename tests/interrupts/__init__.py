"""A signal whose handler raises, made pending before every bytecode of every operation.

    python -m interrupts [--quick] [operation ...]     from this folder's parent

prints what was tried and what was found, and ends with status 1 if that is anything.
"""
