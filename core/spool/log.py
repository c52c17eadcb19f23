"""The outcome log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.domain.outcome import RecipientOutcome

if TYPE_CHECKING:
    from core.spool.values import Claim


class OutcomeLog:
    """To be filled."""

    def begin(self, claim: Claim, recipients: Sequence[str]) -> None:
        raise NotImplementedError

    def outcome(self, claim: Claim, outcomes: Sequence[RecipientOutcome]) -> None:
        raise NotImplementedError
