"""What went wrong, in one line on standard error."""

import os
import sys


def complain(command: str, text: str) -> None:
    """Prints one line, whatever is in text."""
    print(f"fdpass: {command}: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


def describe(error: Exception) -> str:
    """An exception's text as a Unix tool would put it: the file, then what the system said."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{name}{error.strerror}"
    return str(error) or type(error).__name__
