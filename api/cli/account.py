"""`mpu account ...`, and an account given on the command line instead of by its name.

The latter: options for the server, the password never as one. It comes from MPU_SMTP_PASSWORD, from a file, or is asked
for at a terminal: an option would be seen in the list of processes and in the shell's history.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.client import Client, Json, KeyFile, Url, segment
from api.cli.output import EXIT_FAILED, EXIT_OK, out, say, show_json, table
from core.domain.account import Account, AuthMethod, Security
from core.domain.presets import TLS_PORTS

ACCOUNT_NAME = "command-line"

app = typer.Typer(help="Accounts of the service.", no_args_is_help=True)

Host = Annotated[str | None, typer.Option(envvar="MPU_SMTP_HOST", help="Mail server to send through.")]
Port = Annotated[int, typer.Option(envvar="MPU_SMTP_PORT", min=1, max=65535, help="Its port.")]
SecurityOption = Annotated[
    Security | None,
    typer.Option(
        "--security",
        envvar="MPU_SMTP_SECURITY",
        help=f"Default: tls on port {' and '.join(map(str, TLS_PORTS))}, else starttls.",
    ),
]
Username = Annotated[str | None, typer.Option(envvar="MPU_SMTP_USERNAME", help="Log in with it.")]
PasswordFile = Annotated[
    Path | None,
    typer.Option(help="File with the password; else MPU_SMTP_PASSWORD, else it is asked for.", dir_okay=False),
]
CaFile = Annotated[Path | None, typer.Option("--tls-ca-file", help="PEM file with the server's authority.")]


def account_of(
    host: str,
    port: int,
    security: Security | None,
    username: str | None,
    password_file: Path | None,
    tls_ca_file: Path | None = None,
    *,
    name: str = ACCOUNT_NAME,
) -> Account:
    """The account that the options describe. Ends with a usage error where the password is missing."""
    return Account(
        name=name,
        host=host,
        port=port,
        security=security or (Security.TLS if port in TLS_PORTS else Security.STARTTLS),
        auth=AuthMethod.AUTO if username else AuthMethod.NONE,
        username=username,
        password=password_of(username, password_file) if username else None,
        tls_ca_file=str(tls_ca_file.absolute()) if tls_ca_file else None,
    )


def password_of(username: str, password_file: Path | None) -> str:
    if password_file is not None:
        try:
            return password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is no text"
            raise typer.BadParameter(f"{password_file}: {reason}", param_hint="--password-file") from None
    given = os.environ.get("MPU_SMTP_PASSWORD")
    if given:
        return given
    if not sys.stdin.isatty():
        detail = "there is no password: set MPU_SMTP_PASSWORD or --password-file"
        raise typer.BadParameter(detail, param_hint="--username")
    return str(typer.prompt(f"Password of {username}", hide_input=True, err=True))


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="The account.")],
    url: Url = None,
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Try an account, step by step, without sending: what was found, and where it fails why and what to do.

    Exit codes: 0 every required step was fine, 1 not, or an error, 4 the service does not answer.
    """
    with Client(url, key_file) as client:
        found = client.post(f"/accounts/{segment(name)}/check")
    show_json(found) if as_json else show_check(name, found)
    raise typer.Exit(EXIT_OK if found["ok"] else EXIT_FAILED)


def show_check(name: str, found: dict[str, Any]) -> None:
    """The steps as a table, below it what is the matter."""
    rows = [(s["step"], _verdict(s), _took(s["seconds"]), s["detail"]) for s in found["steps"]]
    out().print(table(("step", "", "time", "what was found"), rows, right=("time",)))
    told = [s for s in found["steps"] if not s["ok"] and (s["required"] or s["cause"])]
    for step in sorted(told, key=lambda s: not s["required"]):
        say(f"\n{step['step']} {_verdict(step)}: {step['cause'] or step['detail']}")
        if step["remedy"]:
            say(f"  What to do: {step['remedy']}")
    say(f"\naccount {name} {'works' if found['ok'] else 'does not work'}")


def _took(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _verdict(step: dict[str, Any]) -> str:
    return "ok" if step["ok"] else "FAILED" if step["required"] else "note"
