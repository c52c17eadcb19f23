"""What saves of accounts and of directories have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from core.errors import FieldError, InvalidSettings, PreconditionFailed, StateConflict

TRIES = 5  # saves that came in between


def too_busy() -> StateConflict:
    """After that many."""
    return StateConflict("others keep changing it", state="changing", remedy="repeat the call")


def there_already(kind: str, name: str) -> PreconditionFailed:
    """To a save that wants to create only."""
    return PreconditionFailed(f"there is {kind} {name!r} already", remedy="leave If-None-Match out to replace it")


def with_defaults(
    kind: type[Any], changes: Mapping[str, Any], at: str = "", *, first: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """A merge patch with the defaults in place of None: `first`, then the kind's. `at`: the pointer of what is patched.

    Raises InvalidSettings where there is none.
    """
    defaults = {field.name: field.default for field in fields(kind)} | dict(first)
    settings = {name: defaults[name] if value is None else value for name, value in changes.items()}
    wrong = [
        FieldError(f"{at}/{name}", "required", "has no default to go back to")
        for name, value in settings.items()
        if value is MISSING
    ]
    if wrong:
        raise InvalidSettings(wrong)
    return settings
