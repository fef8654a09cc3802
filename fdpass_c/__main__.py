"""The command line: fdpass, also python -m fdpass_c."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from fdpass_c import __version__
from fdpass_c.commands import bench, cat, connect, info, pool, recv, send
from fdpass_c.commands.errors import complain, describe
from fdpass_c.commands.signals import Ended, ending
from fdpass_c.commands.streams import fill_closed
from fdpass_c.errors import FdpassError

_COMMANDS = [cat, send, recv, connect, pool, info]

_EPILOG = """\
exit status:
  0    everything was done
  1    something failed; a line on standard error says what
  2    the command line was wrong
  130  stopped by Ctrl-C
  141  the reader of the output has exited

fdpass COMMAND --help explains each command with examples.
"""


def build_parser(*, with_bench: bool = bench.IS_HERE) -> argparse.ArgumentParser:
    """Returns the parser of the whole command line. with_bench: with the command for the
    benchmarks."""
    parser = argparse.ArgumentParser(
        prog="fdpass",
        description="Pass open file descriptors between processes over Unix domain sockets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in [*_COMMANDS, bench] if with_bench else _COMMANDS:
        module.add_parser(commands)
    return parser


def find_commands(parser: argparse.ArgumentParser) -> "argparse._SubParsersAction[Any]":
    """Returns the object to which build_parser has added the commands."""
    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    return commands


def list_commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Returns the parser of each command, by the command's name."""
    choices = find_commands(parser).choices
    return {f"{parser.prog} {name}": each for name, each in choices.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status. SystemExit(2): the command line is wrong."""
    try:
        with ending():
            return _run(arguments)
    except KeyboardInterrupt:
        return 130
    except Ended as end:
        end.die()
        return 128 + end.signum


def _run(arguments: Sequence[str] | None) -> int:
    command = "help"
    try:
        fill_closed()
        try:
            options = build_parser().parse_args(arguments)
            command = options.command
            status: int = options.run(options)
            _flush()
            return status
        except SystemExit:  # argparse has printed a help, or found an error in the command line.
            _flush()
            raise
    except BrokenPipeError:
        status = 141
    except (OSError, FdpassError) as error:
        complain(command, describe(error))
        status = 1
    try:
        _flush()
    except OSError:
        # When Python exits, it flushes once more. With /dev/null that does not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
