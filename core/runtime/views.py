"""What the relay shows of itself: frozen values, one a noun, in the words of the HTTP interface.

Times are seconds since the epoch, sizes octets, durations seconds; the API turns times into RFC 3339. Nothing here
holds a secret. Settings themselves are core/domain/account.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from core.domain.account import Account, Directory, SenderRoute
from core.domain.message import State
from core.domain.outcome import Blame, Outcome
from core.domain.reply import Phase
from core.store.history import HistoryRow as HistoryRow  # shown as it is stored

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list. `next` is the cursor of the page behind it, None on the last."""

    items: tuple[T, ...]
    next: str | None = None


# --- who asks --------------------------------------------------------------------------------------------------------


class Scope(StrEnum):
    """What a key may do; read < operate < admin, and submit by itself."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"
    SUBMIT = "submit"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: the API key, as the audit and a message's acts name it. `directories` limit the scope submit only."""

    key_id: int  # 0: no key of the HTTP interface, the command line on this machine
    key_name: str
    scopes: frozenset[Scope]
    directories: tuple[str, ...] = ()  # of a key with scope submit alone; empty: all


# --- settings with what is known of them -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PauseView:
    """Why an account, a directory or the relay stands still."""

    by: Literal["operator", "service"]
    code: str  # operator, login_refused, quota, ...
    reason: str
    since: float
    until: float | None  # None: until resumed (or, by the service, until edited)
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class UsageView:
    """What an account sent of late. Messages are transactions that its server took, or may have taken."""

    messages_last_hour: int = 0
    messages_last_day: int = 0
    recipients_last_day: int = 0
    next_at: float | None = None  # when one more may go: a limit is spent, or its pace is slow; None: now, or soon
    rate_per_second: float | None = None  # slowed down to, because its server asked for it


@dataclass(frozen=True, slots=True)
class AccountView:
    """A saved account. Its secrets are always None here."""

    account: Account
    version: str  # its ETag, without quotes
    password_set: bool
    password_changed_at: float | None
    created_at: float
    updated_at: float
    used_by: tuple[str, ...]  # directories, and sender_routes/N
    pause: PauseView | None
    password_lost: bool = False  # the encryption key doesn't open it: it must be entered again
    oauth_set: tuple[str, ...] = ()  # which secrets of `account.oauth` there are
    oauth_lost: bool = False  # as password_lost
    usage: UsageView = UsageView()


@dataclass(frozen=True, slots=True)
class DirectoryView:
    """A saved directory."""

    directory: Directory
    version: str
    created_at: float
    updated_at: float
    pause: PauseView | None


@dataclass(frozen=True, slots=True)
class KeyView:
    """An API key; the key itself is shown once, at its creation."""

    id: int
    name: str
    prefix: str  # the key's first characters, to tell keys apart
    scopes: tuple[Scope, ...]
    directories: tuple[str, ...]
    created_at: float
    expires_at: float | None
    last_used_at: float | None  # coarse: a minute


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made: the only time `secret` is shown."""

    key: KeyView
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One change or act. `changes`: field -> [old, new], secrets masked."""

    id: int
    at: float
    key: str  # name of the API key, or "local"
    action: str  # account.create, directory.pause, queue.retry, ...
    target: str
    changes: dict[str, object]


# --- the queue -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueueTotals:
    """How many messages stand where; the states are disjoint."""

    waiting: int = 0
    claimed: int = 0
    deferred: int = 0
    held: int = 0
    badmail: int = 0
    bytes: int | None = None  # None: not known for all of them
    oldest_seconds: float | None = None  # waiting and deferred; None: there is none
    as_of: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueRow(QueueTotals):
    """One directory's counts, from its last scan (`as_of`) and what happened since."""

    directory: str = ""


@dataclass(frozen=True, slots=True)
class QueueView:
    """A row a directory, and the sums."""

    items: tuple[QueueRow, ...]
    totals: QueueTotals


class WaitingFor(StrEnum):
    """What a message that could go is kept by."""

    ACCOUNT_PAUSED = "account_paused"
    QUOTA = "quota"
    DIRECTORY_PAUSED = "directory_paused"
    BEING_WRITTEN = "being_written"


