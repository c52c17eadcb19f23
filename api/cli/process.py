"""`mpu process DIR`: works a pickup directory off without a service, once, as the original's command line did.

Without --send it says what it would do and touches nothing. Several of these, and services, may work on one directory
at a time: each mail goes once. Exit codes: 0 all was sent, or there was nothing to do; 1 some mail could not be sent
now or for good; 2 usage; 3 the account can't be used; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlmodel import Session

from api.cli import account as options
from api.cli.output import (
    EXIT_ACCOUNT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    cell,
    complain,
    out,
    reply_text,
    say,
    show_json,
    table,
)
from api.cli.settings import Config, DataDir, local_settings
from core.delivery import Delivered
from core.domain.account import Account, Directory, DotStuffing, MessageFormat, SenderRoute, Strategy
from core.domain.circuit import Pause, PausedBy
from core.domain.message import State
from core.domain.outcome import Outcome
from core.errors import DirectoryUnavailable, NotFound, SecretKeyLost
from core.logs import configure_logs
from core.runtime.clock import SystemClock
from core.runtime.directory_rules import own_folder
from core.runtime.instance import DataDirLock
from core.runtime.process import Processed
from core.runtime.quotas import used_by
from core.settings import Settings
from core.spool.directory import DirectorySpool
from core.spool.names import unmatchable
from core.store import accounts as account_rows
from core.store import directories as directory_rows
from core.store import sender_routes, slowdowns
from core.store.slowdowns import Slowed
from core.store.store import Store
from core.store.usage import Used

CLOCK = SystemClock()


@dataclass(slots=True)
class Job:
    """What to do: the directory, its accounts, and the store where history goes; None: without one."""

    directory: Directory
    accounts: Sequence[tuple[Account, Pause | None]]
    store: Store | None
    settings: Settings
    lock: DataDirLock | None = None  # held while the store is open
    routes: tuple[SenderRoute, ...] = ()  # of the service, for all its directories

    def close(self) -> None:
        """Commit what is queued and let go."""
        if self.store is not None:
            self.store.close()
        if self.lock is not None:
            self.lock.close()


def process(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The pickup directory.", file_okay=False)],
    send: Annotated[bool, typer.Option("--send", help="Send. Without it only what would be done is said.")] = False,
    account: Annotated[
        str | None, typer.Option("--account", "-a", help="An account of the service on this machine, by name.")
    ] = None,
    host: options.Host = None,
    port: options.Port = 587,
    security: options.SecurityOption = None,
    username: options.Username = None,
    password_file: options.PasswordFile = None,
    tls_ca_file: options.CaFile = None,
    pattern: Annotated[list[str] | None, typer.Option(help="Names of mails; repeatable. Default: *.eml")] = None,
    maildir: Annotated[bool, typer.Option("--maildir", help="The directory is a Maildir.")] = False,
    dot_stuffing: Annotated[DotStuffing | None, typer.Option(help="Whether writers doubled leading dots.")] = None,
    include_deferred: Annotated[bool, typer.Option("--include-deferred", help="Deferred mail too.")] = False,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Send all mail of a directory once, without a service; without --send say what would be sent.

    The account: --account NAME of this machine's service, or --host with --username and MPU_SMTP_PASSWORD. With
    neither, the accounts that the service's directory of this path has.

    Exit codes: 0 all sent or nothing to do, 1 some not sent, 2 usage, 3 account can't be used, 130 stopped.
    """
    if host and account:
        raise typer.BadParameter("either --account or --host", param_hint="--host")
    path = os.path.realpath(directory)
    if not os.path.isdir(path):
        complain(f"{directory} is no directory")
        raise typer.Exit(EXIT_USAGE)
    for each in pattern or ():
        if why := unmatchable(each):
            raise typer.BadParameter(f"{each!r} {why}", param_hint="--pattern")
    if own := own_folder(path):
        complain(f"{directory} {own}", "mpu retry sends badmail again.")
        raise typer.Exit(EXIT_USAGE)
    configure_logs(log_format="console", log_level="error")
    given = None if host is None else options.account_of(host, port, security, username, password_file, tls_ca_file)
    changes: dict[str, Any] = {"patterns": tuple(pattern) if pattern else None, "dot_stuffing": dot_stuffing}
    changes["format"] = MessageFormat.MAILDIR if maildir else None
    wanted = {name: value for name, value in changes.items() if value is not None}
    try:
        job = _job(path, wanted, account, given, data_dir, config, send=send)
    except (NotFound, SecretKeyLost) as error:
        complain(error.detail, error.remedy or "mpu process DIR --host ... needs no saved account.")
        raise typer.Exit(EXIT_ACCOUNT) from None
    try:
        if send and not job.accounts:
            complain(f"no account is known for {path}", "Name one: --account NAME, or --host and --username.")
            raise typer.Exit(EXIT_ACCOUNT)
        code = _send(job, deferred_too=include_deferred, as_json=as_json) if send else _say(job, as_json=as_json)
    except DirectoryUnavailable as error:
        complain(error.detail, error.remedy)
        code = EXIT_USAGE
    finally:
        job.close()
    raise typer.Exit(code)


