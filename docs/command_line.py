"""The page of the command line as the site shows it: below its text, the help of every command, as it is now."""

from typing import Any

import click
from sresnet_cli.__main__ import sresnet

PAGE = "reference/command-line.md"


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """MkDocs calls this for every page."""
    if page.file.src_uri != PAGE:
        return markdown
    top = click.Context(sresnet, info_name="sresnet", terminal_width=80, **sresnet.context_settings)
    commands = [(name, sresnet.get_command(top, name)) for name in sresnet.list_commands(top)]
    texts = [("sresnet", sresnet.get_help(top))]
    for name, command in commands:
        texts.append((f"sresnet {name}", command.get_help(click.Context(command, parent=top, info_name=name))))
    return "\n".join([markdown, *(f"## {name}\n\n```text\n{text}\n```\n" for name, text in texts)])
