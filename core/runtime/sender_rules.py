"""What lists of senders must be to be saved: an account's `senders`, and the sender routes of all directories."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from core.domain.account import SenderRoute
from core.domain.address import AddressError
from core.domain.senders import SendAs, sender_entry
from core.errors import FieldError


def sender_rules(senders: Sequence[str], pointer: str) -> list[FieldError]:
    """Each an address or an @domain, and none twice. `pointer`: of the list. Pure."""
    errors, seen = [], set[str]()
    for position, text in enumerate(senders):
        if "*" in text and "@" in text:
            detail = f"holds a '*'; a whole domain is written as {text[text.rindex('@') :]!r}"
            errors.append(FieldError(f"{pointer}/{position}", "wrong_form", detail))
            continue
        try:
            entry = sender_entry(text)
        except AddressError as error:
            errors.append(FieldError(f"{pointer}/{position}", "wrong_form", f"is no address and no @domain: {error}"))
            continue
        if entry in seen:
            errors.append(FieldError(f"{pointer}/{position}", "twice", f"{text!r} is named before"))
        seen.add(entry)
    return errors


def sender_route_rules(
    routes: Sequence[SenderRoute], unknown: Collection[str], accounts: Mapping[str, SendAs]
) -> list[FieldError]:
    """Of all routes; `unknown`: accounts that there aren't; `accounts`: what the others may send as. Pure."""
    errors: list[FieldError] = []
    owner: dict[str, int] = {}
    for number, route in enumerate(routes):
        pointer = f"/sender_routes/{number}"
        wrong = sender_rules(route.senders, f"{pointer}/senders")
        errors += wrong
        for position, text in enumerate(route.senders if not wrong else ()):
            first = owner.setdefault(sender_entry(text), number)
            if first != number:
                detail = f"{text!r} has a route already: /sender_routes/{first}"
                errors.append(FieldError(f"{pointer}/senders/{position}", "twice", detail))
        for position, name in enumerate(route.accounts):
            at = f"{pointer}/accounts/{position}"
            if name in unknown:
                errors.append(FieldError(at, "unknown_account", f"there is no account {name!r}"))
            elif name in route.accounts[:position]:
                errors.append(FieldError(at, "twice", f"{name!r} is named before"))
    if not errors:
        for number, position, text in stranded(routes, accounts):
            detail = f"no account of the route may send as {text!r}"
            served = (accounts[name] for name in routes[number].accounts)
            if any(account.allows_some(sender_entry(text)) for account in served):
                detail += ", but as addresses that have a route of their own"
            errors.append(FieldError(f"/sender_routes/{number}/senders/{position}", "conflict", detail))
    return errors


def stranded(routes: Sequence[SenderRoute], accounts: Mapping[str, SendAs]) -> Iterator[tuple[int, int, str]]:
    """Senders of routes whose mail none of the route's accounts may send: number of the route, position, text. Pure.

    It would go to badmail, all of it. Of a domain that is what no route of its own takes.
    """
    routed = {sender_entry(text) for route in routes for text in route.senders}
    for number, route in enumerate(routes):
        served = [accounts[name] for name in route.accounts if name in accounts]
        for position, text in enumerate(route.senders):
            entry = sender_entry(text)
            if not any(account.allows_some(entry, but=routed) for account in served):
                yield number, position, text