def _job(
    path: str,
    wanted: dict[str, Any],
    account: str | None,
    given: Account | None,
    data_dir: Path | None,
    config: Path | None,
    *,
    send: bool,
) -> Job:
    """Raises NotFound, RelayError."""
    settings = local_settings(data_dir, config, become_owner=False)
    if given is not None:
        return Job(replace(_unknown(path), accounts=(given.name,), **wanted), [(given, None)], None, settings)
    if account is None and not settings.database_file.is_file():
        if send:
            raise typer.BadParameter("name the account: --account NAME, or --host and --username", param_hint="--send")
        return Job(replace(_unknown(path), **wanted), (), None, settings)
    lock = DataDirLock(settings.data_dir)
    store = _open_store(settings)
    try:
        known, accounts, routes = _saved(store, path, account)
    except BaseException:
        store.close()
        raise
    return Job(replace(known, **wanted), accounts, store, settings, lock, routes)


def saved_directory(path: str, name: str | None, data_dir: Path | None, config: Path | None) -> Job:
    """The directory of this path or name as the service's database has it, else one with the defaults.

    The job's store is closed. Raises NotFound for a name that isn't there, RelayError.
    """
    settings = local_settings(data_dir, config, become_owner=False)
    if name is None and not os.access(settings.database_file, os.R_OK | os.W_OK):
        return Job(_unknown(path), (), None, settings)
    store = _open_store(settings)
    try:
        if name is not None:
            path = store.read_now(lambda session: directory_rows.get(session, name)).directory.path
        directory, accounts, routes = _saved(store, os.path.realpath(path), None, with_passwords=False)
    finally:
        store.close()
    return Job(directory, accounts, None, settings, routes=routes)


def _open_store(settings: Settings) -> Store:
    secret_key = settings.secret_key.get_secret_value() if settings.secret_key else None
    return Store.open(str(settings.data_dir), clock=CLOCK, create=False, secret_key=secret_key)


def _saved(
    store: Store, path: str, account: str | None, *, with_passwords: bool = True
) -> tuple[Directory, list[tuple[Account, Pause | None]], tuple[SenderRoute, ...]]:
    """What the service's database knows of the path: its accounts or the one named, and the sender routes.

    Sender routes are for the service's directories, and give way to an account that is named. Raises NotFound,
    SecretKeyLost.
    """
    records = store.read_now(directory_rows.load)
    known = next((r.directory for r in records if os.path.realpath(r.directory.path) == path), None)
    routes = store.read_now(sender_routes.load) if known is not None and account is None else ()
    directory = known or _unknown(path)
    if account is not None:
        directory = replace(directory, accounts=(account,), strategy=Strategy.FAILOVER, weights=())
    names = dict.fromkeys([*directory.accounts, *(name for route in routes for name in route.accounts)])

    def read(session: Session) -> list[account_rows.AccountRecord]:
        return [account_rows.get(session, store.secrets, name) for name in names]

    saved = store.read_now(read)
    lost = any(record.password_lost or record.oauth_lost for record in saved)
    if with_passwords and lost and store.secret_error is not None:
        raise store.secret_error
    return directory, [(record.account, _operators(record.pause)) for record in saved], routes