@dataclass(frozen=True, slots=True)
class QueueFilter:
    """Which messages; None: any. `recipient` is an address or, with a leading @, a domain."""

    state: State | None = None
    directory: str | None = None
    account: str | None = None
    recipient: str | None = None
    code: int | None = None

    @property
    def empty(self) -> bool:
        """Nothing is asked for, so everything matches."""
        return self == QueueFilter()


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """One message that is still a file."""

    id: str
    directory: str
    file_name: str  # as shown: undecodable octets as \\xNN
    state: State
    size_bytes: int
    arrived_at: float  # the file's mtime
    waiting_for: WaitingFor | None = None
    due_at: float | None = None  # deferred: when it is tried again
    attempts: int = 0  # counted ones
    first_attempt_at: float | None = None
    account: str | None = None  # that the reason is about
    code: int | None = None
    enhanced_code: str | None = None
    reason: str = ""
    possible_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class ReasonRow:
    """Why mail waits: one reason, and how many messages it keeps."""

    blame: Blame | None
    account: str | None
    code: int | None
    enhanced_code: str | None
    text: str
    messages: int
    oldest_seconds: float | None
    remedy: str


# --- one message -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RecipientView:
    """One recipient and how it stands. `status` None: not tried yet."""

    recipient: str
    status: Outcome | Literal["deleted"] | None = None
    account: str | None = None
    code: int | None = None
    enhanced_code: str | None = None
    text: str = ""
    at: float | None = None


@dataclass(frozen=True, slots=True)
class AttemptView:
    """What one attempt meant for the recipients it names."""

    number: int
    account: str
    server: str  # host:port
    tls: str | None
    started_at: float
    ended_at: float | None
    phase: Phase
    outcome: Outcome
    code: int | None
    enhanced_code: str | None
    text: str
    recipients: tuple[str, ...]
    possible_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class ActView:
    """What an operator did to the message."""

    at: float
    key: str  # name of the API key, or "local"
    act: str  # retry | hold | release | delete | submit
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MessageLife:
    """The whole life of a mail. `state` is where the file stands, or how it left: sent, failed or deleted."""

    id: str
    directory: str
    file_name: str
    state: State | Literal["sent", "failed", "deleted"]
    internet_message_id: str | None  # the header's Message-ID
    sender: str | None  # None: not read yet; "": the null sender
    subject: str | None
    size_bytes: int
    arrived_at: float | None
    settled_at: float | None  # None: still queued
    due_at: float | None
    waiting_for: WaitingFor | None
    reason: str
    recipients: tuple[RecipientView, ...] = ()
    attempts: tuple[AttemptView, ...] = ()
    acts: tuple[ActView, ...] = ()


@dataclass(frozen=True, slots=True)
class Submitted:
    """A mail handed over by HTTP: it lies in the directory. `replayed`: the same Idempotency-Key came before."""

    id: str
    directory: str
    size_bytes: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class EnvelopeRecipientView:
    """One recipient with its DSN parameters (RFC 3461)."""

    recipient: str
    notify: str | None = None
    orcpt: str | None = None


@dataclass(frozen=True, slots=True)
class EnvelopeView:
    """What SMTP would be told, and which header fields that comes from."""

    sender: str
    recipients: tuple[EnvelopeRecipientView, ...]
    ret: str | None
    envid: str | None
    source: Literal["x-headers", "headers", "resent"]


@dataclass(frozen=True, slots=True)
class DotStuffingView:
    """Whether leading dots count as doubled: the directory's setting, what the file shows, the verdict and why."""

    setting: Literal["auto", "stuffed", "plain"]
    evidence: Literal["none", "plain", "ambiguous"]
    verdict: Literal["stuffed", "plain"]
    why: str


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """One account, in the order in which they are asked, and why it would or wouldn't be taken."""

    account: str
    chosen: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would happen to a mail and why; nothing is sent and nothing kept."""

    directory: str
    outcome: Literal["send", "wait", "badmail", "left"]
    state: State  # that the file would be in next
    why: str
    enhanced_code: str | None  # of a rejection
    envelope: EnvelopeView | None
    internet_message_id: str | None
    subject: str | None
    size_bytes: int
    stripped: tuple[str, ...]  # header fields that leave the mail
    added: tuple[str, ...]  # header fields, whole
    re_encoded: tuple[str, ...]  # what is re-encoded where the server needs it
    dot_stuffing: DotStuffingView | None
    accounts: tuple[AccountChoice, ...]
    notes: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()  # sender and From as the account's from_policy makes them


@dataclass(frozen=True, slots=True)
class HistoryFilter:
    """Which rows of the history; None: any. Times in seconds since the epoch, `since` inclusive, `until` exclusive."""

    status: Outcome | Literal["deleted"] | None = None
    recipient: str | None = None  # or @domain
    sender: str | None = None
    directory: str | None = None
    account: str | None = None
    internet_message_id: str | None = None
    since: float | None = None
    until: float | None = None


# --- drains and bulk operations --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """What to work off now. None: every directory."""

    directories: tuple[str, ...] | None = None
    include_deferred: bool = False
    timeout_seconds: float = 300


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Counts by outcome."""

    sent: int = 0
    deferred: int = 0
    failed: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why messages of a directory couldn't go."""

    reason: str  # account_paused, quota, directory_paused, being_written, unreadable, claimed_elsewhere, ...
    account: str | None
    until: float | None
    count: int


