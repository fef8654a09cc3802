"""fdpass info: versions, kernel features and limits, for a bug report."""

import argparse
import json
from typing import Any

from fdpass_c import info


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="show versions, kernel features and limits",
        description="Show what a bug report should carry: versions, kernel features, limits.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    found = info.collect()
    print(json.dumps(found, indent=2) if options.json else info.render(found))
    return 0