def _operators(pause: Any) -> Pause | None:
    """An operator's pause counts here too; one of the service is worth a try when a person asks for it."""
    if pause is None or pause.by != PausedBy.OPERATOR or not pause.in_force(CLOCK.now()):
        return None
    return Pause(PausedBy.OPERATOR, pause.code, pause.reason, pause.since, pause.until, pause.remedy)


def _unknown(path: str) -> Directory:
    """A directory that no service knows, with a name made of its last part."""
    name = re.sub(r"[^a-z0-9]+", "-", os.path.basename(path).lower()).strip("-")[:63]
    return Directory(name=name or "directory", path=path)


# --- sending ---------------------------------------------------------------------------------------------------------


def _send(job: Job, *, deferred_too: bool, as_json: bool) -> int:
    from api.cli.serve import run_loop

    return run_loop(_send_all(job, deferred_too=deferred_too, as_json=as_json))


async def _send_all(job: Job, *, deferred_too: bool, as_json: bool) -> int:
    from api.cli.serve import stop_signals
    from core.runtime.oauth_secrets import StoredFollowers
    from core.runtime.process import process as one_pass
    from core.runtime.secret_sources import SecretSources
    from core.runtime.tokens import forget, stored_in
    from core.store.ledger import Ledger

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, stop.set)
    rows: list[dict[str, object]] = []

    def tell(delivered: Delivered) -> None:
        if as_json:
            rows.append(row_of(delivered))
        else:
            with contextlib.suppress(OSError):  # no room, no reader: the mail goes on, and the end says so
                _tell(delivered)

    def held_back(session: Session) -> tuple[dict[str, list[Used]], dict[str, Slowed]]:
        accounts = [account for account, _ in job.accounts]
        return used_by(session, accounts, CLOCK.now()), slowdowns.of_accounts(session, [a.name for a in accounts])

    waiting: list[float] = []
    used, slowed = ({}, {}) if job.store is None else job.store.read_now(held_back)
    ledger = job.store.ledger if job.store is not None else Ledger(None, clock=CLOCK)
    try:
        done = await one_pass(
            job.directory,
            job.accounts,
            routes=job.routes,
            clock=CLOCK,
            ledger=ledger,
            remember=forget if job.store is None else stored_in(ledger, job.store.secrets, CLOCK),
            followers=None if job.store is None else StoredFollowers(job.store, CLOCK),
            outside=SecretSources(job.settings, store=job.store),
            used=used,
            slowed=slowed,
            include_deferred=deferred_too,
            settings=job.settings,
            on_delivered=tell,
            stop=stop,
        )
        waiting = await asyncio.to_thread(due_times, job.directory)
    finally:
        if job.store is None:
            await asyncio.to_thread(ledger.close)
    if as_json:
        show_json({"messages": rows, **summary_of(done, waiting)})
    else:
        _sum_up(done, waiting)
    return exit_code(done)


def due_times(directory: Directory) -> list[float]:
    """When the deferred mail that waits in a directory is due, seconds since the epoch. Blocks."""
    spool = DirectorySpool(directory, clock=CLOCK)
    try:
        spool.open()
        now = CLOCK.now()
        found = (entry.sidecar.due_at for entry in spool.entries({State.DEFERRED}) if entry.sidecar is not None)
        return sorted(due for due in found if due is not None and due > now)
    except DirectoryUnavailable:  # just now; what was done is told all the same
        return []
    finally:
        spool.close()


def exit_code(done: Processed) -> int:
    """See the module's text."""
    if done.stopped:
        return EXIT_INTERRUPTED
    if done.left == 0:
        return EXIT_OK
    return EXIT_ACCOUNT if done.pauses else EXIT_FAILED


