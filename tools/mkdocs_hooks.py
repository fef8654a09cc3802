"""A hook that mkdocs calls while it builds the documentation: it adds the help of every command."""

import os
from typing import Any

from fdpass_c.__main__ import build_parser, list_commands

_PLACE = "<!-- the help of every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Inserts the output of --help into the page that has the placeholder."""
    return markdown.replace(_PLACE, _render()) if _PLACE in markdown else markdown


def _render() -> str:
    os.environ["COLUMNS"] = "90"  # argparse takes this as the width of the terminal.
    parser = build_parser()
    sections = [("fdpass", parser), *list_commands(parser).items()]
    return "\n".join(f"## {name}\n\n```text\n{each.format_help()}```\n" for name, each in sections)
