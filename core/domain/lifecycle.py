"""What becomes of a message once the outcomes of its recipients are known. Decides; delivery.py carries out.

    every recipient sent                          delete
    all decided, at least one refused for good    badmail, with the sidecar, so that a retry asks only those again
    one unknown, on_unknown = hold                hold
    one unknown, more than unknown_max times      hold
    age over expire_after and 5 counted attempts  badmail
    else some recipients still open               put back until due
    only the account was to blame                 put back as it was: no attempt counted, no sidecar

Age towards expiry grows with each counted attempt by the time since the last one, but by no more than twice the delay
that was planned. So neither pauses of the accounts, nor the service standing still, nor a clock that jumps make a mail
old (spool.md, "Age and expiry"). Where mail goes only at scheduled runs, the next of them may be a day off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from core.domain.account import Directory, OnUnknown
from core.domain.backoff import delay_seconds
from core.domain.outcome import Blame, Outcome, RecipientOutcome
from core.domain.sidecar import Sidecar

EXPIRY_MIN_ATTEMPTS = 5
REFUSALS_KEPT = 100  # lines of a dead letter's reason
DAY_SECONDS = 86_400.0


_EXPLAINED = re.compile(
    r"\S+: (?:(\d{3}) )?((?<=\d{3} )\d\.\d{1,3}\.\d{1,3})? ?(.*) \(\w+\)", re.DOTALL
)  # by `explain`


class Disposition(StrEnum):
    """What is done with the file."""

    DELETE = "delete"
    PUT_BACK = "put_back"
    BADMAIL = "badmail"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The decision: what is done, what is remembered (None: nothing new), the message's status and the reason."""

    disposition: Disposition
    status: Outcome
    sidecar: Sidecar | None = None
    reason: str = ""
    expired: tuple[str, ...] = ()  # recipients that are given up now

    @property
    def finished(self) -> bool:
        """Nothing more will happen by itself."""
        return self.disposition is _DELETE or self.disposition is _BADMAIL


_SENT = Outcome.SENT  # with every message (core/domain)
_DELETE, _BADMAIL = Disposition.DELETE, Disposition.BADMAIL
ALL_SENT = Settlement(Disposition.DELETE, Outcome.SENT)
"""What comes of nearly all mail."""


def settle(
    directory: Directory,
    before: Sidecar | None,
    recipients: Sequence[str],
    outcomes: Mapping[str, RecipientOutcome],
    *,
    now: float,
    chance: float,
    account: str | None = None,
) -> Settlement:
    """Decide for a message with these recipients; `outcomes` are those of this claim, by mailbox.

    `chance` (0..1) is the jitter. A recipient without an outcome was not tried.
    """
    if before is None and recipients and all((o := outcomes.get(r)) and o.outcome is _SENT for r in recipients):
        return ALL_SENT
    was = before or Sidecar()
    known = {r: o for r, o in outcomes.items() if r not in was.accepted}
    accepted = was.accepted | {r for r, o in known.items() if o.outcome is Outcome.SENT}
    failed = (was.failed | {r for r, o in known.items() if o.outcome is Outcome.FAILED}) - accepted
    open_recipients = [r for r in recipients if r not in accepted and r not in failed]
    # what it waits for, if it waits; else why it is dead
    worst = _worst(known[r] for r in open_recipients if r in known) or _worst(known.values())
    news = [explain(o) for r, o in known.items() if o.outcome is Outcome.FAILED and r not in was.failed]
    after = replace(
        was,
        accepted=accepted,
        failed=failed,
        refusals=(*was.refusals, *news)[:REFUSALS_KEPT] if news else was.refusals,
        account=account or was.account,
    )
    if worst is not None:
        after = replace(
            after,
            reason=explain(worst),
            text=worst.text,
            blame=worst.blame.value if worst.blame else None,
            code=worst.code,
            enhanced_code=worst.enhanced_code,
        )
    if not open_recipients:
        if not failed:
            return Settlement(Disposition.DELETE, Outcome.SENT)
        if worst is None or worst.outcome is not Outcome.FAILED:
            after = _of_first_refusal(after)
        return Settlement(Disposition.BADMAIL, Outcome.FAILED, _counted(after, directory, now), after.reason)
    unknown = any(o.outcome is Outcome.UNKNOWN for o in known.values())
    counted = unknown or any(o.outcome is Outcome.DEFERRED and o.blame is not Blame.ACCOUNT for o in known.values())
    if not counted:
        changed = accepted != was.accepted or failed != was.failed
        return Settlement(Disposition.PUT_BACK, Outcome.DEFERRED, after if changed else None, after.reason)
    after = _counted(after, directory, now)
    if unknown:
        after = replace(after, unknown=after.unknown + 1, possible_duplicate=True)
        if directory.on_unknown is OnUnknown.HOLD or after.unknown > directory.unknown_max:
            return Settlement(Disposition.HOLD, Outcome.UNKNOWN, replace(after, due_at=None), after.reason)
    if after.age_seconds > directory.expire_after_seconds and after.attempts >= EXPIRY_MIN_ATTEMPTS:
        reason = f"given up after {after.attempts} attempts; the last: {after.reason}"
        dead = replace(after, failed=failed | set(open_recipients), due_at=None, reason=reason)
        return Settlement(Disposition.BADMAIL, Outcome.FAILED, dead, reason, tuple(open_recipients))
    delay = delay_seconds(
        after.attempts,
        initial_seconds=directory.retry_initial_seconds,
        max_seconds=directory.retry_max_seconds,
        chance=chance,
    )
    status = Outcome.UNKNOWN if unknown else Outcome.DEFERRED
    return Settlement(Disposition.PUT_BACK, status, replace(after, due_at=now + delay), after.reason)


