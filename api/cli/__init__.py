"""The `mpu` command: one place for all its subcommands, and for how their errors are told.

Exit codes, the same for every subcommand: 0 done; 1 something was not done (mail left, an error); 2 the options or
settings are wrong; 3 the account can't be used; 4 the service can't be reached. Tables are for people; `--json` prints
what the service answered. What files and servers say is shown with control characters escaped.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from api.cli.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    complain,
    drop_output,
    open_standard_files,
    output_failed,
)
from core.errors import InvalidSettings, RelayError
from core.settings import SettingsError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry of the `mpu` script; ends the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    open_standard_files()
    try:
        try:
            command_line(arguments)(args=list(arguments), prog_name="mpu")
        finally:
            sys.stdout.flush()
    except SettingsError as error:
        for problem in error.problems:
            complain(problem)
        sys.exit(EXIT_USAGE)
    except RelayError as error:
        complain(error.detail, error.remedy)
        sys.exit(EXIT_USAGE if isinstance(error, InvalidSettings) else EXIT_FAILED)
    except KeyboardInterrupt:
        complain("stopped")
        sys.exit(EXIT_INTERRUPTED)
    except OSError as error:
        if not output_failed():
            raise
        drop_output()
        if error.errno != errno.EPIPE:  # a reader that has enough, as `head`, knows
            complain(f"standard output can't be written: {error.strerror}", "Lead it elsewhere, or make room.")
        sys.exit(EXIT_FAILED)
    sys.exit(0)


def command_line(arguments: Sequence[str] = ()) -> typer.Typer:
    """All subcommands; for `mpu health`, which a supervisor calls all the time, only that one: it loads in a blink."""
    app = typer.Typer(
        name="mpu",
        help="Mail Processing Unit: relays mail from pickup directories through accounts that are allowed to send.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # a traceback with local variables could show a password
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(about)
    if not arguments or arguments[0] != "health":
        _add_all(app)
    from api.cli import health

    app.command("health")(health.health)
    return app


def _add_all(app: typer.Typer) -> None:
    from api.cli import backup, database, explain, keys, login, openapi, process, remote, serve, setup

    app.command("serve")(serve.serve)
    app.command("setup")(setup.setup)
    app.command("process")(process.process)
    app.command("explain")(explain.explain)
    app.command("drain")(remote.drain)
    app.command("queue")(remote.queue)
    app.command("history")(remote.history)
    app.command("retry")(remote.retry)
    app.add_typer(login.app, name="account")  # that of account.py
    app.add_typer(keys.app, name="key")
    app.command("backup")(backup.backup)
    app.command("restore")(backup.restore)
    app.command("migrate")(database.migrate)
    app.command("rotate-secrets")(database.rotate_secrets)
    app.command("secret-key")(database.secret_key)
    app.command("openapi")(openapi.openapi)


def about(version: bool = typer.Option(False, "--version", help="Show the version and end.", is_eager=True)) -> None:
    """Options before the subcommand."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"mpu {installed('mail-processing-unit')}")
        raise typer.Exit
