"""fdpass info: versions, kernel features and limits, for a bug report."""

import argparse
import sys
from typing import Any

from fdpass_c.commands.streams import find_output, write_all


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="show versions, kernel features and limits",
        description="Show versions, kernel features and limits. Put them into a bug report.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    import json

    from fdpass_c import info

    output = find_output()
    found = info.collect()
    text = json.dumps(found, indent=2) if options.json else info.render(found)
    write_all(output, f"{text}\n".encode(sys.getfilesystemencoding(), "backslashreplace"))
    return 0
