"""A relay whose settings are real (store, accounts, directories, keys, audit, history), and whose mail is made up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.domain.account import Account, Directory, SenderRoute
from core.domain.message import State
from core.domain.outcome import Blame, Outcome
from core.domain.reply import Phase
from core.errors import FieldError, InvalidSettings, MessageRejected, NotFound, RelayError, StateConflict
from core.runtime.accounts import Accounts
from core.runtime.audit import Audit
from core.runtime.directories import Directories
from core.runtime.history import History
from core.runtime.keys import Keys
from core.runtime.quotas import Quotas
from core.runtime.secret_sources import SecretSources
from core.runtime.views import (
    Actor,
    ActView,
    AlertView,
    AttemptView,
    Blocked,
    BulkAct,
    CheckStepView,
    CheckView,
    DrainRequest,
    DrainRow,
    DrainView,
    Explanation,
    HealthView,
    MessageLife,
    OperationView,
    Outcomes,
    Page,
    PauseView,
    QueuedMessage,
    QueueFilter,
    QueueRow,
    QueueTotals,
    QueueView,
    ReasonRow,
    RecipientView,
    RuntimeSettingsView,
    SandboxMail,
    SandboxSource,
    Severity,
    Submitted,
    TestMessageView,
    VersionView,
)
from core.settings import Settings
from core.store.store import Store
from tests.support.database import START, MovableClock

MESSAGE_ID = "pickup.YS5lbWw.0123abcd"
CLAIMED_ID = "pickup.Yi5lbWw.0123abcd"
QUEUED = QueuedMessage(MESSAGE_ID, "pickup", "a.eml", State.DEFERRED, 1000, START, due_at=START + 60, attempts=1)


class FakePauses:
    def __init__(self) -> None:
        self.held: dict[str, PauseView] = {}

    def account(self, name: str) -> PauseView | None:
        return self.held.get(f"account {name}")

    def directory(self, name: str) -> PauseView | None:
        return self.held.get(f"directory {name}")

    def relay(self) -> PauseView | None:
        return self.held.get("relay")

    def _pause(self, what: str, reason: str, until: float | None) -> PauseView:
        self.held[what] = PauseView("operator", "operator", reason, START, until)
        return self.held[what]

    async def pause_account(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView:
        return self._pause(f"account {name}", reason, until)

    async def resume_account(self, name: str, actor: Actor) -> None:
        self.held.pop(f"account {name}", None)

    async def pause_directory(self, name: str, reason: str, until: float | None, actor: Actor) -> PauseView:
        return self._pause(f"directory {name}", reason, until)

    async def resume_directory(self, name: str, actor: Actor) -> None:
        self.held.pop(f"directory {name}", None)

    async def pause_relay(self, reason: str, until: float | None, actor: Actor) -> PauseView:
        return self._pause("relay", reason, until)

    async def resume_relay(self, actor: Actor) -> None:
        self.held.pop("relay", None)


class FakeChecks:
    """Every check finds `steps`; what was checked is remembered."""

    def __init__(self) -> None:
        self.steps: tuple[CheckStepView, ...] = (CheckStepView("connect", ok=True, seconds=0.01),)
        self.accounts: list[Account] = []
        self.directories: list[Directory] = []

    def _view(self) -> CheckView:
        return CheckView(all(step.ok or not step.required for step in self.steps), self.steps)

    async def account(self, account: Account) -> CheckView:
        self.accounts.append(account)
        return self._view()

    async def directory(self, directory: Directory) -> CheckView:
        self.directories.append(directory)
        return self._view()

    async def test_message(self, account: str, to: str, actor: Actor) -> TestMessageView:
        return TestMessageView(
            ok=True,
            status=Outcome.SENT,
            account=account,
            server="smtp.example.org:587",
            tls="TLSv1.3",
            phase=Phase.DOT,
            code=250,
            enhanced_code="2.0.0",
            text="ok",
            seconds=0.1,
            internet_message_id="<1@mpu>",
        )


class FakeRaw:
    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self.file_name = 'a"\r\n\udcff.eml'
        self.closed = False
        self._data = data

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._data

    async def close(self) -> None:
        self.closed = True


class FakeQueue:
    def __init__(self) -> None:
        self.raws: list[FakeRaw] = []
        self.asked: list[tuple[QueueFilter, int, str | None]] = []
        self.deleted: list[str] = []

    async def counts(self) -> QueueView:
        row = QueueRow(2, 1, 0, 0, 0, None, 3.25, START, "pickup")
        return QueueView((row,), QueueTotals(2, 1, 0, 0, 0, None, 3.25, START))

    async def messages(self, where: QueueFilter, limit: int, cursor: str | None) -> Page[QueuedMessage]:
        self.asked.append((where, limit, cursor))
        return Page((QUEUED,), "more" if cursor is None else None)

    async def get(self, message_id: str) -> QueuedMessage:
        if message_id not in (MESSAGE_ID, CLAIMED_ID):
            raise NotFound("message", message_id)
        return replace(QUEUED, id=message_id)

    async def raw(self, message_id: str) -> FakeRaw:
        await self.get(message_id)
        self.raws.append(FakeRaw(b"From: a@example.org\r\n\r\nhi\r\n"))
        return self.raws[-1]

    async def _act(self, message_id: str) -> QueuedMessage:
        if message_id == CLAIMED_ID:
            raise StateConflict("it is being sent now", state="claimed", remedy="wait for the outcome")
        return await self.get(message_id)

    async def retry(self, message_id: str, actor: Actor) -> QueuedMessage:
        return replace(await self._act(message_id), state=State.WAITING, due_at=None)

    async def hold(self, message_id: str, actor: Actor) -> QueuedMessage:
        return replace(await self._act(message_id), state=State.HELD)

    async def release(self, message_id: str, actor: Actor) -> QueuedMessage:
        return replace(await self._act(message_id), state=State.WAITING)

    async def delete(self, message_id: str, actor: Actor) -> None:
        await self._act(message_id)
        self.deleted.append(message_id)


class FakeReasons:
    async def list(self) -> Sequence[ReasonRow]:
        return [ReasonRow(Blame.ACCOUNT, "office", 535, "5.7.8", "no", 7, 60.0, "give the right password")]


class FakeMessages:
    def __init__(self) -> None:
        self.submitted: list[tuple[str, bytes, str | None]] = []
        self.error: RelayError | None = None
        self.max_message_bytes = 1 << 20

    async def submit(
        self, directory: str, stream: AsyncIterator[bytes], actor: Actor, idempotency_key: str | None = None
    ) -> Submitted:
        if self.error is not None:
            raise self.error
        data = b""
        async for chunk in stream:
            data += chunk
            if len(data) > self.max_message_bytes:
                raise MessageRejected("5.3.4", "larger than the directory takes")
        self.submitted.append((directory, data, idempotency_key))
        return Submitted(MESSAGE_ID, directory, len(data))

    async def life(self, message_id: str) -> MessageLife:
        if message_id != MESSAGE_ID:
            raise NotFound("message", message_id)
        attempt = AttemptView(
            1,
            "office",
            "h:587",
            None,
            START,
            START + 1,
            Phase.RCPT,
            Outcome.DEFERRED,
            450,
            "4.2.0",
            "later",
            ("b@x.y",),
        )
        return MessageLife(
            id=message_id,
            directory="pickup",
            file_name="a.eml",
            state=State.DEFERRED,
            internet_message_id="<a@b>",
            sender="",
            subject="=?",
            size_bytes=1000,
            arrived_at=START,
            settled_at=None,
            due_at=START + 60,
            waiting_for=None,
            reason="450 later",
            recipients=(RecipientView("b@x.y", Outcome.DEFERRED, "office", 450, "4.2.0", "later", START),),
            attempts=(attempt,),
            acts=(ActView(START, "first key", "retry"),),
        )

    async def explain(self, directory: str, data: bytes) -> Explanation:
        return Explanation(
            directory=directory,
            outcome="send",
            state=State.CLAIMED,
            why="it is due",
            enhanced_code=None,
            envelope=None,
            internet_message_id=None,
            subject=None,
            size_bytes=len(data),
            stripped=("Bcc",),
            added=(),
            re_encoded=(),
            dot_stuffing=None,
            accounts=(),
        )


class FakeDrains:
    def __init__(self) -> None:
        self.requests: list[DrainRequest] = []
        self.slow = self.instant = False
        self.waited: list[float] = []

    def _view(self, state: Any = "running") -> DrainView:
        row = DrainRow(1, 0, 0, 0, "pickup", None, 1, (Blocked("account_paused", "office", None, 1),))
        return DrainView(
            sent=1,
            id="d1",
            state=state,
            complete=state == "done",
            started_at=START,
            duration_seconds=0.12345,
            recipients=Outcomes(sent=2),
            directories=(row,),
        )

    async def start(self, request: DrainRequest, actor: Actor) -> DrainView:
        if request.directories is not None and "none" in request.directories:
            position = request.directories.index("none")
            raise InvalidSettings([FieldError(f"/directories/{position}", "unknown_directory", "unknown")])
        self.requests.append(request)
        return self._view("done" if self.instant else "running")

    async def wait(self, drain_id: str, timeout_seconds: float) -> DrainView:
        self.waited.append(timeout_seconds)
        return self._view("running" if self.slow else "done")

    async def get(self, drain_id: str) -> DrainView:
        if drain_id != "d1":
            raise NotFound("drain", drain_id)
        return self._view("done")

    async def cancel(self, drain_id: str, actor: Actor) -> DrainView:
        return replace(await self.get(drain_id), state="stopped", stopped=True)


class FakeOperations:
    def __init__(self) -> None:
        self.started: list[tuple[BulkAct, QueueFilter, bool, bool]] = []

    async def start(
        self, act: BulkAct, where: QueueFilter, *, all_messages: bool, dry_run: bool, actor: Actor
    ) -> OperationView:
        if where.empty and not all_messages:
            raise InvalidSettings([FieldError("/filter", "empty", "name a filter")])
        self.started.append((act, where, all_messages, dry_run))
        return OperationView("o1", act, "running", dry_run, where, 3, 0, 0, 0, START, None)

    async def get(self, operation_id: str) -> OperationView:
        if operation_id != "o1":
            raise NotFound("operation", operation_id)
        return OperationView("o1", BulkAct.RETRY, "done", False, QueueFilter(), 3, 2, 1, 0, START, START + 1)


class FakeAlerts:
    async def list(self) -> Sequence[AlertView]:
        return [AlertView("login_refused", Severity.ERROR, Blame.ACCOUNT, None, "office", START, 7, "535", "edit")]


class FakeRuntimeSettings:
    def __init__(self) -> None:
        self.days = 90
        self.routes: tuple[SenderRoute, ...] = ()

    async def get(self) -> RuntimeSettingsView:
        return RuntimeSettingsView(self.days, str(self.days), {"port": 8025}, self.routes)

    async def update(
        self, changes: dict[str, Any], actor: Actor, *, if_match: Sequence[str] | None = None
    ) -> RuntimeSettingsView:
        if "history_days" in changes:
            self.days = changes["history_days"] or 90
        if "sender_routes" in changes:
            rows = changes["sender_routes"] or []
            self.routes = tuple(SenderRoute(tuple(row["senders"]), tuple(row["accounts"])) for row in rows)
        return await self.get()


@dataclass
class FakeSandbox:
    kept: list[SandboxSource] = field(default_factory=list)

    def list(self) -> Sequence[SandboxMail]:
        return [source.mail for source in reversed(self.kept)]

    def get(self, mail_id: int) -> SandboxSource:
        for source in self.kept:
            if source.mail.id == mail_id:
                return source
        raise NotFound("sandbox mail", str(mail_id))


class FakeRelay:
    """Satisfies core.runtime.facade.RelayFacade."""

    def __init__(self, store: Store, settings: Settings, clock: MovableClock) -> None:
        self.store = store
        self.settings = settings
        self.clock = clock
        self.pauses = FakePauses()
        self.checks = FakeChecks()
        self.applied: list[str] = []
        self.audit = Audit(store, clock=clock)
        self.keys = Keys(store, self.audit, clock=clock)
        self.history = History(store)
        common: dict[str, Any] = {
            "clock": clock,
            "settings": settings,
            "pauses": self.pauses,
            "checks": self.checks,
        }
        self.accounts = Accounts(
            store,
            self.audit,
            apply=self.apply_account,
            quotas=Quotas(clock=clock, on_open=lambda _name: None),
            outside=SecretSources(settings, store=store),
            **common,
        )
        self.directories = Directories(store, self.audit, apply=self.apply_directory, **common)
        self.queue = FakeQueue()
        self.reasons = FakeReasons()
        self.messages = FakeMessages()
        self.drains = FakeDrains()
        self.operations = FakeOperations()
        self.alerts = FakeAlerts()
        self.runtime_settings = FakeRuntimeSettings()
        self.sandbox: FakeSandbox | None = None
        self.status: Any = "ready"

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def health(self) -> HealthView:
        return HealthView(self.status)

    async def metrics(self) -> bytes:
        return b'mpu_account_paused{account="office"} 0.0\n'

    async def version(self) -> VersionView:
        return VersionView("1.2.3", "3.11", "Linux", "0001", START)

    async def apply_account(self, name: str) -> None:
        self.applied.append(f"account {name}")

    async def apply_directory(self, name: str) -> None:
        self.applied.append(f"directory {name}")
