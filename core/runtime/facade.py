"""What the HTTP interface asks of the relay. `Relay` (core/runtime/relay.py) satisfies `RelayFacade`.

Every method may raise the errors of core/errors.py that its docstring names, and DatabaseUnavailable. An `Actor` is
passed to each act, for the audit and the message's own list of acts. Cursors are opaque, ASCII, at most 400 characters;
a cursor that can't be read raises InvalidSettings with the pointer "query/cursor".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from core.domain.account import Account, Directory
from core.runtime.views import (
    AccountView,
    Actor,
    AlertView,
    AuditRow,
    BulkAct,
    CheckView,
    DirectoryView,
    DrainRequest,
    DrainView,
    Explanation,
    HealthView,
    HistoryFilter,
    HistoryRow,
    KeyView,
    MessageLife,
    NewKey,
    OperationView,
    Page,
    PauseView,
    QueuedMessage,
    QueueFilter,
    QueueView,
    ReasonRow,
    RuntimeSettingsView,
    SandboxMail,
    SandboxSource,
    Scope,
    Submitted,
    TestMessageView,
    VersionView,
)

T = TypeVar("T", covariant=True)


class RawMessage(Protocol):
    """An open message file. Close it, whatever happens."""

    size: int
    file_name: str

    def chunks(self) -> AsyncIterator[bytes]:
        """The file's octets, untouched, at most 256 KiB each."""
        ...

    async def close(self) -> None: ...


class Queue(Protocol):
    """What waits in the directories. NotFound where the id leads to no file any more, DirectoryUnavailable."""

    async def counts(self) -> QueueView: ...

    async def messages(self, where: QueueFilter, limit: int, cursor: str | None) -> Page[QueuedMessage]:
        """Rows that are there throughout appear exactly once over all pages."""
        ...

    async def get(self, message_id: str) -> QueuedMessage: ...

    async def raw(self, message_id: str) -> RawMessage: ...

    async def retry(self, message_id: str, actor: Actor) -> QueuedMessage:
        """Deferred becomes due, badmail waits again, waiting stays as it is. StateConflict: claimed or held."""
        ...

    async def hold(self, message_id: str, actor: Actor) -> QueuedMessage:
        """Waiting or deferred is set aside; held stays as it is. StateConflict: claimed or badmail."""
        ...

    async def release(self, message_id: str, actor: Actor) -> QueuedMessage:
        """Held waits again; waiting and deferred stay as they are. StateConflict: claimed or badmail."""
        ...

    async def delete(self, message_id: str, actor: Actor) -> None:
        """Remove the file for ever. StateConflict: claimed."""
        ...


class Reasons(Protocol):
    """Why mail waits."""

    async def list(self) -> Sequence[ReasonRow]:
        """Most messages first."""
        ...


class Messages(Protocol):
    """Single mails, from whichever side."""

    async def submit(
        self, directory: str, stream: AsyncIterator[bytes], actor: Actor, idempotency_key: str | None = None
    ) -> Submitted:
        """Write the octets durably and atomically into the directory.

        An Idempotency-Key counts for 24 hours and the actor's key. Raises NotFound (directory), StorageFull,
        DirectoryUnavailable, MessageRejected 5.3.4 over `max_message_bytes` (nothing is left behind), InvalidSettings
        with the pointer "header/Idempotency-Key" where another body or directory came with it, StateConflict where its
        first use runs still, DatabaseUnavailable where the key can't be kept (nothing is written then).
        """
        ...

    async def life(self, message_id: str) -> MessageLife:
        """Queued or gone. NotFound."""
        ...

    async def explain(self, directory: str, data: bytes) -> Explanation:
        """What would happen to these octets in this directory now. NotFound (directory)."""
        ...


class Drains(Protocol):
    """Works off what waits, now. A drain stays known after its end as long as `finished_kept_seconds` says."""

    async def start(self, request: DrainRequest, actor: Actor) -> DrainView:
        """Raises InvalidSettings /directories/N for an unknown name, TooMany, NotRunning."""
        ...

    async def wait(self, drain_id: str, timeout_seconds: float) -> DrainView:
        """Its state when it has ended or the time is up, whichever comes first. The drain goes on in any case."""
        ...

    async def get(self, drain_id: str) -> DrainView: ...

    async def cancel(self, drain_id: str, actor: Actor) -> DrainView:
        """Claims nothing more; what is in flight finishes."""
        ...


