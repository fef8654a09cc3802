"""fdpass pool: serves connections with the user's handler."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from fdpass_c.commands.arguments import count, duration
from fdpass_c.commands.errors import complain
from fdpass_c.unix import naming

# Imported only where it is needed, so that the other commands start faster.
if TYPE_CHECKING:
    from fdpass_c.pool import Pool

_DESCRIPTION = """\
Accept connections and pass each to the worker process with the fewest connections. It calls
HANDLER(socket, address) of the Python module MODULE. A coroutine function runs in an event loop.
"""

_EPILOG = """\
ADDRESS is HOST:PORT, [IPV6]:PORT or the path of a Unix socket with a slash in it. A service manager
passes sockets by LISTEN_FDS. Options stand before MODULE:HANDLER or after the last ADDRESS, not
between them. The log goes to standard error.

signals:
  TERM, INT  stop accepting, finish what was accepted, exit with status 0; the second one: at once
  HUP        replace the workers one by one; for new code, start the pool again
  TTIN, TTOU add a worker, remove a worker
  USR1       log the status table

  fdpass pool http_server:handle 127.0.0.1:8000 '[::1]:8000'
  fdpass pool --workers 8 --capacity 100 service:serve ./service.sock
  fdpass pool --asgi application:app 127.0.0.1:8000
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "pool",
        help="serve connections with worker processes",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--workers",
        type=count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="worker processes (default: one per CPU)",
    )
    parser.add_argument(
        "--capacity",
        type=count,
        metavar="N",
        help="connections that a worker has in hand at most (default: 1; with --asgi 1000); "
        "for a coroutine function, as many as one process can serve",
    )
    parser.add_argument(
        "--asgi",
        action="store_true",
        help="MODULE:HANDLER is an ASGI application, for uvicorn (pip install 'fdpass-c[uvicorn]')",
    )
    parser.add_argument(
        "--max-requests", type=count, metavar="N", help="replace a worker after N connections"
    )
    parser.add_argument(
        "--drain",
        type=duration,
        default=30.0,
        metavar="SECONDS",
        help="how long a worker may take to finish before it is killed (default: 30)",
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="SECONDS",
        help="replace a worker that has connections and makes no progress for this long",
    )
    parser.add_argument(
        "--metrics",
        type=_address,
        metavar="ADDRESS",
        help="answer GET /metrics (Prometheus) and GET /status (JSON) there",
    )
    parser.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    parser.add_argument("handler", metavar="MODULE:HANDLER", help="what serves a connection")
    parser.add_argument(
        "addresses",
        nargs="*",
        type=_address,
        metavar="ADDRESS",
        default=[],
        help="where to listen (default: the sockets that a service manager passed)",
    )
    parser.set_defaults(run=run, parser=parser)


def _address(text: str) -> str:
    from fdpass_c.pool.listeners import parse_address

    try:
        parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def run(options: argparse.Namespace) -> int:
    import logging

    from fdpass_c.pool import Pool, inherit_listeners

    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO,
        format="%(asctime)s %(process)d %(levelname)s %(message)s",
    )
    handler = _load(options)
    make_pool = _find_asgi(handler, options) if options.asgi else partial(Pool, handler)
    pool = make_pool(
        workers=options.workers,
        capacity=options.capacity or (1000 if options.asgi else 1),
        max_requests=options.max_requests,
        drain=options.drain,
        timeout=options.timeout,
    )
    with ExitStack() as stack:
        try:
            listeners = options.addresses or [*map(stack.enter_context, inherit_listeners())]
            if not listeners:
                options.parser.error("an ADDRESS is needed: no sockets were passed (LISTEN_FDS)")
            pool.serve(*listeners, metrics=options.metrics)
        except ValueError as error:
            complain("pool", str(error))
            return 1
    return 0


def _find_asgi(app: Any, options: argparse.Namespace) -> "Callable[..., Pool]":
    """Returns the function that makes the pool of an ASGI application."""
    try:
        from fdpass_c.pool.asgi import AsgiServer
    except ModuleNotFoundError as error:
        options.parser.error(f"--asgi needs uvicorn (pip install 'fdpass-c[uvicorn]'): {error}")
    return AsgiServer(app).make_pool


def _load(options: argparse.Namespace) -> Any:
    module_name, _, name = options.handler.partition(":")
    if not all(module_name.split(".")) or not name:
        options.parser.error(f"not MODULE:HANDLER: {options.handler!r}")
    # An installed script has its own directory in sys.path. Only python -m adds the current one.
    if "" not in sys.path:
        with naming("."):
            here = os.getcwd()
        if here not in sys.path:
            sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # If an import inside the module failed, the traceback says where.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        options.parser.error(str(error))
    if not hasattr(module, name):
        options.parser.error(f"module {module_name!r} has no attribute {name!r}")
    handler = getattr(module, name)
    if not callable(handler):
        options.parser.error(f"{options.handler} is not callable")
    return handler
