"""What a directory's settings must be to be saved: sense among the fields, its schedule, and where it may lie."""

from __future__ import annotations

import os
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime

from core.domain.account import Directory, Strategy
from core.errors import FieldError
from core.scheduler import cron_trigger
from core.settings import Settings
from core.spool.names import BADMAIL, STATE_DIRECTORY


def rules(directory: Directory, now: float) -> list[FieldError]:
    """What a directory's fields ask of themselves and one another. Pure, but for the time zones of the system."""
    errors = [
        FieldError(f"/accounts/{position}", "twice", f"{name!r} is named before")
        for position, name in enumerate(directory.accounts)
        if name in directory.accounts[:position]
    ]
    if not directory.accounts:
        errors.append(FieldError("/accounts", "required", "at least one is needed"))
    if directory.weights and directory.strategy is not Strategy.BALANCE:
        errors.append(FieldError("/weights", "conflict", "only the strategy balance has weights; null removes them"))
    elif directory.weights and len(directory.weights) != len(directory.accounts):
        detail = f"there are {len(directory.accounts)} accounts and {len(directory.weights)} weights: one for each"
        errors.append(FieldError("/weights", "wrong_length", detail))
    elif directory.weights and not any(directory.weights):
        errors.append(FieldError("/weights", "all_zero", "at least one account needs a share"))
    if directory.schedule is not None and directory.interval_seconds is not None:
        errors.append(FieldError("/interval_seconds", "conflict", "there is a schedule; only one of them can be set"))
    if directory.retry_initial_seconds > directory.retry_max_seconds:
        errors.append(FieldError("/retry_initial_seconds", "out_of_range", "is more than retry_max_seconds"))
    return errors + timing_rules(directory.schedule, directory.schedule_timezone, now)


def timing_rules(schedule: str | None, timezone: str, now: float) -> list[FieldError]:
    """Whether the schedule can be read and comes around at all."""
    try:
        zone = zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return [FieldError("/schedule_timezone", "unknown_timezone", f"there is no IANA time zone {timezone!r}")]
    if schedule is None:
        return []
    try:
        trigger = cron_trigger(schedule, zone)
        following = trigger.get_next_fire_time(None, datetime.fromtimestamp(now, UTC))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        return [FieldError("/schedule", "wrong_form", f"is no cron line of five fields: {error}")]
    if following is None:
        return [FieldError("/schedule", "never", "comes never around")]
    return []


def path_rules(path: str, settings: Settings) -> list[FieldError]:
    """Whether a directory may lie there. `path` is resolved. Blocks: looks at the file system."""
    if not settings.pickup_roots:
        detail = "no pickup roots are set; MPU_PICKUP_ROOTS names where pickup directories may lie"
        return [FieldError("/path", "no_pickup_roots", detail)]
    roots = [os.path.realpath(root) for root in settings.pickup_roots]
    if not any(_within(path, root) for root in roots):
        detail = f"lies under none of the pickup roots {', '.join(roots)} (MPU_PICKUP_ROOTS)"
        return [FieldError("/path", "outside_roots", detail)]
    data_dir = os.path.realpath(settings.data_dir)
    if _within(data_dir, path) or (_within(path, data_dir) and not settings.demo):  # the demo has all in one folder
        return [FieldError("/path", "data_directory", "is, contains or lies in MPU's data directory")]
    if own := own_folder(path):
        return [FieldError("/path", "own_folder", own)]
    if not os.path.exists(path):
        return [FieldError("/path", "not_found", "there is no such directory")]
    if not os.path.isdir(path):
        return [FieldError("/path", "not_a_directory", "is no directory")]
    return []


def own_folder(path: str) -> str | None:
    """Why a (resolved) path is one of the folders that MPU makes in a pickup directory, or lies there; None: it isn't.

    What lies in `badmail/` was given up, partly sent perhaps: as a pickup directory it would go out again.
    """
    state, badmail = os.fsdecode(STATE_DIRECTORY), os.fsdecode(BADMAIL)
    parts = path.split(os.sep)
    if state in parts:
        return f"{state} holds what MPU keeps of a directory, no mail"
    for position, part in enumerate(parts):
        above = os.sep.join(parts[:position])
        if part == badmail and os.path.lexists(os.path.join(above, state)):
            return f"lies in {badmail} of the pickup directory {above}, whose mail must not be sent again unasked"
    return None


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def remedy_of(errors: Sequence[FieldError]) -> str:
    """What to do about the worst of them."""
    codes = {error.code for error in errors}
    if codes & {"no_pickup_roots", "outside_roots"}:
        return "Set MPU_PICKUP_ROOTS and start again, or take a path under it."
    if "not_found" in codes:
        return "Create it, owned by the group that applications and MPU share."
    if "own_folder" in codes:
        return "Take a path of its own; POST /queue/messages/retry sends badmail again."
    return ""
