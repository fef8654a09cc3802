"""A receiver, started on its own, connects to a path, takes an open file and reads it.

python examples/file_receiver.py /tmp/handover
"""

import socket
import sys

from fdpass_c import recv_fd

with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    payload, fds = recv_fd(sock)
with fds, fds.as_file() as file:
    print(f"{payload.decode()}: {file.read().decode()}", end="")
