"""A passed descriptor is the same open file: both processes write on at one shared offset.

The child writes to file1 and sends it; the parent, with file2 open too, writes on through what it
received, behind the child's text, without ever having opened file1.

    python examples/shared_offset.py file1 file2
"""

import os
import socket
import sys

from fdpass_c import recv_fd, send_fd

ours, theirs = socket.socketpair()
if os.fork() == 0:
    with open(sys.argv[1], "wb", buffering=0) as file1:
        file1.write(b"the child began, ")
        send_fd(theirs, file1)
    os._exit(0)
with ours, theirs, open(sys.argv[2], "wb", buffering=0) as file2:
    _, fds = recv_fd(ours)
    with fds, fds.as_file(0, "wb", buffering=0) as file1:
        file1.write(b"the parent went on\n")
        file2.write(b"the parent's own file\n")
        print(f"descriptor {file1.fileno()} is file1, descriptor {file2.fileno()} is file2")
os.wait()