@dataclass(frozen=True, slots=True)
class DrainRow(Outcomes):
    """What a drain did in one directory (messages)."""

    directory: str = ""
    skipped: Literal["paused", "disabled", "unavailable"] | None = None
    remaining: int = 0
    blocked: tuple[Blocked, ...] = ()


@dataclass(frozen=True, slots=True)
class DrainView(Outcomes):
    """A drain as it stands. The counts are messages, `recipients` recipients."""

    id: str = ""
    state: Literal["running", "done", "stopped"] = "running"
    complete: bool = False  # nothing that was due is left
    stopped: bool = False  # by DELETE, or because the service stops
    started_at: float = 0.0
    duration_seconds: float = 0.0
    recipients: Outcomes = field(default_factory=Outcomes)
    directories: tuple[DrainRow, ...] = ()


class BulkAct(StrEnum):
    """What is done to many messages at once."""

    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class OperationView:
    """A bulk act as it stands. `skipped`: their state didn't allow it any more."""

    id: str
    act: BulkAct
    state: Literal["running", "done", "failed", "stopped"]
    dry_run: bool
    filter: QueueFilter
    matched: int
    done: int
    skipped: int
    failed: int
    started_at: float
    finished_at: float | None
    detail: str = ""


# --- checks, alerts, health ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckStepView:
    """One thing that was tried. `required` False: a failure costs speed or comfort, not mail."""

    step: str  # dns, port, banner, tls, ..., login, noop, send_as / list, create, rename, unlink, sync, lease, ...
    ok: bool
    seconds: float
    detail: str = ""
    cause: str = ""  # in plain words
    remedy: str = ""
    required: bool = True
    code: str = ""  # stable


@dataclass(frozen=True, slots=True)
class CheckView:
    """What a check found; `ok` when every required step was."""

    ok: bool
    steps: tuple[CheckStepView, ...]


@dataclass(frozen=True, slots=True)
class TestMessageView:
    """One small mail through an account, and what the server said."""

    __test__ = False  # not a test class, whatever its name looks like to pytest

    ok: bool
    status: Outcome
    account: str
    server: str
    tls: str | None
    phase: Phase
    code: int | None
    enhanced_code: str | None
    text: str
    seconds: float
    internet_message_id: str
    remedy: str = ""
    over_quota_until: float | None = None  # a limit of the account is spent until then, this message counted


class Severity(StrEnum):
    """How bad an alert is."""

    WARNING = "warning"
    ERROR = "error"  # mail waits that somebody has to do something for
    CRITICAL = "critical"  # no mail goes at all


@dataclass(frozen=True, slots=True)
class AlertView:
    """Something that a person should know now. It goes by itself when its cause does."""

    code: str
    severity: Severity
    blame: Blame | None
    directory: str | None
    account: str | None
    since: float
    messages_affected: int | None
    detail: str
    remedy: str


@dataclass(frozen=True, slots=True)
class HealthPart:
    """One thing that must work: database, secret_key, writer, scheduler, or a directory or account (degraded only)."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HealthView:
    """How the relay is.

    unavailable: starting, stopping, or database, key, writer or scheduler fail. degraded: a provider or directory is
    lost, the rest goes on.
    """

    status: Literal["ready", "degraded", "unavailable"]
    parts: tuple[HealthPart, ...] = ()
    reason: str | None = None  # unavailable: a stable word for why; tells no path and no name


@dataclass(frozen=True, slots=True)
class VersionView:
    """What runs here."""

    version: str
    python: str
    platform: str
    database_revision: str | None
    started_at: float


@dataclass(frozen=True, slots=True)
class RuntimeSettingsView:
    """Settings of the service. The first group can be changed while it runs; the rest only at the start."""

    history_days: int
    version: str  # ETag
    read_only: dict[str, object]  # name -> value as it would be written in the TOML file; no secrets
    sender_routes: tuple[SenderRoute, ...] = ()  # for all directories


# --- the sandbox of `mpu serve --demo` -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SandboxMail:
    """A mail that the sandbox's SMTP server received."""

    id: int
    received_at: float
    sender: str
    recipients: tuple[str, ...]
    subject: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SandboxSource:
    """The same with its octets as they came over the wire, dots unstuffed."""

    mail: SandboxMail
    data: bytes = field(repr=False)
