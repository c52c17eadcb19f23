"""The accounts at work: each with its transport and its circuit. What is in flight keeps the settings it started with.

A fault pauses the account here, at once and in memory; the pause is written down behind it. When a pause ends, or the
message on trial came through, the directories that send through the account are woken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import structlog

from core.domain.account import Account, Directory, SenderRoute, Strategy
from core.domain.blame import TENANT_BLOCKED
from core.domain.circuit import Circuit, Pause, PausedBy
from core.domain.clock import Clock, utc_text
from core.domain.limits import PATIENCE_SECONDS
from core.domain.outcome import AccountFault, Attempt
from core.domain.routing import (
    DISABLED,
    PAUSED,
    QUOTA,
    SENDER_NOT_ALLOWED,
    Refusal,
    Route,
    SenderRoutes,
    Shares,
    Standing,
    choose,
    order_of,
    standings,
)
from core.domain.senders import SendAs, send_as, sender_key
from core.errors import NotFound
from core.runtime.quotas import THROTTLED, Quota, Quotas
from core.runtime.refused_senders import RefusedSenders
from core.store.slowdowns import Slowed
from core.transport.base import Transport

log = structlog.get_logger()

_CLOSED = Circuit()
# whose edits make no login work that was refused, and no server answer: each would cost one more refused login
_CURE_NOTHING = (
    "idle_timeout_seconds",
    "messages_per_connection",
    "recipients_per_message",
    "senders",
    "preset",
    "messages_per_second",
    "messages_per_minute",
    "messages_per_hour",
    "messages_per_day",
    "recipients_per_day",
)
_FAILOVER = Strategy.FAILOVER


@dataclass(slots=True)  # one a message (core/domain)
class Passage:
    """One message's way through an account: the settings it set out with, and whether it is the one on trial."""

    account: Account
    transport: Transport
    trial: bool = False
    quota: Quota | None = None  # None: nothing holds the account back


@dataclass(slots=True)
class _Outlet:
    account: Account
    transport: Transport
    direct: Route  # to it, where nothing is in the way
    send_as: SendAs
    plain: bool  # whatever the message: nothing but its circuit can be in the way
    circuit: Circuit = _CLOSED
    timer: asyncio.TimerHandle | None = None
    quota: Quota | None = None

    def take(self, account: Account, transport: Transport) -> None:
        """Other settings."""
        self.account, self.transport = account, transport
        self.send_as = send_as(account)
        self.hold_back(self.quota)

    def hold_back(self, quota: Quota | None) -> None:
        """By these limits; None: by nothing."""
        self.quota = quota
        self.plain = self.account.enabled and self.send_as.anyone and quota is None


