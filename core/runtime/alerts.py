"""What a person should know now, derived from the state of things: an alert goes by itself when its cause does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from core.domain.blame import DAY
from core.domain.circuit import PausedBy
from core.domain.clock import Clock
from core.domain.outcome import Blame
from core.runtime.inlets import Inlet, Inlets
from core.runtime.outlets import Outlets
from core.runtime.queue import Queue, shown
from core.runtime.views import AlertView, Severity
from core.spool.directory import Counts
from core.store.store import Store

_ORDER = {Severity.CRITICAL: 0, Severity.ERROR: 1, Severity.WARNING: 2}
_EXAMPLES = 3  # file names in an alert's detail


@dataclass(slots=True)
class Alerts:
    """See the module's text. `since` of an alert is when it was first derived."""

    inlets: Inlets
    outlets: Outlets
    queue: Queue
    store: Store
    clock: Clock
    _since: dict[tuple[str, str | None, str | None], float] = field(default_factory=dict)

    async def list(self) -> Sequence[AlertView]:
        """Worst first."""
        now = self.clock.now()
        found = [*self._of_store(now)]
        counted = await asyncio.gather(*(self.queue.count(inlet) for inlet in self.inlets))
        counts = {inlet.directory.name: each.counts for inlet, each in zip(self.inlets, counted, strict=True)}
        found += self._of_accounts(counts, now)
        for inlet in self.inlets:
            found += self._of_directory(inlet, counts[inlet.directory.name], now)
        present = {(a.code, a.directory, a.account) for a in found}
        self._since = {key: since for key, since in self._since.items() if key in present}
        return sorted(found, key=lambda alert: (_ORDER[alert.severity], alert.since))

    def _alert(
        self,
        code: str,
        severity: Severity,
        detail: str,
        remedy: str,
        *,
        blame: Blame | None = None,
        directory: str | None = None,
        account: str | None = None,
        since: float | None = None,
        messages: int | None = None,
    ) -> AlertView:
        first = self._since.setdefault((code, directory, account), since or self.clock.now())
        return AlertView(code, severity, blame, directory, account, since or first, messages, detail, remedy)

    def _of_store(self, now: float) -> Iterator[AlertView]:
        problem = self.store.problem
        if problem is not None:
            yield self._alert(
                problem.code,
                Severity.CRITICAL,
                problem.detail,
                problem.remedy,
                since=self.store.ledger.health.since or now,
            )
        for name in self.store.secret_error.accounts if self.store.secret_error is not None else ():
            yield self._alert(
                "password_lost",
                Severity.ERROR,
                f"the password or OAuth secrets of account {name} can't be read with this encryption key",
                f'PATCH /accounts/{name} {{"password": "..."}}, or the secrets within "oauth"; null removes one',
                blame=Blame.ACCOUNT,
                account=name,
            )

    def _of_accounts(self, counts: dict[str, Counts], now: float) -> Iterator[AlertView]:
        for name in self.outlets.names:
            pause = self.outlets.pause_of(name)
            trouble = self.outlets.trouble_of(name) if pause is None else None
            if trouble is not None:
                yield self._alert(
                    trouble.code,
                    Severity.WARNING,
                    f"{trouble.detail}; mail goes through the connections that are open already",
                    trouble.remedy,
                    blame=Blame.ACCOUNT,
                    account=name,
                )
            if pause is None or pause.by is PausedBy.OPERATOR:
                continue
            waiting = sum(
                counts[i.directory.name].waiting + counts[i.directory.name].deferred
                for i in self.inlets
                if self.outlets.serves(name, i.directory)
            )
            lasting = pause.until is None or now - pause.since > DAY  # what passes has passed by then
            severity = Severity.ERROR if lasting else Severity.WARNING
            yield self._alert(
                pause.code,
                severity,
                pause.reason,
                pause.remedy,
                blame=Blame.ACCOUNT,
                account=name,
                since=pause.since,
                messages=waiting,
            )
        for refused in self.outlets.refused_senders.repeated():
            yield self._alert(
                "sender_refused",
                Severity.ERROR,
                refused.detail,
                "let the account send as these at the provider, or name in its `senders` what it may send as: "
                "providers block accounts that go on",
                blame=Blame.SENDER,
                account=refused.account,
                since=refused.since,
                messages=refused.times,
            )

    def _of_directory(self, inlet: Inlet, counts: Counts, now: float) -> Iterator[AlertView]:
        name, cycle = inlet.directory.name, inlet.cycle
        if not inlet.directory.enabled:
            return
        if cycle.unavailable is not None:
            yield self._alert(
                cycle.unavailable.code,
                Severity.ERROR,
                cycle.unavailable.detail,
                cycle.unavailable.remedy or "make the directory accessible again; MPU looks by itself",
                directory=name,
            )
        elif inlet.directory.watch and inlet.unwatched:
            yield self._alert(
                "not_watched",
                Severity.WARNING,
                f"new mail waits for the next run: {inlet.unwatched}",
                "raise the limit that it names, or set the directory's `watch` to false; then restart the service",
                directory=name,
            )
        if cycle.storage is not None:
            yield self._alert(
                cycle.storage.code, Severity.CRITICAL, cycle.storage.detail, cycle.storage.remedy, directory=name
            )
        yield from self._problems(inlet)
        stuck = inlet.spool.pending()
        if stuck:
            stopped = "; until then nothing new is taken from the directory" if inlet.spool.pending_stops else ""
            yield self._alert(
                "not_disposed",
                Severity.ERROR,
                f"{len(stuck)} files are done with but can't be moved or removed{stopped}",
                "give the service's user the right to, or make room; they are never sent again",
                directory=name,
                messages=len(stuck),
            )
        oldest = None if counts.oldest_mtime is None else now - counts.oldest_mtime
        if oldest is not None and oldest > inlet.directory.oldest_alert_seconds:
            yield self._alert(
                "mail_waits",
                Severity.WARNING,
                f"the oldest mail has waited for {int(oldest)} s",
                "GET /queue/reasons says why",
                directory=name,
                since=(counts.oldest_mtime or now) + inlet.directory.oldest_alert_seconds,
                messages=counts.waiting + counts.deferred,
            )
        if counts.held:
            yield self._alert(
                "held",
                Severity.WARNING,
                f"{counts.held} messages are held",
                "look at each, then release or delete it",
                directory=name,
                messages=counts.held,
            )
        if counts.badmail:
            yield self._alert(
                "badmail",
                Severity.WARNING,
                f"{counts.badmail} messages could not be delivered",
                "read the reason, correct it, then retry or delete them",
                directory=name,
                messages=counts.badmail,
            )

    def _problems(self, inlet: Inlet) -> Iterator[AlertView]:
        by_code: dict[str, list[bytes]] = {}
        for problem in inlet.cycle.problems.values():
            by_code.setdefault(problem.error.code, []).append(problem.file_name)
        for code, names in by_code.items():
            first = inlet.cycle.problems[names[0]]
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            examples = ", ".join(shown(file_name) for file_name in names[:_EXAMPLES])
            yield self._alert(
                code,
                Severity.WARNING,
                f"{examples}{more}: {first.error.detail}",
                first.error.remedy or "move the file away, or correct it",
                directory=inlet.directory.name,
                since=first.since,
                messages=len(names),
            )
