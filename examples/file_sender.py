"""A sender listens at a path and passes an open file to whoever connects, once.

The receiver needs no right to open the file: it gets the descriptor. One message, one descriptor,
so that a receiver in C can be the peer; file_receiver.py is one in Python.

    python examples/file_sender.py /tmp/handover secret.txt
"""

import os
import socket
import sys

from fdpass_c import send_fd

path, name = sys.argv[1:3]
with socket.socket(socket.AF_UNIX) as listener, open(name, "rb") as file:
    listener.bind(path)
    listener.listen()
    print("listening", flush=True)
    connection, _ = listener.accept()
    os.unlink(path)
    with connection:
        send_fd(connection, file, b"hello")
