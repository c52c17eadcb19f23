"""`mpu health`: asks the service whether it is ready. For HEALTHCHECK, monitoring and scripts; needs no key."""

from __future__ import annotations

from typing import Annotated

import httpx
import typer

from api.cli.client import Url, base_url
from api.cli.output import EXIT_FAILED, EXIT_OK, complain, say


def health(
    url: Url = None,
    live: Annotated[bool, typer.Option("--live", help="Only whether the process answers.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.", min=0.1, max=300)] = 5,
) -> None:
    """Is the service ready? Exit code 0: ready (or degraded, which is said), 1: not ready or not there."""
    where = base_url(url)
    path = "/health/live" if live else "/health/ready"
    try:
        # the certificate names the public host, not the loopback address; nothing secret is sent
        answer = httpx.get(where + path, timeout=timeout, verify=bool(url), trust_env=False)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        complain(f"{where} does not answer: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    say(_word(answer))
    raise typer.Exit(EXIT_OK if answer.is_success else EXIT_FAILED)


def _word(answer: httpx.Response) -> str:
    """ready, degraded, unavailable, live; whatever else was answered, cut."""
    try:
        return str(answer.json()["status"])
    except (ValueError, KeyError, TypeError):
        return answer.text.strip()[:200]
