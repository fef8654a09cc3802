"""The channels and messages of fdpass_c under an event loop: asyncio, uvloop or trio, whichever is
running.

Names, meanings, errors and limits are those of fdpass_c. A function that waits there is a coroutine
function here.
"""

from fdpass_c.aio.channel import Channel
from fdpass_c.aio.listener import Listener
from fdpass_c.aio.messages import recv_fd, recv_fds, recv_many, send_fd, send_fds, send_many

__all__ = [
    "Channel",
    "Listener",
    "recv_fd",
    "recv_fds",
    "recv_many",
    "send_fd",
    "send_fds",
    "send_many",
]
