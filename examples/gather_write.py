"""Gather write: one system call writes several strings to a file.

python examples/gather_write.py [FILE]
"""

import sys

from fdpass_c import writev

[path] = sys.argv[1:] or ["greeting.txt"]
with open(path, "wb", buffering=0) as file:
    written = writev(file, [b"gather ", b"these ", b"strings\n"])
print(f"{written} bytes")
