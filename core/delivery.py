"""One message, start to end: the only file that sequences effects.

    open file -> envelope -> route -> a connection's turn -> claim -> attempt(s) -> decision -> ledger (commit, dispose)

A message is claimed only when a connection is ready for it. An outcome is in the spool's log the moment it is known and
in the database before the file is touched. What goes wrong with one message stays with it: every path below ends with
the file released, put back, held, in badmail or deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import structlog

from core.domain.account import Account, Directory
from core.domain.clock import Clock, utc_text
from core.domain.envelope import Recipient, rewrite_sender
from core.domain.lifecycle import ALL_SENT, Disposition, Settlement, letter, settle
from core.domain.message import MessageIdentity
from core.domain.outcome import AccountFault, Attempt, Blame, Outcome, RecipientOutcome, Way
from core.domain.reply import Phase
from core.domain.routing import (
    DISABLED,
    PAUSED,
    QUOTA,
    SENDER_NOT_ALLOWED,
    TRIED,
    UNKNOWN,
    WAITS,
    Refusal,
    Route,
    no_account_for,
)
from core.domain.sidecar import Sidecar
from core.errors import (
    DirectoryUnavailable,
    MessageChanged,
    MessageRejected,
    RelayError,
    SenderNotAllowed,
    StorageBroken,
    StorageFull,
)
from core.spool.body import Prepared, Read, judge, read_message
from core.spool.directory import (
    Claim,
    Delete,
    DirectorySpool,
    Disposal,
    Disposed,
    Hold,
    Opened,
    PutBack,
    Recovered,
    ToBadmail,
    Verdict,
)
from core.store.entry import Entry, Status
from core.transport.base import AccountUnavailable, Transport
from core.transport.smtp import OutgoingMail

log = structlog.get_logger()

# with every message (core/domain)
_SENT, _MESSAGE, _DELETE, _PUT_BACK, _HOLD = (
    Outcome.SENT,
    Blame.MESSAGE,
    Disposition.DELETE,
    Disposition.PUT_BACK,
    Disposition.HOLD,
)
_STATUS = {outcome: Status(outcome.value) for outcome in Outcome}
_LAST_SECOND = 253_402_300_799  # of the year 9999: file systems know later ones
READ_INLINE_BYTES = 1 << 16  # larger files are read in a thread
KEPT_BYTES = 1 << 20  # a file up to this size stays in memory from the first look to the sending
KEPT_BYTES_ALL = 64 << 20  # so much of those read in a thread at once; the rest is read twice
LARGE_AT_ONCE = 2  # in threads: read, of each directory; and looked through, where more only keep the loop from it


class Quota(Protocol):
    """What holds an account back: its limits, or its server."""

    def reserve(self, recipients: int) -> Any:
        """Room for a message with so many recipients, or fewer: `recipients` of what is given."""
        ...

    async def turn(self, room: Any) -> bool:
        """Wait in line. False: the service stops, nothing more is sent."""
        ...

    def settle(self, room: Any, recipients: int) -> None:
        """So many of them were sent to, or may have been."""
        ...


class Passage(Protocol):
    """One message's way through an account, with the settings it set out with."""

    @property
    def account(self) -> Account: ...

    @property
    def transport(self) -> Transport: ...

    @property
    def quota(self) -> Quota | None:
        """None: nothing holds the account back."""
        ...


class Outlets(Protocol):
    """The accounts as delivery sees them: which may be used now, and what became of using one."""

    @property
    def limited(self) -> bool:
        """Whether limits hold any account back."""
        ...

    def limits(self, directory: Directory) -> bool:
        """Whether they hold back one that the directory's mail may go through."""
        ...

    def route(
        self, directory: Directory, tried: frozenset[str], sender: str | None = None, last: str | None = None
    ) -> Route:
        """Which account a message of this envelope sender goes through now; None: whether any message could go.

        `last`: the account that an earlier transaction of the message went through.
        """
        ...

    def begin(self, name: str, directory: Directory) -> Passage:
        """A message of the directory sets out; it is the one on trial, where the account's circuit is half open."""
        ...

    async def waited(self, directory: Directory, route: Route) -> bool:
        """Wait, in order, for the room that one of its accounts has in a moment. False: none has, or not soon."""
        ...

    def stands(self, passage: Any) -> bool:
        """Whether it may still go: nothing has come in its account's way since."""
        ...

    def settled(self, passage: Any, recipients: int) -> None:
        """So many were sent to, or may have been; asked for where limits hold an account back."""
        ...

    def count(self, attempt: Attempt) -> None:
        """An attempt of an earlier life."""
        ...

    def worked(self, passage: Any) -> None:
        """The account's server took or refused a message for its own sake."""
        ...

    def failed(self, passage: Any, fault: AccountFault) -> None:
        """It is the account's fault."""
        ...

    def sender_refused(self, passage: Any, sender: str, said: str) -> None:
        """The account's server refuses mail of this envelope sender."""
        ...

    def ended(self, passage: Any) -> None:
        """The message that set out is done with the account, whatever came of it."""
        ...