class Operations(Protocol):
    """Acts on many messages, in the background; known after the end as long as drains are."""

    async def start(
        self,
        act: BulkAct,
        where: QueueFilter,
        *,
        all_messages: bool,
        dry_run: bool,
        actor: Actor,
    ) -> OperationView:
        """Raises InvalidSettings "/filter" where `where` is empty and `all_messages` False. A dry run only counts."""
        ...

    async def get(self, operation_id: str) -> OperationView: ...


class Alerts(Protocol):
    """What a person should know now."""

    async def list(self) -> Sequence[AlertView]:
        """Worst first."""
        ...


class Pauses(Protocol):
    """Standing still on purpose. All idempotent and durable; only an operator or its `until` lifts an operator's pause.

    The look-ups answer from memory. NotFound where there is no such account or directory.
    """

    def account(self, name: str) -> PauseView | None: ...

    def directory(self, name: str) -> PauseView | None: ...

    def relay(self) -> PauseView | None: ...

    async def pause_account(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView: ...

    async def resume_account(self, name: str, actor: Actor) -> None:
        """One message is tried first."""
        ...

    async def pause_directory(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView: ...

    async def resume_directory(self, name: str, actor: Actor) -> None: ...

    async def pause_relay(self, reason: str, until: float | None, actor: Actor) -> PauseView: ...

    async def resume_relay(self, actor: Actor) -> None: ...


class Checks(Protocol):
    """Tries that answer with what they found instead of raising."""

    async def account(self, account: Account) -> CheckView:
        """Every step up to login and send-as with these settings, saved or not (the password is in the value)."""
        ...

    async def directory(self, directory: Directory) -> CheckView:
        """The tries of spool.md "Permissions" in this directory, saved or not."""
        ...

    async def test_message(self, account: str, to: str, actor: Actor) -> TestMessageView:
        """One small mail through a saved account. NotFound; InvalidSettings /to."""
        ...


@dataclass(frozen=True, slots=True)
class Saved(Generic[T]):
    """What a save left: the view, whether it is new, and what `?check=true` found."""

    view: T
    created: bool = False
    check: CheckView | None = None


class Accounts(Protocol):
    """Accounts as settings (core/runtime/accounts.py).

    `if_match`: versions of which one must be the saved one, "*" for any; None: no matter. Raises PreconditionFailed.

    `password` in a change: absent keeps the saved one, None removes it. So with the secrets of `oauth`, which in a
    change is a merge patch of its own; `keep_oauth` names those that a replacement did not name. A check that fails
    saves nothing and raises CheckFailed.
    """

    async def list(self, limit: int, cursor: str | None) -> Page[AccountView]: ...

    async def get(self, name: str) -> AccountView: ...

    async def value(self, name: str) -> Account:
        """With the password, for delivery and checks."""
        ...

    async def examine(self, account: Account) -> None:
        """Whether these settings may be used at all (port, host, sense). Raises InvalidSettings."""
        ...

    async def create(self, account: Account, actor: Actor, *, check: bool = False) -> Saved[AccountView]: ...

    async def replace(
        self,
        account: Account,
        actor: Actor,
        *,
        keep_password: bool,
        keep_oauth: Collection[str] = (),
        if_match: Sequence[str] | None = None,
        if_absent: bool = False,
        check: bool = False,
    ) -> Saved[AccountView]: ...

    async def change(
        self,
        name: str,
        changes: Mapping[str, Any],
        actor: Actor,
        *,
        if_match: Sequence[str] | None = None,
        check: bool = False,
    ) -> Saved[AccountView]: ...

    async def delete(self, name: str, actor: Actor, *, if_match: Sequence[str] | None = None) -> None: ...


class Directories(Protocol):
    """Directories as settings (core/runtime/directories.py). Every save is checked by `Checks.directory`."""

    async def list(self, limit: int, cursor: str | None) -> Page[DirectoryView]: ...

    async def get(self, name: str) -> DirectoryView: ...

    async def create(self, directory: Directory, actor: Actor) -> Saved[DirectoryView]: ...

    async def replace(
        self, directory: Directory, actor: Actor, *, if_match: Sequence[str] | None = None, if_absent: bool = False
    ) -> Saved[DirectoryView]: ...

    async def change(
        self, name: str, changes: Mapping[str, Any], actor: Actor, *, if_match: Sequence[str] | None = None
    ) -> Saved[DirectoryView]: ...

    async def delete(self, name: str, actor: Actor, *, if_match: Sequence[str] | None = None) -> None: ...


class Keys(Protocol):
    """API keys (core/runtime/keys.py)."""

    async def authenticate(self, presented: str) -> Actor | None:
        """None: unknown or expired."""
        ...

    async def list(self, limit: int, cursor: str | None) -> Page[KeyView]: ...

    async def create(
        self,
        name: str,
        scopes: Sequence[Scope],
        directories: Sequence[str],
        expires_at: float | None,
        actor: Actor,
    ) -> NewKey: ...

    async def delete(self, key_id: int, actor: Actor) -> None:
        """StateConflict: the last admin key."""
        ...


class History(Protocol):
    """What was attempted and what came of it."""

    async def list(self, where: HistoryFilter, limit: int, cursor: str | None) -> Page[HistoryRow]:
        """Newest first."""
        ...


class Audit(Protocol):
    """Every change and act."""

    async def list(self, limit: int, cursor: str | None) -> Page[AuditRow]:
        """Newest first."""
        ...

    async def record(self, actor: Actor, action: str, target: str, changes: dict[str, object] | None = None) -> None:
        """Write down an act. Secrets are masked by the caller."""
        ...


class RuntimeSettings(Protocol):
    """What can be set while the service runs."""

    async def get(self) -> RuntimeSettingsView: ...

    async def update(
        self, changes: dict[str, Any], actor: Actor, *, if_match: Sequence[str] | None = None
    ) -> RuntimeSettingsView:
        """Only names of the first group come here, in the right form. Raises PreconditionFailed, InvalidSettings."""
        ...


class Sandbox(Protocol):
    """What the sandbox account's server received; the newest, in memory, bounded by the settings."""

    def list(self) -> Sequence[SandboxMail]:
        """Newest first."""
        ...

    def get(self, mail_id: int) -> SandboxSource:
        """NotFound."""
        ...


class RelayFacade(Protocol):
    """The relay as the HTTP interface sees it."""

    @property
    def accounts(self) -> Accounts: ...

    @property
    def directories(self) -> Directories: ...

    @property
    def keys(self) -> Keys: ...

    @property
    def audit(self) -> Audit: ...

    @property
    def history(self) -> History: ...

    @property
    def queue(self) -> Queue: ...

    @property
    def reasons(self) -> Reasons: ...

    @property
    def messages(self) -> Messages: ...

    @property
    def drains(self) -> Drains: ...

    @property
    def operations(self) -> Operations: ...

    @property
    def alerts(self) -> Alerts: ...

    @property
    def pauses(self) -> Pauses: ...

    @property
    def checks(self) -> Checks: ...

    @property
    def runtime_settings(self) -> RuntimeSettings: ...

    @property
    def sandbox(self) -> Sandbox | None: ...  # only with --demo

    async def start(self) -> None:
        """Migrated database, recovery, then scheduler and watch. Called by the application's lifespan."""
        ...

    async def stop(self) -> None:
        """Claims stop, what is in flight finishes within `grace_seconds`. Harmless when called twice."""
        ...

    def health(self) -> HealthView:
        """From memory: answers at once."""
        ...

    async def metrics(self) -> bytes:
        """Prometheus text exposition, version 0.0.4."""
        ...

    async def version(self) -> VersionView: ...

    async def apply_account(self, name: str) -> None:
        """An account was saved or deleted: take it over. What is in flight keeps its own settings."""
        ...

    async def apply_directory(self, name: str) -> None:
        """A directory was saved or deleted: watch, schedule and look-ups follow at once."""
        ...