def letter(settlement: Settlement) -> str:
    """The text beside a dead letter, for people: every recipient that failed, and how many have it already."""
    sidecar = settlement.sidecar
    if sidecar is None:
        return settlement.reason
    lines = [settlement.reason] if settlement.expired or not sidecar.refusals else []
    lines += sidecar.refusals
    untold = len(sidecar.failed) - len(sidecar.refusals) - len(settlement.expired)
    if untold > 0:
        lines.append(f"and {untold} more")
    if sidecar.accepted:
        lines.append(
            f"Recipients that have it already: {len(sidecar.accepted)}. `mpu retry` does not send to them again."
        )
    return "\n".join(lines)


def restart(before: Sidecar | None) -> Sidecar:
    """What a retry from badmail keeps: the accepted recipients and what was added; attempts and age start again."""
    was = before or Sidecar()
    return Sidecar(
        accepted=was.accepted,
        message_id=was.message_id,
        date=was.date,
        possible_duplicate=was.possible_duplicate,
    )


def explain(outcome: RecipientOutcome) -> str:
    """One line for people: what was answered to whom."""
    said = " ".join(
        part
        for part in (
            str(outcome.code) if outcome.code else "",
            outcome.enhanced_code if outcome.enhanced_code and outcome.enhanced_code not in outcome.text else "",
            outcome.text,
        )
        if part
    )
    return f"{outcome.recipient}: {said or outcome.outcome.value} ({outcome.phase.value})"


def _of_first_refusal(sidecar: Sidecar) -> Sidecar:
    """It is dead for those who refused it in an earlier attempt, whatever was said of the others last."""
    if not sidecar.refusals:
        return sidecar
    line = sidecar.refusals[0]
    match = _EXPLAINED.fullmatch(line)
    code, enhanced_code, text = (match[1], match[2], match[3]) if match else (None, None, line)
    return replace(
        sidecar,
        reason=line,
        text=text,
        blame=Blame.RECIPIENT.value,
        code=int(code) if code else None,
        enhanced_code=enhanced_code,
    )


def _counted(sidecar: Sidecar, directory: Directory, now: float) -> Sidecar:
    age = sidecar.age_seconds
    if sidecar.last_attempt_at is not None:
        planned = max((sidecar.due_at or 0) - sidecar.last_attempt_at, directory.retry_initial_seconds)
        if directory.schedule is not None and not directory.watch:
            planned = max(planned, DAY_SECONDS)
        age += min(max(now - sidecar.last_attempt_at, 0.0), 2 * planned)
    return replace(
        sidecar,
        attempts=sidecar.attempts + 1,
        first_attempt_at=sidecar.first_attempt_at if sidecar.first_attempt_at is not None else now,
        last_attempt_at=now,
        age_seconds=age,
        due_at=None,
    )


_ORDER = {Outcome.FAILED: 3, Outcome.UNKNOWN: 2, Outcome.DEFERRED: 1, Outcome.SENT: 0}


def _worst(outcomes: Iterable[RecipientOutcome]) -> RecipientOutcome | None:
    """The outcome that a person wants to hear of first; None where all were sent."""
    best: RecipientOutcome | None = None
    for outcome in outcomes:
        if outcome.outcome is not Outcome.SENT and (best is None or _ORDER[outcome.outcome] > _ORDER[best.outcome]):
            best = outcome
    return best
