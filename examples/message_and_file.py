"""One message carries two strings and an open file from parent to child.

The child does not open the file itself. It writes the strings through the received descriptor, and
then reads the whole file.

    python examples/message_and_file.py [FILE]
"""

import os
import socket
import sys

from fdpass_c import recv_fd, send_fds, writev

[path] = sys.argv[1:] or ["message.txt"]
ours, theirs = socket.socketpair()
with open(path, "w+b", buffering=0) as file:
    file.write(b"the parent was here\n")
    if os.fork() == 0:
        # The inherited descriptor is closed, so that the child has only the received one.
        file.close()
        ours.close()  # Otherwise the child would not see the end if the parent fails.
        data, fds = recv_fd(theirs)
        with fds, fds.as_file(0, "r+b", buffering=0) as received:
            first, second = data.split(b"\0")
            writev(received, [first, b" ", second, b"\n"])
            received.seek(0)
            print(received.read().decode(), end="", flush=True)
        os._exit(0)
    send_fds(ours, [b"hello", b"\0", b"child"], [file])
_, status = os.wait()
ours.close()
theirs.close()
sys.exit(os.waitstatus_to_exitcode(status))
