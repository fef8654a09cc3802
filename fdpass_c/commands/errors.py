"""What went wrong, in one line on standard error."""

import contextlib
import os
import sys

from fdpass_c.commands.streams import write_all


def complain(command: str, text: str) -> None:
    """Prints one line, whatever is in text. Where that fails, there is nobody to tell."""
    line = f"fdpass: {command}: {escape(text)}\n"
    with contextlib.suppress(OSError):
        write_all(2, line.encode(sys.getfilesystemencoding(), "backslashreplace"))


def escape(text: str) -> str:
    """Text whose characters a terminal shows and does not obey: a peer may have chosen it."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    # A byte that is no text, as os.fsdecode has it.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def describe(error: Exception) -> str:
    """An exception's text as a Unix tool would put it: the file, then what the system said."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{name}{error.strerror}"
    return str(error) or type(error).__name__
