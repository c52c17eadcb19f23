"""`mpu explain FILE`: what would happen to a mail and why. Sends nothing, changes nothing, needs no service.

Settings and accounts are those of the service's database on this machine, where there is one and it can be read: the
directory that the file lies in, or the one named. Without, it is judged by the defaults.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.client import Json
from api.cli.output import EXIT_FAILED, EXIT_OK, EXIT_USAGE, cell, complain, out, show_json, size, table
from api.cli.settings import Config, DataDir
from core.domain.account import Account, Directory, MessageFormat
from core.domain.message import MessageIdentity, State
from core.domain.routing import DISABLED, PAUSED, Refusal, SenderRoutes, Standing, standings
from core.domain.senders import send_as, sender_key
from core.errors import NotFound
from core.runtime.clock import SystemClock
from core.runtime.explain import Explainer
from core.runtime.views import Explanation
from core.spool import names
from core.spool.sidecars import decode

if TYPE_CHECKING:
    from api.cli.process import Job

ANY_ACCOUNT = Account("any-account", "")  # stands for the one that is not known here
MAX_FILES = 100_000  # that a listing shows
MAX_SIDECAR_BYTES = 64 << 20

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def explain(
    file: Annotated[Path, typer.Argument(help="The mail.")],
    directory: Annotated[
        str | None, typer.Option("--directory", "-d", help="As if it lay in this directory of the service.")
    ] = None,
    data_dir: DataDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """What would happen to this file and why: envelope, what is stripped or re-encoded, which account. Sends nothing.

    Exit codes: 0 it would be sent, 1 it would not, 2 usage.
    """
    from api.cli.process import saved_directory

    folder, name = os.path.split(os.path.abspath(file))
    folder = os.path.realpath(folder)  # but not the file itself: a link is not followed
    known = saved_directory(folder, directory, data_dir, config)
    try:
        explanation = _explain(os.path.join(folder, name), known)
    except OSError as error:
        complain(f"{file}: {error.strerror}")
        raise typer.Exit(EXIT_USAGE) from None
    if as_json:
        show_json(dataclasses.asdict(explanation))
    else:
        _show(explanation)
    raise typer.Exit(EXIT_OK if explanation.outcome == "send" else EXIT_FAILED)


def _explain(path: str, known: Job) -> Explanation:
    """Raises OSError."""
    name, status = os.fsencode(os.path.basename(path)), os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return _left(known.directory, status.st_size, "it is a symbolic link; put the mail itself there")
    descriptor = os.open(path, _OPEN)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no file")
        if name[:1] == b"." and not _matches(known.directory)(name):
            why = "it is hidden: a name with a leading dot is one that is still being written"
            return _left(known.directory, status.st_size, why)
        judge = explainer(known)
        return judge.explain(known.directory, descriptor, name=name)
    finally:
        os.close(descriptor)


def _matches(directory: Directory) -> names.Matcher:
    return names.maildir_name if directory.format is MessageFormat.MAILDIR else names.matcher(directory.patterns)


def _left(directory: Directory, octets: int, why: str) -> Explanation:
    return Explanation(
        directory=directory.name,
        outcome="left",
        state=State.WAITING,
        why=why,
        enhanced_code=None,
        envelope=None,
        internet_message_id=None,
        subject=None,
        size_bytes=octets,
        stripped=(),
        added=(),
        re_encoded=(),
        dot_stuffing=None,
        accounts=(),
    )


def explainer(known: Job) -> Explainer:
    """Judges by the accounts that are known; none: by one that may send everything."""
    pauses = {account.name: pause for account, pause in known.accounts}
    by_name = {account.name: account for account, _ in known.accounts} or {ANY_ACCOUNT.name: ANY_ACCOUNT}
    routes = SenderRoutes(known.routes)
    now = SystemClock().now()

    def in_the_way(name: str) -> Refusal | None:
        pause = pauses.get(name)
        if not by_name[name].enabled:
            return Refusal(name, DISABLED)
        return Refusal(name, PAUSED, pause.until) if pause is not None and pause.in_force(now) else None

    def asked(directory: Directory, sender: str) -> tuple[Standing, ...]:
        return standings(
            directory if directory.accounts else dataclasses.replace(directory, accounts=(ANY_ACCOUNT.name,)),
            sender_key(sender),
            routes=routes,
            send_as=lambda name: send_as(by_name[name]) if name in by_name else None,
            in_the_way=in_the_way,
        )

    def account(name: str) -> Account:
        if name not in by_name:
            raise NotFound("account", name)
        return by_name[name]

    return Explainer(asked, account, known.settings.max_header_bytes)


def explain_files(known: Job) -> Iterator[tuple[str, Explanation]]:
    """Every mail that waits in a directory, by name; makes and locks nothing. Raises OSError."""
    directory = known.directory
    maildir = directory.format is MessageFormat.MAILDIR
    folder = os.path.join(directory.path, "new") if maildir else directory.path
    matches = _matches(directory)
    judge = explainer(known)
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = sorted(name for name in map(os.fsencode, os.listdir(folder_fd)) if matches(name))
        for name in found[:MAX_FILES]:
            try:
                descriptor = os.open(name, _OPEN, dir_fd=folder_fd)
            except OSError:
                continue  # gone meanwhile, a link, or not ours to read
            try:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode):
                    identity = MessageIdentity(directory.name, name, status.st_mtime_ns, status.st_size)
                    explanation = judge.explain(directory, descriptor, name=name)
                    yield name.decode("utf-8", "backslashreplace"), _deferred(directory, identity, explanation)
            finally:
                os.close(descriptor)
    finally:
        os.close(folder_fd)


def _deferred(directory: Directory, identity: MessageIdentity, explanation: Explanation) -> Explanation:
    """With its due time, where the message has been tried before."""
    path = os.path.join(os.fsencode(directory.path), names.STATE_DIRECTORY, f"{identity.file_hash}.json".encode())
    try:
        with open(path, "rb") as file:
            _, sidecar = decode(file.read(MAX_SIDECAR_BYTES), file_hash=identity.file_hash, inode=0)
    except (OSError, ValueError):
        return explanation  # never tried
    if sidecar.due_at is None or sidecar.due_at <= SystemClock().now():
        return explanation
    due = datetime.fromtimestamp(sidecar.due_at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    why = f"deferred until {due}: {sidecar.reason}"
    return dataclasses.replace(explanation, outcome="wait", state=State.DEFERRED, why=why)


def _show(e: Explanation) -> None:
    envelope = e.envelope
    headline = {
        "send": "It would be sent",
        "wait": "It would wait",
        "badmail": "It would go to badmail",
        "left": "It would be left alone",
    }[e.outcome]
    rows: list[tuple[str, object]] = [(headline, f"{e.enhanced_code or ''} {e.why}".strip())]
    if envelope is not None:
        source = {
            "x-headers": "X-Sender and X-Receiver",
            "headers": "From, To, Cc and Bcc",
            "resent": "the newest Resent- block",
        }[envelope.source]
        rows += [
            ("envelope from", f"{envelope.sender or '<>'}   (by {source})"),
            *(("envelope to", _recipient(r.recipient, r.notify, r.orcpt)) for r in envelope.recipients),
        ]
        if envelope.ret or envelope.envid:
            rows.append(("delivery status", f"RET={envelope.ret or ''} ENVID={envelope.envid or ''}"))
    rows += [("subject", e.subject), ("Message-ID", e.internet_message_id), ("size", size(e.size_bytes))]
    rows += [("stripped", e.stripped), ("added", e.added), ("re-encoded", e.re_encoded)]
    if e.dot_stuffing is not None:
        dots = e.dot_stuffing
        rows.append(("leading dots", f"{dots.verdict}: {dots.why} (setting: {dots.setting})"))
    rows.append(("rewritten", e.rewritten))
    rows += [(f"account {choice.account}", choice.why) for choice in e.accounts]
    rows += [("note", note) for note in e.notes]
    out().print(table(("", ""), [(name, value) for name, value in rows if cell(value)]))


def _recipient(recipient: str, notify: str | None, orcpt: str | None) -> str:
    extra = " ".join(f"{name}={value}" for name, value in (("NOTIFY", notify), ("ORCPT", orcpt)) if value)
    return f"{recipient}   {extra}".rstrip()
