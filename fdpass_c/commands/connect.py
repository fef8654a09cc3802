"""fdpass connect: connect, and pass the connected socket over standard output."""

import argparse
import select
import socket
from typing import Any

from fdpass_c.commands.arguments import duration
from fdpass_c.commands.errors import complain, describe
from fdpass_c.commands.streams import wait_for
from fdpass_c.messages import send_fd
from fdpass_c.peer import check_unix

_DESCRIPTION = """\
Connect to HOST and PORT, pass the connected socket over standard output, and exit. Standard output
must be a Unix socket; one byte and one descriptor are sent. The bytes of the connection do not pass
through this process. ssh expects this of a ProxyCommand with ProxyUseFdpass.
"""

_EPILOG = """\
In ~/.ssh/config:

  Host inner
      ProxyCommand fdpass connect %h %p
      ProxyUseFdpass yes
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "connect",
        help="connect and pass the socket to standard output, for ssh's ProxyUseFdpass",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--timeout", type=duration, metavar="SECONDS", help="how long to wait for the connection"
    )
    parser.add_argument("host", metavar="HOST", help="a name, an IPv4 or an IPv6 address")
    parser.add_argument(
        "port", type=_port, metavar="PORT", help="a number or the name of a service"
    )
    parser.set_defaults(run=run)


def _port(text: str) -> str:
    # getaddrinfo accepts spaces and a sign before a number, and uses its lowest 16 bits, which are
    # another port.
    if text.lstrip().lstrip("+-").isdecimal():
        try:
            fits = int(text) in range(65536)
        except ValueError:  # Two signs, or thousands of digits.
            fits = False
        if not fits:
            raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text}")
    return text


def run(options: argparse.Namespace) -> int:
    try:
        check_unix(1)
    except OSError:
        complain(
            "connect",
            "standard output is not a Unix socket: this command is for ProxyCommand of ssh, "
            "see fdpass connect --help",
        )
        return 1
    try:
        sock = socket.create_connection((options.host, options.port), options.timeout)
    except (OSError, UnicodeError) as error:  # UnicodeError: HOST cannot be a name.
        complain("connect", f"{options.host} port {options.port}: {describe(error)}")
        return 1
    with sock:
        sock.settimeout(None)
        while True:
            try:
                send_fd(1, sock)
                return 0
            except BlockingIOError:
                wait_for(1, select.POLLOUT)
