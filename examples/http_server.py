"""An HTTP server on the pool, with coroutines that keep connections alive.

Try it with curl, and measure it with a load generator.

python examples/http_server.py [ADDRESS...]
curl http://127.0.0.1:8000/
wrk -c 64 -d 5 http://127.0.0.1:8000/
"""

import asyncio
import logging
import os
import socket
import sys

from fdpass_c.pool import Pool, leaving_event

_LONGEST_HEAD = 16384


async def handle(sock: socket.socket, _address: object) -> None:
    """Answers every GET with the worker's pid, until the client closes or asks the server to
    close."""
    reader, writer = await asyncio.open_connection(sock=sock, limit=_LONGEST_HEAD)
    try:
        while head := await _read_head(reader):
            method = head.split(b" ", 1)[0]
            close = b"\r\nconnection: close" in head.lower() or b" HTTP/1.0\r\n" in head
            close = close or leaving_event().is_set()
            status = b"200 OK" if method in (b"GET", b"HEAD") else b"405 Method Not Allowed"
            body = b"hello from worker %d\n" % os.getpid()
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
                b"Connection: %s\r\n\r\n"
                % (status, len(body), b"close" if close else b"keep-alive")
            )
            if method != b"HEAD":
                writer.write(body)
            await writer.drain()
            if close or not status.startswith(b"200"):
                return
    except (ConnectionError, asyncio.LimitOverrunError):
        pass  # The client has gone, or does not send HTTP.
    finally:
        writer.close()


async def _read_head(reader: asyncio.StreamReader) -> bytes:
    """Returns the next request up to its empty line. Returns b"" if the client has closed, or if
    this worker is to end before the next request has come."""
    reading = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    leaving = asyncio.ensure_future(leaving_event().wait())
    try:
        await asyncio.wait([reading, leaving], return_when=asyncio.FIRST_COMPLETED)
        return await reading if reading.done() else b""
    except asyncio.IncompleteReadError:
        return b""
    finally:
        reading.cancel()
        leaving.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
    addresses = sys.argv[1:] or ["127.0.0.1:8000"]
    Pool(handle, workers=os.cpu_count() or 1, capacity=1000).serve(*addresses)
