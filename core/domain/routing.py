"""Which account a message goes through: who is asked in which order, and the first of them that may be used now.

    a sender route names the sender   its accounts, in order; the address counts before its @domain
    failover                          the directory's accounts, in order
    balance                           whose turn it is by the weights; weight 0 behind all others
    by_sender                         those whose `senders` name the address, then those that name its @domain, then
                                      those without `senders`, then the rest; in order each

An account with `senders` takes no mail of others, whatever brought it here: fail-over must not break send-as. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from core.domain.account import Directory, SenderRoute, Strategy
from core.domain.senders import SendAs, domain_of, sender_entry
from core.errors import SenderNotAllowed

UNKNOWN, TRIED, SENDER_NOT_ALLOWED = "unknown", "tried", "sender_not_allowed"
DISABLED, PAUSED, QUOTA = "disabled", "account_paused", "quota"
WAITS = frozenset({PAUSED, QUOTA})
"""What ends, with or without somebody's act, so that mail waits for it."""

SendAsOf = Callable[[str], SendAs | None]
"""What an account says of senders; None: there is no such account."""
InTheWay = Callable[[str], "Refusal | None"]
"""Why an account can't be used now, whatever the message: disabled, paused, out of quota."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an account isn't taken. `until`: when that ends by itself, if it does.

    unknown, sender_not_allowed, tried (for this message), disabled, account_paused, quota; of no account: what keeps
    the directory, or the run, from claiming anything
    """

    account: str
    reason: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The account, or None with every account's reason."""

    account: str | None
    refusals: tuple[Refusal, ...] = ()

    @property
    def until(self) -> float | None:
        """The earliest time at which it may be worth asking again."""
        return min((r.until for r in self.refusals if r.until is not None), default=None)

    @property
    def quota_until(self) -> float | None:
        """When an account that is out of quota has room again, the first of them."""
        return min((r.until for r in self.refusals if r.reason == QUOTA and r.until is not None), default=None)

    @property
    def never(self) -> bool:
        """No account may send as this sender, now or later, unless settings change."""
        return (
            self.account is None
            and bool(self.refusals)
            and all(refusal.reason == SENDER_NOT_ALLOWED for refusal in self.refusals)
        )


def choose(
    accounts: Iterable[str],
    key: str,
    *,
    send_as: SendAsOf,
    in_the_way: InTheWay,
    tried: Collection[str] = (),
) -> Route:
    """The first of the accounts that may be used now for this sender ("": any), not tried for the message before."""
    refusals: list[Refusal] = []
    for account in accounts:
        refusal = _refusal(account, key, send_as, in_the_way, tried)
        if refusal is None:
            return Route(account, tuple(refusals))
        refusals.append(refusal)
    return Route(None, tuple(refusals))


def _refusal(account: str, key: str, send_as: SendAsOf, in_the_way: InTheWay, tried: Collection[str]) -> Refusal | None:
    allowed = send_as(account)
    if allowed is None:
        return Refusal(account, UNKNOWN)
    if not allowed.allows(key):  # before what may pass
        return Refusal(account, SENDER_NOT_ALLOWED)
    return Refusal(account, TRIED) if account in tried else in_the_way(account)


def no_account_for(sender: str, accounts: Iterable[str]) -> SenderNotAllowed:
    """What becomes of mail whose sender none of the accounts that it could go through may use."""
    return SenderNotAllowed(
        "5.7.1",
        f"no account may send as {sender}: asked were {', '.join(accounts)}",
        remedy=f"add {sender} or {domain_of(sender)} to the `senders` of an account, or an account that may send as "
        "it to the directory (or a sender route), then `mpu retry` the mail",
    )


# --- in which order ---------------------------------------------------------------------------------------------------


class SenderRoutes:
    """The sender routes of all directories, made for look-ups. Of two routes of one sender the first counts."""

    __slots__ = ("_by_sender", "accounts")

    def __init__(self, routes: Iterable[SenderRoute] = ()) -> None:
        self._by_sender: dict[str, tuple[str, ...]] = {}
        for route in routes:
            for sender in route.senders:
                self._by_sender.setdefault(sender_entry(sender), route.accounts)
        self.accounts = frozenset(name for accounts in self._by_sender.values() for name in accounts)

    def entry(self, key: str) -> str | None:
        """The address, or its @domain, that has a route; None: none. The null sender has none."""
        if not key:
            return None
        if key in self._by_sender:
            return key
        domain = domain_of(key)
        return domain if domain in self._by_sender else None

    def of(self, key: str) -> tuple[str, ...] | None:
        """The accounts of the most specific route."""
        entry = self.entry(key)
        return None if entry is None else self._by_sender[entry]


