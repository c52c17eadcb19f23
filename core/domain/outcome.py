"""What attempts mean for recipients, and the values that pass between transport, delivery, spool and store."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from core.domain.reply import Phase, Reply


class Outcome(StrEnum):
    """What an attempt means for one recipient."""

    SENT = "sent"  # the server has taken responsibility
    DEFERRED = "deferred"  # not now
    FAILED = "failed"  # never
    UNKNOWN = "unknown"  # the final dot went out, no reply came back


_SENT, _UNKNOWN, _LOCAL = Outcome.SENT, Outcome.UNKNOWN, Phase.LOCAL


class Blame(StrEnum):
    """Whose fault a refusal is (providers.md)."""

    MESSAGE = "message"
    RECIPIENT = "recipient"
    SENDER = "sender"
    ACCOUNT = "account"
    TRANSIENT = "transient"


@dataclass(slots=True)  # one a message (core/domain)
class RecipientOutcome:
    """The outcome for one recipient of one attempt, and what it rests on."""

    recipient: str  # mailbox as in the envelope
    outcome: Outcome
    phase: Phase
    blame: Blame | None = None  # None: sent or unknown
    code: int | None = None
    enhanced_code: str | None = None
    text: str = ""  # the server's words, or ours where phase is local


@dataclass(frozen=True, slots=True)
class AccountFault:
    """Why an account can't be used now. `pause_seconds` None: until an operator resumes or edits it."""

    account: str
    phase: Phase
    code: str  # stable: login_refused, connect_failed, dns_failed, tls_failed, certificate_untrusted, ...
    detail: str
    remedy: str
    pause_seconds: float | None
    passing: bool  # doubles from one fault to the next, to an hour
    reply: Reply | None = None


@dataclass(slots=True, unsafe_hash=True)  # one a message (core/domain)
class Way:
    """Which way an attempt goes, known before its outcome. `started_at`: seconds since the epoch."""

    account: str
    server: str  # host:port
    tls: str | None
    started_at: float


@dataclass(slots=True)  # one a message (core/domain)
class Attempt:
    """One transaction of one message through one account. Times in seconds since the epoch."""

    account: str
    server: str  # host:port
    tls: str | None  # "TLSv1.3 TLS_AES_256_GCM_SHA384", None: plain
    started_at: float
    ended_at: float
    outcomes: tuple[RecipientOutcome, ...]
    fault: AccountFault | None = None  # the account's fault: no attempt is counted for its deferred recipients
    possible_duplicate: bool = False
    unlogged: bool = False  # its outcomes could not be appended to the spool's log

    @property
    def answered(self) -> bool:
        """Whether the server said a word about any recipient; else it was decided here, or the connection was lost."""
        return any(outcome.code is not None and outcome.phase is not _LOCAL for outcome in self.outcomes)

    @property
    def taken(self) -> int:
        """Recipients that the server took, or may have taken."""
        count = 0
        for outcome in self.outcomes:
            if outcome.outcome is _SENT or outcome.outcome is _UNKNOWN:
                count += 1
        return count
