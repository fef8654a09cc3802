"""Parsers of arguments, whose errors say what is allowed."""

import argparse
import re

# The most bytes of payload that come with a file: usually it is the file's name (PATH_MAX).
MOST_PAYLOAD = 4096


def count(text: str) -> int:
    """A positive whole number."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"not a positive whole number: {text!r}")
    return int(text)


# The longest duration in seconds: poll takes milliseconds in 31 bits.
_LONGEST = 2_000_000


def duration(text: str) -> float:
    """A positive number of seconds, at most 23 days."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f"not a positive number of seconds, at most {_LONGEST}: {text!r}"
        )
    return seconds


def numbers(text: str) -> list[int]:
    """Descriptor numbers with commas between them, all different."""
    parts = text.split(",")
    found = [int(part) for part in parts if re.fullmatch("[0-9]{1,9}", part)]
    if len({*found}) < len(parts):
        raise argparse.ArgumentTypeError(
            f"not a list of different descriptor numbers, such as 3,4: {text!r}"
        )
    return found
