"""A receiver connects to the path of file_sender.py, gets an open file and reads it.

python examples/file_receiver.py [PATH]
"""

import socket
import sys

from fdpass_c import recv_fd

[path] = sys.argv[1:] or ["/tmp/handover"]
with socket.socket(socket.AF_UNIX) as sock:
    try:
        sock.connect(path)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}. Start file_sender.py first.")
    payload, fds = recv_fd(sock)
with fds, fds.as_file() as file:
    print(f"{payload.decode()}: {file.read().decode()}", end="")