class Outlets:
    """See the module's text. All methods belong to the event loop."""

    def __init__(
        self,
        *,
        clock: Clock,
        chance: Callable[[], float],
        make_transport: Callable[[Account], Transport],
        remember: Callable[[str, Pause | None], None],
        on_open: Callable[[str], None],
        quotas: Quotas | None = None,
    ) -> None:
        self.quotas = quotas or Quotas(clock=clock, on_open=on_open)
        self.limited = False  # whether limits, or a server, hold any account back:
        self._limited: set[str] = set()  # these
        self._clock = clock
        self._chance = chance
        self._make_transport = make_transport
        self._remember = remember
        self._on_open = on_open
        self.refused_senders = RefusedSenders(clock)
        self._outlets: dict[str, _Outlet] = {}
        self._routes: SenderRoutes | None = None  # None: there are none
        self._shares: dict[str, Shares] = {}  # of directories that balance
        self._closing: dict[asyncio.Task[None], Transport] = {}  # replaced, with mail in flight perhaps
        self._aborted = False  # whatever fails now is our own doing

    # --- what delivery asks ---

    def route(
        self, directory: Directory, tried: Collection[str], sender: str | None = None, last: str | None = None
    ) -> Route:
        """The account for a message of this envelope sender now; None: for any message, if one could go at all.

        `last`: the account that an earlier transaction of the message went through.
        """
        if not tried and directory.strategy is _FAILOVER and self._routes is None and directory.accounts:
            first = self._outlets.get(directory.accounts[0])
            if first is not None and first.circuit is _CLOSED and first.plain:
                return first.direct
        if sender is None:
            return self._any(directory, tried)
        key = sender_key(sender)
        order = order_of(
            directory,
            key,
            routes=self._routes,
            send_as=self._send_as,
            shares=self._shares_of(directory),
            last=last,
        )
        return choose(order, key, send_as=self._send_as, in_the_way=self._in_the_way, tried=tried)

    def _any(self, directory: Directory, tried: Collection[str]) -> Route:
        """Whether there is a message that could go."""
        route = choose(directory.accounts, "", send_as=self._send_as, in_the_way=self._in_the_way, tried=tried)
        if route.account is None and self._routes is not None:
            others = sorted(self._routes.accounts)
            routed = choose(others, "", send_as=self._send_as, in_the_way=self._in_the_way, tried=tried)
            return routed if routed.account is not None else route
        return route

    def standings(self, directory: Directory, sender: str) -> tuple[Standing, ...]:
        """Every account for a message of this envelope sender, best first, with what is in its way."""
        return standings(
            directory,
            sender_key(sender),
            routes=self._routes,
            send_as=self._send_as,
            in_the_way=self._in_the_way,
            shares=self._known_shares(directory),
        )

    def serves(self, account: str, directory: Directory) -> bool:
        """Whether mail of the directory may go through the account."""
        return account in directory.accounts or (self._routes is not None and account in self._routes.accounts)

    def limits(self, directory: Directory) -> bool:
        """Whether limits hold back one that the directory's mail may go through."""
        if not self.limited:
            return False
        if not self._limited.isdisjoint(directory.accounts):
            return True
        return self._routes is not None and not self._limited.isdisjoint(self._routes.accounts)

    def _shares_of(self, directory: Directory) -> Shares | None:
        if directory.strategy is not Strategy.BALANCE:
            return None
        shares = self._known_shares(directory)
        if shares is None:
            shares = self._shares[directory.name] = Shares(directory.accounts, directory.weights)
        return shares

    def _known_shares(self, directory: Directory) -> Shares | None:
        """None: nothing was sent yet since the accounts or weights were set."""
        shares = self._shares.get(directory.name)
        known = shares is not None and (shares.accounts, shares.weights) == (directory.accounts, directory.weights)
        return shares if known else None

    def _send_as(self, name: str) -> SendAs | None:
        outlet = self._outlets.get(name)
        return outlet.send_as if outlet is not None else None

    def _in_the_way(self, name: str) -> Refusal | None:
        """Of any message, now. The account is known."""
        outlet = self._outlets[name]
        if not outlet.account.enabled:
            return Refusal(name, DISABLED)
        if outlet.circuit is not _CLOSED:
            pause = outlet.circuit.blocked(self._clock.now())
            if pause is not None:
                return Refusal(name, PAUSED, pause.until)
        if outlet.quota is not None:
            until = outlet.quota.refused_until()
            if until is not None:
                return Refusal(name, QUOTA, until)
        return None

    async def waited(self, directory: Directory, route: Route) -> bool:
        """Wait for the account that has room next, in order, if that is soon. False: it isn't, and nothing waits.

        Nor where mail of the directory from other senders has other ways: what waits here, open, would keep it.
        """
        until = route.quota_until
        if until is None or until - self._clock.now() > PATIENCE_SECONDS:
            return False
        asked = {refusal.account for refusal in route.refusals if refusal.reason != SENDER_NOT_ALLOWED}
        if not asked.issuperset(directory.accounts) or (
            self._routes is not None and not asked.issuperset(self._routes.accounts)
        ):
            return False
        name = next(r.account for r in route.refusals if r.reason == QUOTA and r.until == until)
        quota = self._outlets[name].quota
        return quota is not None and await quota.wait()

    def count(self, attempt: Attempt) -> None:
        """An attempt that did not set out here: of an earlier life, or a test message."""
        if taken := attempt.taken:
            self.quotas.count(attempt.account, taken)

    def account(self, name: str) -> Account:
        """Its settings now. Raises NotFound."""
        return self._get(name).account

    def transport(self, name: str) -> Transport:
        """Its way out now. Raises NotFound."""
        return self._get(name).transport

    def begin(self, name: str, directory: Directory | None = None) -> Passage:
        """A message of the directory sets out; it is the one on trial, where the circuit is half open."""
        outlet = self._get(name)
        if directory is not None and directory.strategy is Strategy.BALANCE:
            shares = self._shares.get(directory.name)
            if shares is not None:
                shares.take(name)
        if outlet.circuit is not _CLOSED:
            outlet.circuit = outlet.circuit.begin_trial()
        quota = outlet.quota
        if quota is not None:
            self._ease(outlet, quota)
        return Passage(outlet.account, outlet.transport, outlet.circuit.trial, outlet.quota)

    def _ease(self, outlet: _Outlet, quota: Quota) -> None:
        """As many connections as it may have by now; and nothing more of it where it is over."""
        if quota.connections is not None:
            outlet.transport.limit_connections(quota.most_connections(outlet.account.max_connections))
        if quota.over:
            self.quotas.remove(outlet.account.name)
            self._hold_back(outlet, None)

    def _hold_back(self, outlet: _Outlet, quota: Quota | None) -> None:
        outlet.hold_back(quota)
        self._note_limited(outlet.account.name, quota)

    def _note_limited(self, name: str, quota: Quota | None) -> None:
        if quota is None:
            self._limited.discard(name)
        else:
            self._limited.add(name)
        self.limited = bool(self._limited)

    def stands(self, passage: Passage) -> bool:
        """Whether it may still go: its account was not paused, disabled or removed while it waited for its turn."""
        outlet = self._outlets.get(passage.account.name)
        if outlet is None or not outlet.account.enabled:
            return False
        if outlet.circuit is _CLOSED:
            return True
        return passage.trial and outlet.circuit.trial and outlet.transport is passage.transport

    def settled(self, passage: Passage, recipients: int) -> None:
        """Its transaction is over: so many were sent to, or may have been. For limits that were set meanwhile."""
        outlet = self._outlets.get(passage.account.name)
        if recipients and outlet is not None and outlet.quota is not None and outlet.quota is not passage.quota:
            self.quotas.count(passage.account.name, recipients)

    def _slow_down(self, outlet: _Outlet, code: str) -> None:
        transport = outlet.transport
        quota = self.quotas.throttled(outlet.account, code, reached=transport.rate, connections=transport.connections)
        self._hold_back(outlet, quota)
        self._ease(outlet, quota)

    def worked(self, passage: Passage) -> None:
        """The account's server took or refused a message for its own sake."""
        outlet = self._of(passage)
        if outlet is None or not passage.trial or not outlet.circuit.trial:
            return  # what was in flight when a pause came tells nothing of it
        pause = outlet.circuit.pause
        self._change(passage.account.name, outlet, outlet.circuit.succeeded())
        if pause is not None:
            log.info("account works again", account=passage.account.name)
        self._on_open(passage.account.name)

    def failed(self, passage: Passage, fault: AccountFault) -> None:
        """Pause the account, or all of its tenant: their fault, for as long as the fault says."""
        outlet = self._of(passage)
        if outlet is None or self._aborted:
            return  # the fault is of settings that were changed meanwhile, or nobody's
        self._open(outlet, fault, on_trial=passage.trial)
        if fault.code == TENANT_BLOCKED:
            for name, other in self._outlets.items():
                if other is not outlet and _tenant(other.account) == _tenant(outlet.account):
                    self._open(other, replace(fault, account=name), on_trial=False)

    def _open(self, outlet: _Outlet, fault: AccountFault, *, on_trial: bool) -> None:
        circuit = outlet.circuit
        if not on_trial and circuit.blocked(self._clock.now()):
            return  # others in flight say the same; only a trial makes it longer
        circuit = circuit.failed(fault, now=self._clock.now(), chance=self._chance())
        self._change(fault.account, outlet, circuit)
        if fault.code in THROTTLED:
            self._slow_down(outlet, fault.code)
        log.error(
            "account paused",
            account=fault.account,
            code=fault.code,
            phase=fault.phase.value,
            reason=fault.detail,
            until=utc_text(circuit.pause.until if circuit.pause else None),
            remedy=fault.remedy,
        )

    def sender_refused(self, passage: Passage, sender: str, said: str) -> None:
        """The account's server refuses mail of this envelope sender."""
        if self._of(passage) is not None:
            self.refused_senders.note(passage.account.name, sender, said)

    def ended(self, passage: Passage) -> None:
        """The message that set out is done with the account."""
        outlet = self._of(passage)
        if passage.trial and outlet is not None and outlet.circuit.trial:
            outlet.circuit = outlet.circuit.end_trial()
            self._on_open(passage.account.name)

    def _of(self, passage: Passage) -> _Outlet | None:
        """None: the account is gone, or has other settings now."""
        outlet = self._outlets.get(passage.account.name)
        return outlet if outlet is not None and outlet.transport is passage.transport else None

    # --- settings and operators ---

    @property
    def names(self) -> list[str]:
        """All accounts, sorted."""
        return sorted(self._outlets)

    def set(self, account: Account, pause: Pause | None = None, slowed: Slowed | None = None) -> None:
        """Add or replace an account. `pause`: of a new one; others keep theirs, and an edit ends the service's.
        Likewise `slowed`, but that no edit ends it.

        Without a difference nothing happens: no reconnect.
        """
        present = self._outlets.get(account.name)
        if present is None:
            transport = self._make_transport(account)
            outlet = _Outlet(account, transport, Route(account.name), send_as(account), plain=False)
            outlet.take(account, transport)
            if pause is not None:
                outlet.circuit = Circuit.stored(pause)
            self._outlets[account.name] = outlet
            if slowed is not None:
                self.quotas.slow_as(account, slowed)
            self._hold_back(outlet, self.quotas.set(account))
            self._arm(account.name, outlet)
            return
        if present.account == account:
            return
        self.refused_senders.forget(account.name)
        same = {name: getattr(present.account, name) for name in _CURE_NOTHING}
        may_cure = replace(account, **same) != present.account
        self._close(present.transport)
        present.take(account, self._make_transport(account))
        if present.circuit.trial:
            present.circuit = present.circuit.end_trial()  # what is on trial tells of the old settings
        self._hold_back(present, self.quotas.set(account))
        pause_now = present.circuit.pause
        if may_cure and pause_now is not None and pause_now.by is PausedBy.SERVICE:
            self._change(account.name, present, present.circuit.resumed())  # edited: it may work now
        self._on_open(account.name)

    def remove(self, name: str) -> None:
        """The account is gone; what is in flight finishes."""
        outlet = self._outlets.pop(name, None)
        self.refused_senders.forget(name)
        if outlet is not None:
            self.quotas.remove(name)
            self._note_limited(name, None)
            if outlet.timer is not None:
                outlet.timer.cancel()
            self._close(outlet.transport)

    def set_sender_routes(self, routes: Sequence[SenderRoute]) -> None:
        """For all directories, from the next message on."""
        self._routes = SenderRoutes(routes) if routes else None

    def trouble_of(self, name: str) -> AccountFault | None:
        """Why the account can't have more connections, while those it has serve."""
        return self._get(name).transport.trouble

    def pause_of(self, name: str) -> Pause | None:
        """As people are shown it."""
        pause = self._get(name).circuit.pause
        return None if pause is not None and self._over(pause) else pause

    def pause(self, name: str, pause: Pause) -> None:
        """By an operator, as it was written down."""
        outlet = self._get(name)
        self._put(name, outlet, outlet.circuit.paused_by_operator(pause))

    def resume(self, name: str) -> None:
        """By an operator, as was written down: one message is tried first, at once; whatever became of one that is on
        trial.
        """
        outlet = self._get(name)
        if outlet.circuit is not _CLOSED:
            self._put(name, outlet, outlet.circuit.resumed())
            self._on_open(name)

    def abort(self) -> None:
        """Cut all connections: what awaits a reply after its final dot ends as unknown."""
        self._aborted = True
        for transport in [*(outlet.transport for outlet in self._outlets.values()), *self._closing.values()]:
            transport.abort()

    async def close(self, timeout_seconds: float | None = None) -> bool:
        """QUIT everywhere. False: time was up; may be called again."""
        self.quotas.close()
        for name in self.names:
            self.remove(name)
        if not self._closing:
            return True
        _, waiting = await asyncio.wait(list(self._closing), timeout=timeout_seconds)
        return not waiting

    # --- within ---

    def _get(self, name: str) -> _Outlet:
        outlet = self._outlets.get(name)
        if outlet is None:
            raise NotFound("account", name)
        return outlet

    def _change(self, name: str, outlet: _Outlet, circuit: Circuit) -> None:
        if outlet.circuit.pause != circuit.pause:
            self._remember(name, circuit.pause)
        self._put(name, outlet, circuit)

    def _put(self, name: str, outlet: _Outlet, circuit: Circuit) -> None:
        outlet.circuit = _CLOSED if circuit == _CLOSED else circuit
        self._arm(name, outlet)

    def _arm(self, name: str, outlet: _Outlet) -> None:
        """Wake the directories when the circuit lets a message try again."""
        if outlet.timer is not None:
            outlet.timer.cancel()
            outlet.timer = None
        opens_at = outlet.circuit.opens_at
        if opens_at is not None:
            delay = max(opens_at - self._clock.now(), 0.0) + 0.001
            outlet.timer = asyncio.get_running_loop().call_later(delay, self._opened, name)

    def _opened(self, name: str) -> None:
        outlet = self._outlets.get(name)
        if outlet is None:
            return
        outlet.timer = None
        pause = outlet.circuit.pause
        if pause is None or pause.by is PausedBy.SERVICE:
            outlet.circuit = outlet.circuit.waited()
        elif self._over(pause):
            self._change(name, outlet, outlet.circuit.resumed())
        else:
            self._arm(name, outlet)  # the wall clock, which an operator's `until` is about, was set back
            return
        self._on_open(name)

    def _over(self, pause: Pause) -> bool:
        """Whether it is an operator's whose `until` has come."""
        return pause.by is PausedBy.OPERATOR and not pause.in_force(self._clock.now())

    def _close(self, transport: Transport) -> None:
        task = asyncio.get_running_loop().create_task(transport.close())
        self._closing[task] = transport
        task.add_done_callback(self._closing.pop)


def _tenant(account: Account) -> tuple[str, str]:
    """Accounts that a provider counts together: those of one domain at one host, an account without a domain alone."""
    _, at, domain = (account.username or account.from_address or "").rpartition("@")
    return account.host.lower(), domain.lower() if at else f"{account.name}@"
