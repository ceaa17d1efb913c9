"""What the program says: text from files reaches the terminal as letters, never as orders to it."""

from __future__ import annotations

import click


def say(text: str, err: bool = False) -> None:
    """Print ``text``; what is neither a letter nor the end of a line comes out as ?, escapes above all."""
    click.echo("".join(letter if letter.isprintable() or letter in "\n\t" else "?" for letter in text), err=err)
