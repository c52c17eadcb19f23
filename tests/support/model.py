"""What a relay should do, in few words: the mails, what became of each, and what may happen next.

The model is told what was done to the relay and what the mail servers saw (`Seen`, one a transaction); from that it
knows where each mail must lie, what is remembered of it and what the history must say. What the servers saw must in
turn have been allowed: due, not paused, through the right account, and nobody asked who had taken the mail before.
Of core/ it uses nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

RETRY_MAX_SECONDS = 3600.0
EXPIRY_MIN_ATTEMPTS = 5
QUOTA_SECONDS = 3600.0


class Fate(StrEnum):
    """What a server does to a recipient, or to a mail for its sake."""

    TAKE = "taken"
    RCPT_LATER = "450 at RCPT"
    RCPT_NEVER = "550 at RCPT"
    CUT = "close at DATA"
    DOT_LATER = "451 at the dot"
    DOT_NEVER = "554 at the dot"
    QUOTA = "550 over quota at the dot"
    LOSE = "close after the dot, not taken"
    TAKE_AND_LOSE = "close after the dot, taken"


LOST = frozenset({Fate.LOSE, Fate.TAKE_AND_LOSE})
TAKEN = frozenset({Fate.TAKE, Fate.TAKE_AND_LOSE})
UNDECIDED = "undecided"
OUTCOMES = {
    Fate.TAKE: "sent",
    Fate.RCPT_LATER: "deferred",
    Fate.RCPT_NEVER: "failed",
    Fate.CUT: "deferred",
    Fate.DOT_LATER: "deferred",
    Fate.DOT_NEVER: "failed",
    Fate.QUOTA: "deferred",
    Fate.LOSE: "unknown",
    Fate.TAKE_AND_LOSE: "unknown",
}


@dataclass
class Seen:
    """One transaction as the server saw it."""

    account: str
    mail: int
    asked: list[str] = field(default_factory=list)
    refused: dict[str, Fate] = field(default_factory=dict)
    end: Fate | None = None  # of those that were not refused; None: there was none, or nobody was left
    at_data: bool = False  # the content was asked for

    @property
    def is_fault(self) -> bool:
        """Whether it was the account's fault."""
        return self.end is Fate.QUOTA

    @property
    def undecided(self) -> list[str]:
        """Whom another account may ask, since only the account was to blame; no attempt is counted."""
        return [r for r in self.asked if r not in self.refused] if self.is_fault else []

    @property
    def outcomes(self) -> dict[str, str]:
        """What it means for each that was asked, as the history tells it."""
        fates = {r: self.refused.get(r, self.end) for r in self.asked}
        return {r: OUTCOMES[fate] for r, fate in fates.items() if fate is not None}

    @property
    def answered(self) -> bool:
        """Whether the relay was told the end of it."""
        return self.end not in LOST if self.end is not None else len(self.refused) == len(self.asked)


class Where(StrEnum):
    """Where a mail's file lies; the first three are states of the queue (deferred is WAITING with a due time)."""

    WAITING = "waiting"
    HELD = "held"
    BADMAIL = "badmail"
    SENT = "sent"
    DELETED = "deleted"
    OVERWRITTEN = "overwritten"  # by the application


AS_IT_IS = {"retry": ("waiting",), "hold": ("held",), "release": ("waiting", "deferred")}  # no change, no conflict
QUEUED = frozenset({Where.WAITING, Where.HELD, Where.BADMAIL})


@dataclass
class Try:
    """An attempt as GET /messages/{id} must tell it."""

    account: str
    outcomes: dict[str, str]
    possible_duplicate: bool


@dataclass
class Mail:
    """One file that an application wrote."""

    number: int
    recipients: tuple[str, ...]
    id: str = ""
    where: Where = Where.WAITING
    attempts: int = 0
    unknown: int = 0
    due: float | None = None
    last: float | None = None
    age: float = 0.0
    accepted: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    duplicate: bool = False
    noticed: bool = False  # the relay can know that it is there
    taken: set[str] = field(default_factory=set)  # a server took it for these, whether the relay knows or not
    history: dict[str, str] = field(default_factory=dict)  # in the present database
    tries: list[Try] = field(default_factory=list)  # likewise
    killed: bool = False  # likewise: the log does not tell all that an attempt was, so `tries` says too much
    acts: list[str] = field(default_factory=list)  # likewise

    @property
    def open(self) -> list[str]:
        """Whom nobody has decided about."""
        return [r for r in self.recipients if r not in self.accepted and r not in self.failed]

    def state(self, now: float) -> str:
        """In the words of the queue."""
        deferred = self.where is Where.WAITING and self.due is not None and self.due > now
        return "deferred" if deferred else self.where.value

    def tell(self, news: dict[str, str]) -> None:
        """To the history: what was sent stays sent."""
        self.history.update({r: word for r, word in news.items() if self.history.get(r) != "sent"})