class Ledger(Protocol):
    """Where outcomes are committed and, after that, files disposed of (core/store/ledger.py)."""

    @property
    def healthy(self) -> bool:
        """False: outcomes can't be committed now, so nothing new is claimed."""
        ...

    def settle(self, entry: Entry) -> Awaitable[object]: ...


@dataclass(slots=True)  # one a message (core/domain)
class Delivered:
    """What came of one message. `outcome` None: it wasn't claimed, for `blocked`'s reason, or put back uncounted."""

    identity: MessageIdentity
    outcome: Outcome | None
    recipients: tuple[RecipientOutcome, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    blocked: Refusal | None = None
    due_at: float | None = None
    held: bool = False
    arrived_at: float = 0.0
    ended_at: float = 0.0
    sender: str | None = None  # of the envelope; only where an account was asked for and none could take it


class _Journal:
    """The claim's log, and what it was told in one transaction, should that end without an attempt."""

    __slots__ = ("_claim", "begun", "known")

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self.begun: set[str] = set()  # the final dot left for them, or may have
        self.known: dict[str, RecipientOutcome] = {}

    def begin(self, recipients: Sequence[str]) -> None:
        self._claim.begin(recipients)
        self.begun.update(recipients)

    def outcome(self, outcomes: Sequence[RecipientOutcome]) -> None:
        self.known.update((outcome.recipient, outcome) for outcome in outcomes)
        self._claim.outcome(outcomes)


@dataclass(slots=True)
class _Work:
    """A message while it is delivered."""

    spool: DirectorySpool
    directory: Directory
    opened: Opened
    prepared: Prepared
    settling: Callable[[], None]
    in_the_way: Callable[[], Refusal | None]
    claim: Claim | None = None
    journal: _Journal | None = None  # of the transaction that is under way
    outcomes: dict[str, RecipientOutcome] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    tried: frozenset[str] = frozenset()
    route: Route | None = None
    settled: bool = False  # the ledger's, or about to be: no longer ours to close
    kept: int = 0  # octets of what is kept in memory
    refusal: Refusal | None = None  # what came in the way, before it was claimed

    @property
    def sidecar(self) -> Sidecar | None:
        return self.opened.sidecar

    def open_recipients(self) -> Sequence[Recipient]:
        """Those that nobody has decided about, in this claim or an earlier one."""
        was = self.sidecar
        if was is None and not self.outcomes:
            return self.prepared.envelope.recipients
        return [
            r
            for r in self.prepared.envelope.recipients
            if r.mailbox not in self.outcomes
            and (was is None or (r.mailbox not in was.accepted and r.mailbox not in was.failed))
        ]

    def all_recipients(self) -> list[str]:
        envelope = self.prepared.envelope
        names = [r.mailbox for r in envelope.recipients]
        return names + [text for text, _ in envelope.rejected] if envelope.rejected else names


class Delivery:
    """Delivers messages of any directory."""

    def __init__(
        self,
        outlets: Outlets,
        ledger: Ledger,
        *,
        clock: Clock,
        chance: Callable[[], float],
        host_name: str,
        max_header_bytes: int = 16 << 20,
    ) -> None:
        self._outlets = outlets
        self._ledger = ledger
        self._clock = clock
        self._chance = chance
        self._host_name = host_name
        self._max_header_bytes = max_header_bytes
        self._reading: WeakKeyDictionary[DirectorySpool, asyncio.Semaphore] = WeakKeyDictionary()
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._kept = 0  # octets of large files that are kept in memory

    # --- a message that waits ---

    async def deliver(
        self,
        spool: DirectorySpool,
        directory: Directory,
        opened: Opened,
        settling: Callable[[], None] = lambda: None,
        in_the_way: Callable[[], Refusal | None] = lambda: None,
    ) -> Delivered:
        """Deliver an opened message. On return or any error the handle is closed, one way or the other.

        `settling` is told when nothing is left to do for it but to commit what came of it, and dispose of its file.
        `in_the_way` is asked before it is claimed: a pause, or the end of the run, may have come while it waited.
        Raises MessageError (left where it is, the error says why), StorageFull, StorageBroken, DirectoryUnavailable.
        """
        if opened.reject is not None:
            return await self._reject(spool, directory, opened, opened.reject, settling)
        try:
            if opened.size <= READ_INLINE_BYTES:
                prepared, kept = self._read(spool, directory, opened), 0
            else:
                prepared, kept = await self._read_large(spool, directory, opened)
        except MessageRejected as rejection:
            return await self._reject(spool, directory, opened, rejection, settling)
        except BaseException:
            spool.release(opened)
            raise
        work = _Work(spool, directory, opened, prepared, settling, in_the_way, kept=kept)
        try:
            return await self._finish(work)
        except MessageRejected as rejection:
            if work.claim is None:
                work.settled = True  # with its own claim; what can't be moved to badmail now is kept, locked
                return await self._reject(spool, directory, opened, rejection, settling, prepared)
            self._refuse_rest(work, rejection)
            return await self._settle(work)
        except Exception as error:
            if not self._can_settle(work, error):
                raise
            return await self._settle(work)
        finally:
            self._let_go(work)
            if not work.settled:
                if work.claim is None:
                    spool.release(opened)
                else:
                    self._abandon(work, work.claim)

    async def _finish(self, work: _Work) -> Delivered:
        await self._attempts(work)
        if work.claim is None and not work.open_recipients():
            work.claim = work.spool.claim(work.opened)  # all were decided before; only the file is left over
        return self._blocked(work) if work.claim is None else await self._settle(work)

    def _abandon(self, work: _Work, claim: Claim) -> None:
        """Cancelled, or no dot left. Nothing is in its log: back with it; else the log tells the next start."""
        if claim.logged:
            log.error("abandoned in flight", message=claim.identity.id, remedy="the next start recovers it by its log")
            work.spool.release(work.opened)
        else:
            work.spool.put_back_now(claim)

    async def _read_large(self, spool: DirectorySpool, directory: Directory, opened: Opened) -> tuple[Prepared, int]:
        """What it is, and how many octets of it are kept in memory, where there is room for them."""
        size = opened.size
        kept = size if size <= KEPT_BYTES and self._kept + size <= KEPT_BYTES_ALL else 0
        self._kept += kept
        try:
            async with self._reading.setdefault(spool, asyncio.Semaphore(LARGE_AT_ONCE)):
                read = await asyncio.to_thread(self._octets, opened, kept)  # however slow its file system is
            if read.quick:
                # a thread would keep the interpreter from the loop as long, and at each of its system calls
                return self._judged(spool, directory, opened, read), kept
            async with self._large:
                return await asyncio.to_thread(self._judged, spool, directory, opened, read), kept
        except BaseException:
            self._kept -= kept
            raise

    def _let_go(self, work: _Work) -> None:
        """What it keeps in memory isn't needed any more."""
        work.prepared.let_go()
        self._kept -= work.kept
        work.kept = 0

    def _read(self, spool: DirectorySpool, directory: Directory, opened: Opened) -> Prepared:
        return self._judged(spool, directory, opened, self._octets(opened, READ_INLINE_BYTES))

    def _octets(self, opened: Opened, keep_octets: int) -> Read:
        return read_message(
            opened.fd,
            size=opened.identity.size,
            mtime_ns=opened.identity.mtime_ns,
            max_header_bytes=self._max_header_bytes,
            keep_octets=keep_octets,
        )

    def _judged(self, spool: DirectorySpool, directory: Directory, opened: Opened, read: Read) -> Prepared:
        prepared = judge(
            read,
            dot_stuffing=directory.dot_stuffing,
            proven=spool.proven(),
            max_recipients=directory.max_recipients,
            name=opened.identity.name,
        )
        if prepared.dot_proof is not None:
            with contextlib.suppress(StorageFull, DirectoryUnavailable):  # the next such file proves it again
                spool.set_proven(prepared.dot_proof)
        return prepared

    async def _attempts(self, work: _Work) -> None:
        """Try accounts until everybody is decided or no account is left. Raises SenderNotAllowed."""
        for text, why in work.prepared.envelope.rejected:
            work.outcomes[text] = RecipientOutcome(
                text, Outcome.FAILED, Phase.LOCAL, Blame.RECIPIENT, 501, "5.1.3", why
            )
        directory, sender = work.directory, work.prepared.envelope.sender
        while work.refusal is None and (recipients := work.open_recipients()):
            last = work.attempts[-1].account if work.attempts else None
            work.route = self._outlets.route(directory, work.tried, sender, last)
            name = work.route.account
            if not self._ledger.healthy or not work.spool.claims_allowed:
                return
            if name is None:
                if work.route.never:
                    raise no_account_for(sender, [refusal.account for refusal in work.route.refusals])
                if await self._outlets.waited(directory, work.route):
                    continue
                return
            passage = self._outlets.begin(name, directory)
            before = len(work.attempts)
            try:
                if passage.quota is None:
                    await self._through(work, passage, recipients[: passage.account.recipients_per_message])
                else:
                    await self._within_quota(work, passage, passage.quota, recipients)
            finally:
                if self._outlets.limited:
                    self._outlets.settled(passage, _taken(work, before))
                self._outlets.ended(passage)

    async def _within_quota(self, work: _Work, passage: Passage, quota: Quota, recipients: Sequence[Recipient]) -> None:
        """Those for whom there is room; what wasn't sent gives its room back."""
        room = quota.reserve(min(len(recipients), passage.account.recipients_per_message))
        before = len(work.attempts)
        try:
            await self._through(work, passage, recipients[: room.recipients], lambda: quota.turn(room))
        finally:
            quota.settle(room, _taken(work, before))

    async def _through(
        self,
        work: _Work,
        passage: Passage,
        recipients: Sequence[Recipient],
        its_turn: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        account = passage.account
        try:
            turn = await passage.transport.turn()
        except AccountUnavailable as error:
            self._outlets.failed(passage, error.fault)
            work.tried |= {account.name}
            return
        try:
            if its_turn is not None and not await its_turn():  # with the connection at hand: then it goes at once
                work.tried |= {account.name}
                return
            if work.claim is None:
                work.refusal = work.in_the_way()
                if work.refusal is not None or not self._outlets.stands(passage):
                    return  # it is left, or routed anew
                work.claim = work.spool.claim(work.opened)
            mail = self._mail(work, account, recipients)
            way = work.claim.way = Way(account.name, turn.server, turn.tls, self._clock.now())
            work.journal = _Journal(work.claim)
            # known by the start that the log has, so that a recovery tells of the same attempt
            attempt = await turn.send(mail, work.journal, way.started_at)
            work.journal = None
        finally:
            turn.release()
        self._take(work, passage, attempt)
        if attempt.unlogged and not work.open_recipients() and _all_sent(work):
            work.spool.discard_now(work.claim)

    def _mail(self, work: _Work, account: Account, recipients: Sequence[Recipient]) -> OutgoingMail:
        prepared, was = work.prepared, work.sidecar
        envelope = prepared.envelope
        if account.from_address:
            envelope = rewrite_sender(envelope, account.from_address, account.from_policy)
        message_id = date = None  # the writer's
        if prepared.internet_message_id is None:
            message_id = (was and was.message_id) or self._message_id(work.directory, work.opened.identity)
        if not prepared.has_date:
            date = (was and was.date) or _date(work.opened.arrived_at)
        content = prepared.content(
            message_id=message_id,
            date=date,
            from_address=account.from_address,
            from_policy=account.from_policy,
        )
        return OutgoingMail(envelope.sender, recipients, content, envelope.ret, envelope.envid)

    def _message_id(self, directory: Directory, identity: MessageIdentity) -> str:
        """The Message-ID that is added where there is none: the same on each attempt (writers.md)."""
        digest = hashlib.sha256(f"{directory.name}\0{identity.local_id}".encode()).hexdigest()[:40]
        return f"<{digest}@{self._host_name}>"

    def _take(self, work: _Work, passage: Passage, attempt: Attempt) -> None:
        """Enter what an attempt brought; leave open what another account, or a new transaction, may still do."""
        duplicate = work.sidecar is not None and work.sidecar.possible_duplicate
        if duplicate:
            attempt = replace(attempt, possible_duplicate=True)
        work.attempts.append(attempt)
        refused = [o for o in attempt.outcomes if o.outcome is not _SENT]
        some_sent = len(refused) < len(attempt.outcomes)
        for outcome in attempt.outcomes:
            rest_now = outcome.blame is _MESSAGE and outcome.outcome is Outcome.DEFERRED and some_sent
            if not rest_now:
                work.outcomes[outcome.recipient] = outcome
        if attempt.fault is not None:
            self._outlets.failed(passage, attempt.fault)
        elif attempt.answered:
            self._outlets.worked(passage)
        if any(map(_is_the_accounts, refused)):
            if any(o.blame is Blame.SENDER for o in refused):
                self._tell_sender_refused(work, passage, attempt)
            work.tried |= {passage.account.name}
            self._reopen(work, attempt)

    def _tell_sender_refused(self, work: _Work, passage: Passage, attempt: Attempt) -> None:
        """Not of a sender that could not even be named to the server."""
        refused = next((o for o in attempt.outcomes if o.blame is Blame.SENDER and o.phase is not Phase.LOCAL), None)
        if refused is not None:
            account, envelope = passage.account, work.prepared.envelope
            if account.from_address:
                envelope = rewrite_sender(envelope, account.from_address, account.from_policy)
            self._outlets.sender_refused(passage, envelope.sender, f"{refused.code} {refused.text}")

    def _reopen(self, work: _Work, attempt: Attempt) -> None:
        """Give the next account those whom this one may not, or can't, send to now."""
        route = self._outlets.route(work.directory, work.tried, work.prepared.envelope.sender)
        waits = any(r.reason in WAITS for r in route.refusals)
        for outcome in attempt.outcomes:
            if outcome.outcome in (Outcome.SENT, Outcome.UNKNOWN) or outcome.recipient not in work.outcomes:
                continue
            if not _is_the_accounts(outcome):
                continue
            if route.account is not None:
                del work.outcomes[outcome.recipient]
            elif outcome.blame is not Blame.ACCOUNT and waits:  # another account may, later
                work.outcomes[outcome.recipient] = replace(outcome, outcome=Outcome.DEFERRED)

    def _refuse_rest(self, work: _Work, rejection: MessageRejected) -> None:
        """Found out while sending that it can't be sent as it is."""
        for recipient in work.open_recipients():
            work.outcomes[recipient.mailbox] = RecipientOutcome(
                recipient.mailbox,
                Outcome.FAILED,
                Phase.LOCAL,
                _blame_of(rejection),
                554,
                rejection.enhanced_code,
                rejection.detail,
            )

    def _can_settle(self, work: _Work, error: Exception) -> bool:
        """Whether what is known by now settles it for the time being. Else the error is the caller's."""
        if work.claim is None or work.settled:
            return False
        if isinstance(error, StorageFull | StorageBroken):  # the dot was held back; earlier transactions may be through
            return bool(work.attempts) or work.claim.logged
        if not isinstance(error, MessageChanged):  # that was closed before the dot
            log.error("attempt failed", message=work.claim.identity.id, exc_info=error, remedy="see the reason")
            self._defer_rest(work, error)
        return True

    def _defer_rest(self, work: _Work, error: Exception) -> None:
        """Something unforeseen, of which only the journal can tell how far it got: tried again later, not for ever."""
        journal = work.journal
        if journal is not None:
            for name in journal.begun - journal.known.keys():
                text = f"the reply was not read: {error!r}"
                journal.known[name] = RecipientOutcome(name, Outcome.UNKNOWN, Phase.DOT, None, text=text)
            for name, outcome in journal.known.items():
                work.outcomes.setdefault(name, outcome)
        text = error.detail if isinstance(error, RelayError) else f"a fault of this service: {error!r}"
        for recipient in work.open_recipients():
            name = recipient.mailbox
            work.outcomes[name] = RecipientOutcome(
                name, Outcome.DEFERRED, Phase.LOCAL, Blame.TRANSIENT, None, "4.3.0", text
            )

    def _no_claims(self, spool: DirectorySpool) -> Refusal | None:
        """Why nothing may be claimed now, whichever account it would go through."""
        if not self._ledger.healthy:
            return Refusal("", "database_unavailable")
        return None if spool.claims_allowed else Refusal("", "storage_full")

    def _blocked(self, work: _Work) -> Delivered:
        refusal = work.refusal or self._no_claims(work.spool)
        if refusal is None:
            assert work.route is not None
            refusal = block_of(work.route)
        sender = work.prepared.envelope.sender if work.refusal is None else None
        return Delivered(work.opened.identity, None, blocked=refusal, arrived_at=work.opened.arrived_at, sender=sender)

    # --- decisions carried out ---

    async def _settle(self, work: _Work) -> Delivered:
        assert work.claim is not None
        now = self._clock.now()
        account = work.attempts[-1].account if work.attempts else None
        settlement = settle(
            work.directory,
            work.sidecar,
            work.all_recipients(),
            work.outcomes,
            now=now,
            chance=self._chance(),
            account=account,
        )
        settlement = self._keep_added(work, settlement)
        local: tuple[RecipientOutcome, ...] = ()
        if settlement is not ALL_SENT or sum(len(a.outcomes) for a in work.attempts) < len(work.outcomes):
            local = _decided_here(work, settlement)
        was, kept = work.sidecar, settlement.sidecar
        before = was.attempts if was else 0
        identity = work.opened.identity
        entry = Entry(
            message_id=identity.id,
            directory=work.directory.name,
            sender=work.prepared.envelope.sender,
            size_bytes=identity.size,
            arrived_at=work.opened.arrived_at,
            status=_STATUS[settlement.status],
            finished=settlement.finished,
            internet_message_id=work.prepared.internet_message_id or self._message_id(work.directory, identity),
            subject=work.prepared.subject,
            attempts=tuple(work.attempts),
            outcomes=local,
            reason=settlement.reason,
            attempts_counted=kept.attempts if kept else before + (settlement.disposition is _DELETE),
            first_attempt_at=(kept.first_attempt_at if kept else None) or (was.first_attempt_at if was else None),
            possible_duplicate=bool((kept or was) and (kept or was or Sidecar()).possible_duplicate),
            disposal=_disposal(work.claim, settlement),
            disposer=work.spool,
        )
        work.settled = True
        self._let_go(work)
        return await self._commit(work, settlement, entry, now)

    async def _commit(self, work: _Work, settlement: Settlement, entry: Entry, now: float) -> Delivered:
        settled = self._ledger.settle(entry)
        work.settling()
        disposed = await settled
        self._report(work, entry.message_id, settlement, disposed)
        uncounted = _uncounted(work, settlement)
        blocked = sender = None
        if uncounted and work.route is not None and work.attempts:
            sender = work.prepared.envelope.sender
            blocked = block_of(self._outlets.route(work.directory, frozenset(), sender))
        return Delivered(
            work.opened.identity,
            None if uncounted else settlement.status,
            tuple(work.outcomes.values()),
            tuple(work.attempts),
            blocked,
            settlement.sidecar.due_at if settlement.sidecar else None,
            settlement.disposition is _HOLD,
            work.opened.arrived_at,
            now,
            sender,
        )

    def _report(self, work: _Work, message_id: str, settlement: Settlement, disposed: object) -> None:
        """One line an event; each failure says what to do about it."""
        account = work.attempts[-1].account if work.attempts else None
        about = {
            "message": message_id,
            "directory": work.directory.name,
        }  # binding costs more than a line
        match settlement.disposition:
            case Disposition.DELETE:
                log.info("sent", **about, account=account, recipients=len(work.outcomes))
            case Disposition.PUT_BACK if _uncounted(work, settlement):
                block = block_of(work.route) if work.route is not None else None
                reason = settlement.reason or (block.reason if block is not None else "")
                log.info(
                    "put back", **about, account=account, reason=reason, remedy="see the account's pause or limits"
                )
            case Disposition.PUT_BACK:
                assert settlement.sidecar is not None
                log.warning(
                    "deferred",
                    **about,
                    account=account,
                    reason=settlement.reason,
                    due_at=utc_text(settlement.sidecar.due_at),
                    attempts=settlement.sidecar.attempts,
                    remedy="nothing to do: it is tried again when due; `mpu retry` makes it due now",
                )
            case Disposition.BADMAIL:
                log.error(
                    "to badmail",
                    **about,
                    account=account,
                    reason=settlement.reason,
                    remedy="read the reason beside the file, correct it, then `mpu retry` it",
                )
            case Disposition.HOLD:
                log.error(
                    "held",
                    **about,
                    account=account,
                    reason=settlement.reason,
                    remedy="look at the provider whether it was delivered, then release or delete it",
                )
        _report_disposed(disposed, about)

    def _keep_added(self, work: _Work, settlement: Settlement) -> Settlement:
        """Date and Message-ID that were added stay the same on each attempt."""
        if settlement.sidecar is None:
            return settlement
        sidecar = settlement.sidecar
        if work.prepared.internet_message_id is None and sidecar.message_id is None:
            sidecar = replace(sidecar, message_id=self._message_id(work.directory, work.opened.identity))
        if not work.prepared.has_date and sidecar.date is None:
            sidecar = replace(sidecar, date=_date(work.opened.arrived_at))
        return replace(settlement, sidecar=sidecar)

    async def _reject(
        self,
        spool: DirectorySpool,
        directory: Directory,
        opened: Opened,
        rejection: MessageRejected,
        settling: Callable[[], None],
        prepared: Prepared | None = None,
    ) -> Delivered:
        """It can never be sent as it is: to badmail, with the reason."""
        refusal = self._no_claims(spool)
        if refusal is not None:
            spool.release(opened)
            return Delivered(opened.identity, None, blocked=refusal, arrived_at=opened.arrived_at)
        claim = spool.claim(opened)
        now = self._clock.now()
        names = tuple(r.mailbox for r in prepared.envelope.recipients) if prepared else ()
        reason = f"{rejection.enhanced_code} {rejection.detail}"
        was = opened.sidecar or Sidecar()
        sidecar = replace(
            was,
            reason=reason,
            code=554,
            enhanced_code=rejection.enhanced_code,
            blame=_blame_of(rejection).value,
            due_at=None,
        )
        text = reason + (f"\n{rejection.remedy}" if rejection.remedy else "")
        settled = self._ledger.settle(
            Entry(
                message_id=opened.identity.id,
                directory=directory.name,
                sender=prepared.envelope.sender if prepared else "",
                size_bytes=opened.size,
                arrived_at=opened.arrived_at,
                status=Status.FAILED,
                finished=True,
                internet_message_id=prepared.internet_message_id if prepared else None,
                subject=prepared.subject if prepared else None,
                rest=names,
                reason=reason,
                code=sidecar.code,
                enhanced_code=rejection.enhanced_code,
                attempts_counted=was.attempts,
                possible_duplicate=was.possible_duplicate,
                disposal=ToBadmail(claim, sidecar, text),
                disposer=spool,
            )
        )
        settling()
        disposed = await settled
        outcomes = tuple(
            RecipientOutcome(
                name, Outcome.FAILED, Phase.LOCAL, _blame_of(rejection), 554, rejection.enhanced_code, rejection.detail
            )
            for name in names
        )
        log.error(
            "to badmail",
            message=opened.identity.id,
            directory=directory.name,
            reason=reason,
            remedy=rejection.remedy or "correct the file, then `mpu retry` it",
        )
        _report_disposed(disposed, {"message": opened.identity.id, "directory": directory.name})
        return Delivered(opened.identity, Outcome.FAILED, outcomes, arrived_at=opened.arrived_at, ended_at=now)

    # --- a message whose owner died ---

    async def settle_recovered(self, spool: DirectorySpool, directory: Directory, recovered: Recovered) -> Delivered:
        """Act on what the logs say of it, and send nothing (spool.md, "Recovery")."""
        claim = recovered.claim
        if recovered.verdict is Verdict.UNTOUCHED:
            spool.put_back_now(claim)
            log.info("recovered: put back", message=claim.identity.id, directory=directory.name)
            return Delivered(claim.identity, None, arrived_at=claim.arrived_at)
        try:
            prepared = await asyncio.to_thread(self._read, spool, directory, claim.opened)
        except Exception as error:  # noqa: BLE001 - whatever it is, what the log tells must not be forgotten
            return await self._keep_recovered(spool, directory, recovered, error)
        work = _Work(spool, directory, claim.opened, prepared, lambda: None, lambda: None, claim)
        for outcome in recovered.outcomes:
            work.outcomes[outcome.recipient] = outcome
        names = [r.mailbox for r in work.open_recipients()] if recovered.restarted else list(recovered.unknown)
        for name in names:
            work.outcomes.setdefault(name, _unread(name))
        work.attempts += self._recovered_attempts(work, recovered)
        for attempt in work.attempts:
            self._outlets.count(attempt)
        return await self._settle(work)

    def _recovered_attempts(self, work: _Work, recovered: Recovered) -> list[Attempt]:
        """What the log had begun, put together again; no-one else knows of an attempt that nothing began."""
        now = self._clock.now()
        nowhere = Way("", "", None, now)
        by_way: dict[Way, list[RecipientOutcome]] = {}
        for outcome in work.outcomes.values():
            way = recovered.ways.get(outcome.recipient)
            if way is not None or outcome.outcome is Outcome.UNKNOWN:
                by_way.setdefault(way or nowhere, []).append(outcome)
        return [
            Attempt(
                way.account,
                way.server,
                way.tls,
                way.started_at,
                now,
                tuple(outcomes),
                possible_duplicate=any(o.outcome is Outcome.UNKNOWN for o in outcomes),
            )
            for way, outcomes in by_way.items()
        ]

    async def _keep_recovered(
        self, spool: DirectorySpool, directory: Directory, recovered: Recovered, error: Exception
    ) -> Delivered:
        """It can't be read any more, or not be sent as it is: back, with a sidecar of what its log tells."""
        claim, now = recovered.claim, self._clock.now()
        outcomes = {outcome.recipient: outcome for outcome in recovered.outcomes}
        for name in recovered.unknown:
            outcomes.setdefault(name, _unread(name))
        told = tuple(outcomes.values())
        others = ""  # whoever else it is for
        if recovered.restarted and not isinstance(error, MessageRejected):
            outcomes[others] = _unread(others)
        everybody = [*(name for name in outcomes if name != others), others]
        settled = settle(directory, claim.sidecar, everybody, outcomes, now=now, chance=self._chance())
        log.warning("recovered: put back", message=claim.identity.id, directory=directory.name, reason=str(error))
        disposed = await self._ledger.settle(
            Entry(
                message_id=claim.identity.id,
                directory=directory.name,
                sender="",
                size_bytes=claim.size,
                arrived_at=claim.arrived_at,
                status=Status(settled.status.value),
                finished=settled.finished,
                outcomes=told,
                reason=settled.reason,
                attempts_counted=settled.sidecar.attempts if settled.sidecar else 0,
                possible_duplicate=bool(settled.sidecar and settled.sidecar.possible_duplicate),
                disposal=_disposal(claim, settled),
                disposer=spool,
            )
        )
        _report_disposed(disposed, {"message": claim.identity.id, "directory": directory.name})
        due_at = settled.sidecar.due_at if settled.sidecar else None
        return Delivered(claim.identity, settled.status, told, due_at=due_at)


def _is_the_accounts(outcome: RecipientOutcome) -> bool:
    """Whether another account may send to that recipient; LOCAL: this one's server lacks what it takes."""
    return outcome.blame is Blame.ACCOUNT or outcome.blame is Blame.SENDER or outcome.phase is Phase.LOCAL


def _uncounted(work: _Work, settlement: Settlement) -> bool:
    """Back it goes, with no attempt counted: its account's fault, or the day's quota. (Part of it may be sent.)"""
    if settlement.disposition is not _PUT_BACK:
        return False
    was, kept = work.sidecar, settlement.sidecar
    return kept is None or kept.attempts == (was.attempts if was is not None else 0)


def _taken(work: _Work, before: int) -> int:
    """Recipients that the last transaction was sent to, or may have been; with more than `before` attempts it ended."""
    if len(work.attempts) > before:
        return work.attempts[-1].taken
    journal = work.journal
    if journal is None:
        return 0
    sent = {name for name, outcome in journal.known.items() if outcome.outcome is Outcome.SENT}
    return len(sent | (journal.begun - journal.known.keys()))


def _decided_here(work: _Work, settlement: Settlement) -> tuple[RecipientOutcome, ...]:
    """Outcomes that no attempt tells."""
    told = {o.recipient for a in work.attempts for o in a.outcomes}
    expired = (
        RecipientOutcome(name, Outcome.FAILED, Phase.LOCAL, Blame.TRANSIENT, None, "4.4.7", settlement.reason)
        for name in settlement.expired
    )
    return (*(o for o in work.outcomes.values() if o.recipient not in told), *expired)


def _unread(name: str) -> RecipientOutcome:
    text = "the service ended before the server's reply was read"
    return RecipientOutcome(name, Outcome.UNKNOWN, Phase.DOT, None, text=text)


_TOLD_FIRST = {PAUSED: 0, QUOTA: 1, DISABLED: 2, UNKNOWN: 3, TRIED: 4, SENDER_NOT_ALLOWED: 5}


def block_of(route: Route) -> Refusal:
    """The one reason, of those of all accounts, that a person wants to hear of."""
    if not route.refusals:
        return Refusal("", "no_account")
    first = min(route.refusals, key=lambda r: _TOLD_FIRST.get(r.reason, 9))
    if first.reason == PAUSED and route.until is not None and route.until == route.quota_until:
        first = next(r for r in route.refusals if r.reason == QUOTA and r.until == route.until)  # what it waits for
    return replace(first, reason=PAUSED if first.reason == TRIED else first.reason, until=route.until)


def _blame_of(rejection: MessageRejected) -> Blame:
    return Blame.SENDER if isinstance(rejection, SenderNotAllowed) else Blame.MESSAGE


def _report_disposed(disposed: object, about: dict[str, str]) -> None:
    if isinstance(disposed, Disposed) and disposed.error:
        if disposed.ok:
            log.warning("disposed of, with a remark", **about, remark=disposed.error)
        else:
            log.error("could not dispose of the file", **about, error=disposed.error, remedy=disposed.remedy)


def _date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(min(max(int(seconds), 0), _LAST_SECOND), UTC))


def _all_sent(work: _Work) -> bool:
    return all(o.outcome is _SENT for o in work.outcomes.values()) and not (work.sidecar and work.sidecar.failed)


def _disposal(claim: Claim, settlement: Settlement) -> Disposal:
    match settlement.disposition:
        case Disposition.DELETE:
            return Delete(claim)
        case Disposition.PUT_BACK:
            return PutBack(claim, settlement.sidecar)
        case Disposition.BADMAIL:
            assert settlement.sidecar is not None
            return ToBadmail(claim, settlement.sidecar, letter(settlement))
        case Disposition.HOLD:
            assert settlement.sidecar is not None
            return Hold(claim, settlement.sidecar)
