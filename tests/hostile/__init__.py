"""Hostile peers against each receiving function, blocking and in event loops, again and again.

    python -m hostile [--quick] [--rounds N]     from this folder's parent

prints what was tried and what was found, and ends with status 1 if that is anything.
"""
