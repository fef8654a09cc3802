"""Parsers of arguments, whose errors say what is allowed."""

import argparse
import re

# The most bytes of payload that come with a file: usually it is the file's name (PATH_MAX).
MOST_PAYLOAD = 4096

# The largest count. Python cannot make a list with more places than it can address.
_MOST = 1_000_000_000


def count(text: str) -> int:
    """A whole number from 1 on."""
    digits = text.lstrip("0")
    # Checked first, because int takes no text of thousands of digits.
    if not re.fullmatch("[0-9]{1,10}", digits) or int(digits) > _MOST:
        raise argparse.ArgumentTypeError(f"not a whole number from 1 to {_MOST}: {text!r}")
    return int(digits)


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
