"""A passed descriptor refers to the same open file: both processes share one position in it.

The child writes to the first file and sends its descriptor. The parent writes through the received
descriptor, and its text follows the child's.

    python examples/shared_offset.py [FILE1 FILE2]
"""

import os
import socket
import sys

from fdpass_c import recv_fd, send_fd

name1, name2 = sys.argv[1:] or ["shared.txt", "own.txt"]
ours, theirs = socket.socketpair()
if os.fork() == 0:
    with open(name1, "wb", buffering=0) as file1:
        file1.write(b"the child began, ")
        send_fd(theirs, file1)
    os._exit(0)
theirs.close()  # Otherwise the parent would not see the end if the child fails.
with ours, open(name2, "wb", buffering=0) as file2:
    _, fds = recv_fd(ours)
    with fds, fds.as_file(0, "wb", buffering=0) as file1:
        file1.write(b"the parent went on\n")
        file2.write(b"the parent's own file\n")
        print(f"descriptor {file1.fileno()} is file1, descriptor {file2.fileno()} is file2")
os.wait()
