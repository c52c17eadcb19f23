"""An open directory: its descriptors and what is known of it."""

from __future__ import annotations

from core.spool.log import OutcomeLog


class Place:
    """To be filled."""

    log: OutcomeLog
