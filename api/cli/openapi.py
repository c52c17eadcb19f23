"""`mpu openapi`: the OpenAPI document as the application writes it, and whether openapi.yaml is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from api.cli.output import EXIT_FAILED, complain, say

FILE = Path("openapi.yaml")


def openapi(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this file.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Is openapi.yaml what the application says?")] = False,
) -> None:
    """Print the OpenAPI document as YAML; or write it, or compare it with openapi.yaml."""
    from api.openapi import document_text

    text = document_text()
    if check:
        try:
            same = FILE.read_text(encoding="utf-8") == text
        except OSError as error:
            complain(f"{FILE}: {error.strerror}", "Run it where openapi.yaml is.")
            raise typer.Exit(EXIT_FAILED) from None
        if not same:
            complain(f"{FILE} is not what the application says", "make openapi writes it anew.")
            raise typer.Exit(EXIT_FAILED)
        say(f"{FILE} is what the application says")
    elif output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            complain(f"{output} can't be written: {error.strerror}", "Name another file.")
            raise typer.Exit(EXIT_FAILED) from None
        say(f"written to {output}")
    else:
        typer.echo(text, nl=False)