@dataclass
class Outlet:
    """An account as the model knows it."""

    enabled: bool = True
    paused: bool = False
    resting_until: float | None = None  # paused by the service
    on_trial: bool = False  # resumed: one mail goes first
    recipients_per_message: int = 100

    def usable(self, now: float) -> bool:
        return self.enabled and not self.paused and (self.resting_until is None or self.resting_until <= now)

    def resume(self) -> bool:
        """By an operator or an edit. False: it was not paused."""
        was = self.paused or self.resting_until is not None
        self.on_trial |= was
        self.paused, self.resting_until = False, None
        return was


@dataclass
class Model:
    """The whole."""

    accounts: dict[str, Outlet]
    order: tuple[str, ...]  # of the directory's accounts
    mails: list[Mail] = field(default_factory=list)
    enabled: bool = True
    directory_paused: bool = False
    relay_paused: bool = False
    on_unknown: str = "retry"
    unknown_max: int = 3
    retry_initial_seconds: float = 60.0
    expire_after_seconds: float = 432_000.0
    _faulty: set[str] = field(default_factory=set)  # accounts, since the last step

    # --- what may happen ---

    @property
    def runs(self) -> bool:
        """Whether the directory is worked on."""
        return self.enabled and not self.directory_paused and not self.relay_paused

    def ways(self, now: float, faulty: Collection[str] = ()) -> list[str]:
        """The accounts that a mail may go through now: the first that is usable.

        Behind one on trial, or that proves faulty now, the next too.
        """
        ways = []
        for name in self.order:
            outlet = self.accounts[name]
            if outlet.usable(now):
                ways.append(name)
                if not outlet.on_trial and outlet.resting_until is None and name not in faulty:
                    break
        return ways

    def queued(self) -> list[Mail]:
        return [m for m in self.mails if m.where in QUEUED]

    def could_go(self, now: float) -> list[Mail]:
        """Mails that nothing keeps, and that the relay must have noticed."""
        if not self.runs or not self.ways(now):
            return []
        return [m for m in self.mails if m.state(now) == "waiting" and m.noticed]

    def notice_all(self) -> None:
        """A whole scan."""
        for mail in self.mails:
            mail.noticed = True

    # --- what the servers saw ---

    def saw(self, seens: Sequence[Seen], now: float, *, crash: str | None = None, recovered: float = 0.0) -> None:
        """Follow what the servers saw since the last time: at most one claim of each mail.

        `crash`: the relay was killed in the middle: "at the dot", "before the commit" or "before the disposal"; then
        what was in flight is settled when it is `recovered`.
        """
        claims: dict[int, list[Seen]] = {}
        self._faulty = {seen.account for seen in seens if seen.is_fault}
        ways = self.ways(now, self._faulty)
        for seen in seens:
            claims.setdefault(seen.mail, []).append(seen)
            assert self.runs, f"sent while the directory stands still: {seen}"
            assert seen.account in ways, f"{seen} went through another account than {ways}"
        for number, transactions in claims.items():
            self._claimed(self.mails[number], transactions, now, crash, recovered)
        for name in {seen.account for seen in seens}:
            self.accounts[name].on_trial = False
            self.accounts[name].resting_until = now + QUOTA_SECONDS if name in self._faulty else None

    def _claimed(
        self, mail: Mail, transactions: Sequence[Seen], now: float, crash: str | None, recovered: float
    ) -> None:
        assert mail.state(now) == "waiting", f"sent while {mail.state(now)}: {mail}"
        mail.noticed = True
        outcomes: dict[str, str] = {}
        mail.killed |= crash is not None
        in_flight = crash in ("before the commit", "before the disposal")
        for seen in transactions:
            limit = self.accounts[seen.account].recipients_per_message
            expected = [r for r in mail.open if outcomes.get(r, UNDECIDED) == UNDECIDED][:limit]
            assert seen.asked == expected, f"{seen.asked} were asked instead of {expected}: {mail}"
            if seen.end in TAKEN:
                took = [r for r in seen.asked if r not in seen.refused]
                again = mail.taken.intersection(took)
                assert not again or mail.duplicate, f"{again} got it twice, and nothing says so: {mail}"
                mail.taken.update(took)
            if crash == "at the dot" and not seen.answered:  # all that is known then is the log's `begin`
                outcomes.update({r: word for r, word in seen.outcomes.items() if word == "unknown"})
                in_flight = True
            else:
                outcomes.update({**seen.outcomes, **dict.fromkeys(seen.undecided, UNDECIDED)})
            mail.tries.append(Try(seen.account, seen.outcomes, mail.duplicate))
        missing = [r for r in mail.open if r not in outcomes]
        in_flight |= crash is not None and bool(missing)
        assert not missing or in_flight or self._faulty, f"{missing} were not asked: {mail}"
        if outcomes:
            self._settle(mail, outcomes, recovered if in_flight else now)

    def _settle(self, mail: Mail, outcomes: dict[str, str], now: float) -> None:
        mail.tell({r: "deferred" if word == UNDECIDED else word for r, word in outcomes.items()})
        mail.accepted |= {r for r, word in outcomes.items() if word == "sent"}
        mail.failed |= {r for r, word in outcomes.items() if word == "failed"}
        unknown = "unknown" in outcomes.values()
        if not mail.open and not mail.failed:
            mail.where = Where.SENT
            return
        if mail.open and not unknown and "deferred" not in outcomes.values():
            return  # the account's fault, or killed between two transactions: no attempt is counted
        self._count(mail, now)
        mail.unknown += unknown
        mail.duplicate |= unknown
        if not mail.open:
            mail.where = Where.BADMAIL
        elif unknown and (self.on_unknown == "hold" or mail.unknown > self.unknown_max):
            mail.where = Where.HELD
        elif mail.age > self.expire_after_seconds and mail.attempts >= EXPIRY_MIN_ATTEMPTS:
            mail.tell(dict.fromkeys(mail.open, "failed"))
            mail.failed.update(mail.open)
            mail.where = Where.BADMAIL
        else:
            mail.due = now + min(self.retry_initial_seconds * 2 ** (mail.attempts - 1), RETRY_MAX_SECONDS)

    def _count(self, mail: Mail, now: float) -> None:
        if mail.last is not None:
            planned = max((mail.due or 0.0) - mail.last, self.retry_initial_seconds)
            mail.age += min(now - mail.last, 2 * planned)
        mail.attempts += 1
        mail.last = now
        mail.due = None

    # --- operators ---

    def act(self, mail: Mail, act: str, now: float) -> int:
        """What the call must answer; and what it does."""
        state = mail.state(now)
        if mail.where not in QUEUED:
            return 404
        done = {
            "retry": state in ("deferred", "badmail"),
            "hold": state in ("waiting", "deferred"),
            "release": state == "held",
            "delete": True,
        }[act]
        if not done:
            mail.noticed |= act == "retry" and state == "waiting"  # it is looked at
            return 200 if state in AS_IT_IS[act] else 409
        mail.noticed = True
        mail.acts.append(act)
        if act == "retry" and state == "badmail":
            mail.attempts = mail.unknown = 0
            mail.age, mail.last = 0.0, None
            mail.failed = set()
        if act == "retry":
            mail.where, mail.due = Where.WAITING, None
        elif act == "hold":
            mail.where = Where.HELD
        elif act == "release":
            mail.where = Where.WAITING
        else:
            mail.where = Where.DELETED
            mail.tell({r: "deleted" for r in mail.recipients if r not in mail.accepted})
        return 204 if act == "delete" else 200

    def make_due(self, now: float) -> None:
        """A drain with include_deferred, where it isn't skipped."""
        for mail in self.mails:
            if self.runs and mail.state(now) == "deferred":
                mail.due = None

    def forget(self) -> None:
        """The database was lost: settings stay only in the tests' hands, pauses and history go."""
        self.directory_paused = self.relay_paused = False
        for account in self.accounts.values():
            account.paused = account.on_trial = False
            account.resting_until = None
        for mail in self.mails:
            mail.history, mail.tries, mail.acts, mail.killed = {}, [], [], False