def row_of(delivered: Delivered) -> dict[str, object]:
    """One message for --json."""
    return {
        "id": delivered.identity.id,
        "outcome": delivered.outcome,
        "due_at": delivered.due_at,
        "recipients": [
            {
                "recipient": r.recipient,
                "outcome": r.outcome,
                "code": r.code,
                "enhanced_code": r.enhanced_code,
                "text": r.text,
            }
            for r in delivered.recipients
        ],
    }


def summary_of(done: Processed, waiting: Sequence[float]) -> dict[str, object]:
    """The counts for --json."""
    return {
        **{outcome.value: done.messages[outcome] for outcome in Outcome},
        "recipients": {outcome.value: done.recipients[outcome] for outcome in Outcome},
        "blocked": [{"reason": r.reason, "account": r.account, "count": n} for r, n in done.blocked.items()],
        "left_alone": [{"file_name": name, "reason": reason} for name, reason in done.left_alone.items()],
        "accounts": [
            {"account": name, "code": pause.code, "reason": pause.reason, "remedy": pause.remedy}
            for name, pause in done.pauses.items()
        ],
        "waiting": {"deferred": len(waiting), "next_due_at": waiting[0] if waiting else None},
        "stopped": done.stopped,
    }


def _tell(delivered: Delivered) -> None:
    name = delivered.identity.name.decode("utf-8", "backslashreplace")
    if delivered.outcome is Outcome.SENT:
        say(f"sent      {name} to {cell([r.recipient for r in delivered.recipients])}")
        return
    word = "badmail" if delivered.outcome is Outcome.FAILED else str(delivered.outcome)
    say(f"{word:<9} {name}")
    for r in delivered.recipients:
        say(f"          {r.recipient}: {r.outcome} {reply_text(r.code, r.enhanced_code, r.text)}")


def _sum_up(done: Processed, waiting: Sequence[float]) -> None:
    counts = ", ".join(f"{done.messages[o]} {o}" for o in Outcome if done.messages[o] or o is Outcome.SENT)
    say(f"{counts}; {done.left} left" if done.left else counts)
    if waiting:
        first, last = map(_clock_time, (waiting[0], waiting[-1]))
        until = f"until {first}" if first == last else f"the first until {first}, the last until {last}"
        say(
            f"{len(waiting)} deferred {'waits' if len(waiting) == 1 else 'wait'}, {until}; --include-deferred sends now"
        )
    for refusal, count in done.blocked.items():
        account = f" ({refusal.account})" if refusal.account else ""
        complain(f"{count} not sent: {refusal.reason.replace('_', ' ')}{account}")
    for name, reason in done.left_alone.items():
        complain(f"{name}: left alone, {reason}")
    for name, pause in done.pauses.items():
        complain(f"account {name}: {pause.code.replace('_', ' ')}: {pause.reason}", pause.remedy)
    if done.cut_off:
        complain(f"{done.cut_off} in flight were cut off", "The next run settles them by their logs.")


def _clock_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


# --- saying ----------------------------------------------------------------------------------------------------------


def _say(job: Job, *, as_json: bool) -> int:
    """What would be done, from a look at each file; nothing is opened for writing, made or locked."""
    from api.cli.explain import explain_files

    found = list(explain_files(job))
    if as_json:
        show_json({"messages": [{"file_name": name, **asdict(explanation)} for name, explanation in found]})
    elif found:
        rows = [
            (
                name,
                {"send": "would be sent", "badmail": "would go to badmail"}.get(e.outcome, "would wait"),
                e.envelope.sender if e.envelope else "",
                [r.recipient for r in e.envelope.recipients] if e.envelope else "",
                e.subject,
                "" if e.outcome == "send" else e.why,
            )
            for name, e in found
        ]
        out().print(table(("file", "what", "from", "to", "subject", "why"), rows))
        say(f"{sum(1 for _, e in found if e.outcome == 'send')} of {len(found)} would be sent; --send sends them")
    else:
        say(f"nothing to do in {job.directory.path}")
    return EXIT_OK
