"""An ASGI application for the pools that tests run."""

import os
from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the worker's pid; /wait begins an answer and waits for the request's end."""
    if scope["type"] == "lifespan":
        await _live(scope, receive, send)
    elif scope["type"] == "websocket":
        await _echo(receive, send)
    else:
        body = f"{os.getpid()} {scope['state']['started']} {scope['scheme']}".encode()
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body + b" ", "more_body": True})
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.body", "body": b"done"})


def _note(text: str) -> None:
    if path := os.environ.get("ASGI_NOTES"):
        with open(path, "a") as file:
            file.write(f"{text}\n")


async def _live(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    if os.environ.get("ASGI_FAILS"):
        await send({"type": "lifespan.startup.failed", "message": "no start today"})
        return
    _note("startup")
    scope["state"]["started"] = "started"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    _note("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def _echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
