"""Which account a message of a directory goes through: the first in order that may be used now."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from core.domain.account import Directory
from core.domain.circuit import Pause


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an account isn't taken: disabled, paused, unknown, tried. `until`: when that ends by itself, if it does."""

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


def choose(
    directory: Directory,
    *,
    known: Collection[str],
    disabled: Collection[str],
    pause_of: Callable[[str], Pause | None],
    tried: Collection[str] = (),
) -> Route:
    """The first account of the directory that is known, enabled, not paused and not yet tried for this message."""
    refusals = []
    for account in directory.accounts:
        if account not in known:
            refusals.append(Refusal(account, "unknown"))
        elif account in disabled:
            refusals.append(Refusal(account, "disabled"))
        elif account in tried:
            refusals.append(Refusal(account, "tried"))
        elif (pause := pause_of(account)) is not None:
            refusals.append(Refusal(account, "account_paused", pause.until))
        else:
            return Route(account, tuple(refusals))
    return Route(None, tuple(refusals))
