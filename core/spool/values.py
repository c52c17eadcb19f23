"""What passes between the directory spool and those who use it: values, and the two handles Opened and Claim.

Opened and Claim own a file descriptor and with it the lock of one message. A claim is in flight until `dispose` or
`put_back_now` closes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from core.domain.message import MessageIdentity, State
from core.domain.outcome import RecipientOutcome, Way
from core.domain.sidecar import Sidecar
from core.errors import MessageChanged, MessageRejected

if TYPE_CHECKING:
    from core.spool.place import Place


@dataclass(slots=True, eq=False)
class Opened:
    """A message that is ready, open and locked, not yet claimed. `release` or `claim` it."""

    place: Place = field(repr=False)  # the directory as it was opened then
    fd: int  # read-only; -1 once closed
    identity: MessageIdentity
    file_name: bytes  # the name it has now; differs from identity.name if that was taken when it was put back
    inode: int
    arrived_at: float  # mtime, seconds since the epoch
    sidecar: Sidecar | None = None
    reject: MessageRejected | None = None  # not None: only fit for badmail (over the size cap, empty and rested)
    lock_fd: int = field(default=-1, repr=False)  # where files can't be locked themselves

    def __post_init__(self) -> None:
        self.place.handles.add(self)

    @property
    def size(self) -> int:
        """Octets."""
        return self.identity.size

    @property
    def changed(self) -> bool:
        """Whether somebody wrote to it since it was looked at."""
        now = os.fstat(self.fd)
        return now.st_size != self.identity.size or now.st_mtime_ns != self.identity.mtime_ns


@dataclass(slots=True, eq=False)
class Claim:
    """The exclusive right to one message: `x.eml.lck`, locked. It is the Journal of its attempts (spool.md, "Log")."""

    opened: Opened
    number: int  # of this owner's claims
    token: str  # of this claim among all owners; a recovered claim keeps that of the dead owner
    logged: bool = False  # there are records of it in our log
    way: Way | None = None  # of the attempt that begins next, for the log
    discarded: bool = False  # unlinked before it was disposed of: its name may be another message's by now

    @property
    def fd(self) -> int:
        return self.opened.fd

    @property
    def identity(self) -> MessageIdentity:
        return self.opened.identity

    @property
    def file_name(self) -> bytes:
        """The name it had before it was claimed."""
        return self.opened.file_name

    @property
    def sidecar(self) -> Sidecar | None:
        """As it was when it was claimed."""
        return self.opened.sidecar

    @property
    def arrived_at(self) -> float:
        return self.opened.arrived_at

    @property
    def size(self) -> int:
        return self.opened.identity.size

    def begin(self, recipients: Sequence[str]) -> None:
        """The final dot for these leaves now, unless this raises: StorageFull, StorageBroken, MessageChanged."""
        self._check_unchanged()
        self.opened.place.log.begin(self, recipients)
        self.logged = True

    def _check_unchanged(self) -> None:
        """A small message was read whole before its envelope: somebody may have written to the file since."""
        if self.opened.fd < 0:
            raise MessageChanged("the file was let go of while it was sent")
        now, identity = os.fstat(self.opened.fd), self.opened.identity
        if now.st_size != identity.size or now.st_mtime_ns != identity.mtime_ns:
            raise MessageChanged(
                f"the file changed while it was sent: {identity.size} octets before, {now.st_size} now"
            )

    def outcome(self, outcomes: Sequence[RecipientOutcome]) -> None:
        """Log what is known now. Raises StorageFull, StorageBroken; a wholly sent message is then for `discard_now`."""
        self.opened.place.log.outcome(self, outcomes)
        self.logged = True


class Verdict(StrEnum):
    """What the logs say of a claim whose owner died (spool.md, "Recovery")."""

    SETTLED = "settled"  # every recipient that was begun has its outcome: act on them, send nothing
    UNKNOWN = "unknown"  # begun without an outcome, or the machine was restarted since
    UNTOUCHED = "untouched"  # nothing was begun: put back, no attempt counted


@dataclass(frozen=True, slots=True)
class Recovered:
    """A message whose owner died, claimed again by us. Commit what its log says, then dispose of `claim`.

    Recipients of the envelope that are in neither `outcomes` nor `unknown` were not tried, unless `restarted`.
    """

    claim: Claim
    verdict: Verdict
    outcomes: tuple[RecipientOutcome, ...] = ()
    unknown: tuple[str, ...] = ()  # begun, and no outcome came
    restarted: bool = False  # the machine was restarted: any recipient without an outcome may have been sent to
    ways: Mapping[str, Way] = field(default_factory=dict)  # by recipient, of the attempts that had begun

    @property
    def identity(self) -> MessageIdentity:
        return self.claim.identity

    @property
    def sidecar(self) -> Sidecar | None:
        return self.claim.sidecar


@dataclass(slots=True)  # one a message (core/domain)
class Delete:
    """All recipients are done: unlink it."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class PutBack:
    """It waits again. `sidecar` None: as it was before (a fault of the account)."""

    claim: Claim
    sidecar: Sidecar | None = None


@dataclass(frozen=True, slots=True)
class ToBadmail:
    """To the dead letters, with `reason_text` beside it in plain words."""

    claim: Claim
    sidecar: Sidecar
    reason_text: str


@dataclass(frozen=True, slots=True)
class Hold:
    """To `x.eml.hold`, until an operator releases it."""

    claim: Claim
    sidecar: Sidecar


Disposal = Delete | PutBack | ToBadmail | Hold


@dataclass(slots=True)  # one a message (core/domain)
class Disposed:
    """What became of one disposal. Not ok: `error` says why; `pending` ones are kept locked and tried again.

    Ok with an `error`: it is where it belongs, and something beside it is not as usual.
    """

    disposal: Disposal
    ok: bool
    error: str = ""
    remedy: str = ""
    pending: bool = False
    file_name: bytes = b""  # relative to the directory; empty if deleted


@dataclass(frozen=True, slots=True)
class Entry:
    """A message as it lies in the directory."""

    identity: MessageIdentity
    state: State
    file_name: bytes  # relative to the directory: b"x.eml", b"x.eml.lck", b"badmail/x.eml", b"new/1.2.host"
    size: int  # octets
    mtime: float  # seconds since the epoch
    sidecar: Sidecar | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many messages are in which state; disjoint. Sizes and ages where cheap."""

    waiting: int = 0
    claimed: int = 0
    deferred: int = 0
    held: int = 0
    badmail: int = 0
    size_bytes: int | None = None  # of all of them
    oldest_mtime: float | None = None  # of waiting and deferred, seconds since the epoch


@dataclass(frozen=True, slots=True)
class CheckStep:
    """One try of `check`. Only a failed `required` one makes the directory unusable."""

    name: str  # list, create, rename, unlink, sync, lease, flock, inotify, badmail, space
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = False
