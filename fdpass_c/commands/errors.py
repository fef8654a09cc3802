"""Reports errors, one line each, on standard error."""

import contextlib
import os
import sys

from fdpass_c.commands.streams import write_all


def complain(command: str, text: str) -> None:
    """Prints one line, with control characters escaped. If that fails, nothing is printed."""
    line = f"fdpass: {command}: {escape(text)}\n"
    with contextlib.suppress(OSError):
        write_all(2, line.encode(sys.getfilesystemencoding(), "backslashreplace"))


def escape(text: str) -> str:
    """Escapes control characters, because a peer may have chosen the text, and a terminal would
    obey them."""
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    # os.fsdecode makes such a character of a byte that it cannot decode.
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def describe(error: Exception) -> str:
    """Returns an exception's text in the form of Unix tools: the file, then the system's
    message."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return f"{name}{error.strerror}"
    return str(error) or type(error).__name__
