"""Text of others as it can be shown: in a terminal, a log, a database, a file that people read."""

from __future__ import annotations


def printable(text: str) -> str:
    """U+FFFD in place of control and format characters, lone surrogates and odd spaces; a blank for a tab."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char == "\t" else "\ufffd" for char in text)
