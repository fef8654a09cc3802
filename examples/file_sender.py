"""A sender listens at a path and passes an open file to the first process that connects.

The receiver needs no permission to open the file, because it gets the descriptor. The sender sends
one plain message with one descriptor, so the receiver may be a program in C. file_receiver.py is
one in Python.

    python examples/file_sender.py [PATH FILE]
"""

import os
import socket
import sys

from fdpass_c import send_fd

path, name = sys.argv[1:] or ["/tmp/handover", __file__]
with socket.socket(socket.AF_UNIX) as listener, open(name, "rb") as file:
    try:
        listener.bind(path)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    try:
        listener.listen()
        print("listening", flush=True)
        connection, _ = listener.accept()
    finally:
        os.unlink(path)
    with connection:
        send_fd(connection, file, b"hello")