class Shares:
    """Whose turn it is among the accounts of a directory that balances.

    Each account has a clock that goes on by 1/weight with each turn; the one that is furthest behind is next, the
    directory's order decides between equals. In any stretch that begins when all are equal each has its exact share.
    Who could not be used for a while has nothing to catch up on.
    """

    __slots__ = ("_clocks", "_now", "_steps", "accounts", "weights")

    def __init__(self, accounts: Sequence[str], weights: Sequence[int] = ()) -> None:
        self.accounts = tuple(accounts)
        self.weights = tuple(weights)
        padded = [*self.weights, *[1] * (len(self.accounts) - len(self.weights))]
        unit = math.lcm(*(weight for weight in padded if weight)) if any(padded) else 1  # whole numbers: no drift
        self._steps = {
            name: unit // weight if weight else 0 for name, weight in zip(self.accounts, padded, strict=False)
        }
        self._clocks = dict.fromkeys(self.accounts, 0)
        self._now = 0  # of whoever was next the last time: nobody is behind it

    def order(self) -> list[str]:
        """Who is asked first; those of weight 0 come last."""
        now = self._now
        return sorted(self.accounts, key=lambda name: (not self._steps[name], max(self._clocks[name], now)))

    def take(self, account: str) -> None:
        """It had a turn. One that is none of the directory's (a sender route's) counts for nobody."""
        step = self._steps.get(account)
        if step:
            self._now = max(self._clocks[account], self._now)
            self._clocks[account] = self._now + step


def order_of(
    directory: Directory,
    key: str,
    *,
    routes: SenderRoutes | None,
    send_as: SendAsOf,
    shares: Shares | None = None,
    last: str | None = None,
) -> Sequence[str]:
    """The accounts to ask for a message of this sender ("": the null sender), best first.

    `shares`: of a directory that balances. `last`: the account that an earlier transaction of the message went through;
    it keeps the message, whose turn it is or not.
    """
    routed = routes.of(key) if routes is not None else None
    if routed is not None:
        return routed
    if directory.strategy is Strategy.BALANCE:
        order = (shares or Shares(directory.accounts, directory.weights)).order()
        return sorted(order, key=last.__ne__) if last is not None else order
    if directory.strategy is Strategy.BY_SENDER:
        return sorted(directory.accounts, key=lambda name: _RANKS[_ground_by_sender(send_as(name), key)])
    return directory.accounts


# --- for people -------------------------------------------------------------------------------------------------------


class Ground(StrEnum):
    """Why an account stands where it stands."""

    SENDER_ROUTE = "sender_route"
    ORDER = "order"
    TURN = "turn"  # balance
    ADDRESS = "address"  # its `senders` name the address,
    DOMAIN = "domain"  # or the domain
    ANYONE = "anyone"  # it has no `senders`
    REST = "rest"


_RANKS = {Ground.ADDRESS: 0, Ground.DOMAIN: 1, Ground.ANYONE: 2, Ground.REST: 3}


@dataclass(frozen=True, slots=True)
class Standing:
    """One account that was asked for a message. `detail`: the entry that names the sender, or the weight."""

    account: str
    ground: Ground
    detail: str = ""
    refusal: Refusal | None = None


def standings(
    directory: Directory,
    key: str,
    *,
    routes: SenderRoutes | None,
    send_as: SendAsOf,
    in_the_way: InTheWay,
    shares: Shares | None = None,
) -> tuple[Standing, ...]:
    """Every account for a message of this sender, best first, with the ground of its place and what is in its way."""
    entry = routes.entry(key) if routes is not None else None
    found = []
    for account in order_of(directory, key, routes=routes, send_as=send_as, shares=shares):
        ground, detail = Ground.ORDER, ""
        if entry is not None:
            ground, detail = Ground.SENDER_ROUTE, entry
        elif directory.strategy is Strategy.BALANCE:
            position = directory.accounts.index(account)
            ground, detail = Ground.TURN, str(directory.weights[position] if directory.weights else 1)
        elif directory.strategy is Strategy.BY_SENDER:
            ground = _ground_by_sender(send_as(account), key)
            detail = {Ground.ADDRESS: key, Ground.DOMAIN: domain_of(key)}.get(ground, "")
        found.append(Standing(account, ground, detail, _refusal(account, key, send_as, in_the_way, ())))
    return tuple(found)


def _ground_by_sender(allowed: SendAs | None, key: str) -> Ground:
    if allowed is None:
        return Ground.REST
    if not allowed.senders:
        return Ground.ANYONE
    if key and key in allowed.senders:
        return Ground.ADDRESS
    return Ground.DOMAIN if key and domain_of(key) in allowed.senders else Ground.REST
