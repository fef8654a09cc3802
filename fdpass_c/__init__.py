"""Pass open file descriptors between processes over Unix domain sockets.

The functions take sockets, files, ints and any other object with fileno(). Sending does not take
ownership of a descriptor. Received descriptors belong to the caller and are close-on-exec.
"""

import sys

if sys.platform == "win32":
    raise ImportError(
        "fdpass_c passes descriptors over Unix domain sockets with SCM_RIGHTS: "
        "it runs on Linux, macOS and BSD, not on Windows"
    )

# The compiled module needs it. PyInstaller finds only what Python code imports.
import _cffi_backend  # noqa: F401

from fdpass_c.batches import recv_many, send_many
from fdpass_c.channel import Channel
from fdpass_c.descriptors import Descriptors, close_fds
from fdpass_c.errors import (
    MAX_FDS,
    DescriptorTableFullError,
    FdpassError,
    PeerClosedError,
    ProtocolError,
    TruncatedError,
)
from fdpass_c.listener import Listener
from fdpass_c.messages import recv_fd, recv_fds, send_fd, send_fds
from fdpass_c.outcomes import Batch, Progress, TruncatedBatchError
from fdpass_c.peer import Credentials, peer_credentials, peer_pidfd
from fdpass_c.vectors import broadcast, writev

__version__ = "0.1.0"

__all__ = [
    "MAX_FDS",
    "Batch",
    "Channel",
    "Credentials",
    "DescriptorTableFullError",
    "Descriptors",
    "FdpassError",
    "Listener",
    "PeerClosedError",
    "Progress",
    "ProtocolError",
    "TruncatedBatchError",
    "TruncatedError",
    "broadcast",
    "close_fds",
    "peer_credentials",
    "peer_pidfd",
    "recv_fd",
    "recv_fds",
    "recv_many",
    "send_fd",
    "send_fds",
    "send_many",
    "writev",
]
