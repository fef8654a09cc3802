"""Gather write: several strings go to one file with one system call, in order, nothing in between.

python examples/gather_write.py greeting.txt
"""

import sys

from fdpass_c import writev

with open(sys.argv[1], "wb", buffering=0) as file:
    written = writev(file, [b"gather ", b"these ", b"strings\n"])
print(f"{written} bytes")
