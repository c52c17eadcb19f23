"""What can go wrong in the relay, named by cause. Nothing here knows of HTTP; api/errors.py maps these to answers.

Every error carries `code` (stable, snake_case), a sentence for a person, and, where there is one, what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class RelayError(Exception):
    """Base of all errors of the relay."""

    code = "error"

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


# --- one message -----------------------------------------------------------------------------------------------------


class MessageError(RelayError):
    """Something is the matter with one message file; the others go on."""

    code = "message_error"


class MessageRejected(MessageError):
    """The message can never be sent as it is: to badmail, with `enhanced_code` (RFC 3463) and the reason."""

    code = "message_rejected"

    def __init__(self, enhanced_code: str, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail, remedy=remedy)
        self.enhanced_code = enhanced_code


class SenderNotAllowed(MessageRejected):
    """No account may send as its envelope's sender."""

    code = "sender_not_allowed"


class MessageNotReady(MessageError):
    """A writer may still be at work, or the file must rest first. Left untouched, for `retry_after_seconds`."""

    code = "being_written"

    def __init__(self, detail: str, *, retry_after_seconds: float, remedy: str = "") -> None:
        super().__init__(detail, remedy=remedy)
        self.retry_after_seconds = retry_after_seconds


class MessageNotDue(MessageError):
    """Deferred: its due time (seconds since the epoch) lies ahead."""

    code = "not_due"

    def __init__(self, due_at: float) -> None:
        super().__init__("not due yet")
        self.due_at = due_at


class MessageGone(MessageError):
    """The file vanished or its name leads to another file now: skipped in silence."""

    code = "gone"


class MessageBusy(MessageError):
    """Somebody else holds the lock of the file."""

    code = "busy"


class MessageUnreadable(MessageError):
    """The service's user may not read the file (the detail names owner and mode). Left, with an alert."""

    code = "unreadable"


class MessageRefused(MessageError):
    """Not a mail file we touch: symlink, FIFO, device, hard links, another program's format. Left, with an alert."""

    code = "left_alone"


class MessageChanged(MessageError):
    """The file changed while it was read or sent: the connection is closed before the final dot, the file put back."""

    code = "changed"


# --- places and storage ----------------------------------------------------------------------------------------------


class DirectoryUnavailable(RelayError):
    """A pickup directory is missing, unmounted, replaced or not accessible: unavailable, which is not empty."""

    code = "directory_unavailable"


class StorageFull(RelayError):
    """No space left (ENOSPC, EDQUOT): no new claims until there is room."""

    code = "storage_full"


class StorageBroken(RelayError):
    """An fsync or append failed with EIO. Never retried: stop and recover."""

    code = "storage_broken"


class DatabaseUnavailable(RelayError):
    """The database can't be opened, read or written now."""

    code = "database_unavailable"


class DatabaseNewer(DatabaseUnavailable):
    """The database was written by a newer MPU."""

    code = "database_newer"


class SecretKeyLost(RelayError):
    """The encryption key does not open the secrets in the database. `accounts`: whose password it doesn't open."""

    code = "secret_key_lost"

    def __init__(self, detail: str, *, remedy: str = "", accounts: Sequence[str] = ()) -> None:
        super().__init__(detail, remedy=remedy)
        self.accounts = tuple(accounts)


# --- what was asked for can't be done ---------------------------------------------------------------------------------


class NotFound(RelayError):
    """No such account, directory, message, key, drain or operation."""

    code = "not_found"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"there is no {kind} {name!r}")
        self.kind = kind
        self.name = name


class AlreadyExists(RelayError):
    """The name or path is taken."""

    code = "already_exists"


class InUse(RelayError):
    """It can't be deleted while `used_by` need it."""

    code = "in_use"

    def __init__(self, detail: str, *, used_by: list[str], remedy: str = "") -> None:
        super().__init__(detail, remedy=remedy)
        self.used_by = used_by


class StateConflict(RelayError):
    """The act does not fit the state that the thing is in."""

    code = "state_conflict"

    def __init__(self, detail: str, *, state: str, remedy: str = "") -> None:
        super().__init__(detail, remedy=remedy)
        self.state = state


class PreconditionFailed(RelayError):
    """It is not as the caller supposes: another version than the one named, or there already."""

    code = "precondition_failed"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field: RFC 6901 `pointer` into the body (or `query/name`), stable `code`, a sentence."""

    pointer: str
    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.pointer}: {self.detail}" if self.pointer else self.detail


class InvalidSettings(RelayError):
    """One or more fields are wrong; says which and why."""

    code = "invalid"

    def __init__(self, errors: list[FieldError], *, remedy: str = "") -> None:
        super().__init__("; ".join(map(str, errors)), remedy=remedy)
        self.errors = errors


class CheckFailed(RelayError):
    """A check asked for before saving failed; nothing was saved. `check` is the runtime's CheckView."""

    code = "check_failed"

    def __init__(self, detail: str, *, check: object, remedy: str = "") -> None:
        super().__init__(detail, remedy=remedy)
        self.check = check


class TooMany(RelayError):
    """As many of its kind run as may at once; there is room when one of them has ended."""

    code = "too_many"


class NotRunning(RelayError):
    """The relay is starting, stopping, or refuses to send; the detail says why."""

    code = "not_running"
