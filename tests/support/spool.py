"""Pickup directories for tests: real files, small helpers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from core.domain.account import Directory, MessageFormat
from core.domain.outcome import Blame, Outcome, RecipientOutcome
from core.domain.reply import Phase
from core.spool.directory import Claim, DirectorySpool
from core.spool.kernel import Features
from tests.support.clock import ManualClock

MAIL = b"From: a@example.com\r\nTo: b@example.com\r\n\r\nhello\r\n"


def spool_at(
    path: Path,
    *,
    clock: ManualClock | None = None,
    features: Features | None = None,
    name: str = "in",
    **settings: object,
) -> DirectorySpool:
    """An open spool there; the directory is made, a Maildir's three too."""
    path.mkdir(exist_ok=True)
    if settings.get("format") is MessageFormat.MAILDIR:
        for part in ("tmp", "new", "cur"):
            (path / part).mkdir(exist_ok=True)
    directory = Directory(name=name, path=str(path), **settings)  # type: ignore[arg-type] # passed on by name
    spool = DirectorySpool(directory, clock=clock or ManualClock(), features=features)
    spool.open()
    return spool


def write(path: Path, name: str | bytes = "x.eml", data: bytes = MAIL, *, age: float | None = None) -> bytes:
    """A finished mail; `age` seconds old by its mtime. Gives the name as bytes."""
    raw = os.fsencode(name)
    full = os.path.join(os.fsencode(path), raw)
    with open(full, "wb") as file:
        file.write(data)
    if age is not None:
        ns = os.stat(full).st_mtime_ns - int(age * 1e9)
        os.utime(full, ns=(ns, ns))
    return raw


def claim(spool: DirectorySpool, name: bytes = b"x.eml") -> Claim:
    """All steps of one claim."""
    return spool.claim(spool.examine(name, event_seen=True))


def claims_allowed(spool: DirectorySpool) -> bool:
    """Asked anew each time, whatever a type checker remembers."""
    return spool.claims_allowed


def names_in(path: Path) -> set[str]:
    """What `ls` shows, without badmail's reasons."""
    return {n for n in os.listdir(path) if not n.startswith(".") and n != "badmail"}


def sent(*recipients: str) -> list[RecipientOutcome]:
    return [RecipientOutcome(r, Outcome.SENT, Phase.DOT, None, 250, "2.0.0", "ok") for r in recipients]


def deferred(*recipients: str, blame: Blame = Blame.TRANSIENT) -> list[RecipientOutcome]:
    return [RecipientOutcome(r, Outcome.DEFERRED, Phase.DOT, blame, 451, "4.3.0", "later") for r in recipients]


def raises_errno(number: int) -> Callable[..., None]:
    """A system call that fails so."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail
