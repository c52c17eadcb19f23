"""A message's identity and the states it can be in (spool.md, "Identity").

Never a name alone, since an application may write the same name again; never an inode alone, since file systems reuse
them at once. The id needs no database row and is the same in every state.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum

from core.errors import NotFound

NAME = "[a-z0-9][a-z0-9-]{0,62}"  # of a directory or an account
_ID = re.compile(rf"({NAME})\.([A-Za-z0-9_-]{{1,344}})\.([0-9a-f]{{8}})")


class State(StrEnum):
    """Where a message in a directory stands; disjoint, and readable with `ls`."""

    WAITING = "waiting"  # x.eml, due
    DEFERRED = "deferred"  # x.eml, due later
    CLAIMED = "claimed"  # x.eml.lck
    HELD = "held"  # x.eml.hold
    BADMAIL = "badmail"  # badmail/x.eml


@dataclass(slots=True, unsafe_hash=True)  # one a message (core/domain)
class MessageIdentity:
    """A message: the directory's name, the file name it arrived with (bytes), its mtime in ns, its size in octets."""

    directory: str
    name: bytes
    mtime_ns: int
    size: int

    @property
    def tag(self) -> str:
        """8 hex digits of mtime and size."""
        return hashlib.sha256(b"%d:%d" % (self.mtime_ns, self.size)).hexdigest()[:8]

    @property
    def local_id(self) -> str:
        """The id without the directory's name: what processes that know the directory by another name share."""
        return f"{base64.urlsafe_b64encode(self.name).rstrip(b'=').decode()}.{self.tag}"

    @property
    def id(self) -> str:
        """The id in the API: `<directory>.<base64url of the name>.<8 hex of mtime and size>`."""
        return f"{self.directory}.{self.local_id}"

    @property
    def file_hash(self) -> str:
        """32 hex digits that name the message's sidecar."""
        return hashlib.sha256(self.local_id.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class MessageId:
    """A parsed id: the directory's name, the file name it arrived with, the tag of mtime and size."""

    directory: str
    name: bytes
    tag: str

    @property
    def local_id(self) -> str:
        """As MessageIdentity.local_id."""
        return f"{base64.urlsafe_b64encode(self.name).rstrip(b'=').decode()}.{self.tag}"

    @property
    def id(self) -> str:
        """As MessageIdentity.id."""
        return f"{self.directory}.{self.local_id}"

    @property
    def file_hash(self) -> str:
        """As MessageIdentity.file_hash."""
        return hashlib.sha256(self.local_id.encode()).hexdigest()[:32]


def parse_message_id(text: str) -> MessageId:
    """Take an id of the API apart. Raises NotFound for anything that can't be one."""
    match = _ID.fullmatch(text)
    if match is None:
        raise NotFound("message", text[:400])
    directory, name, tag = match.groups()
    try:
        raw = base64.b64decode(name + "=" * (-len(name) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise NotFound("message", text[:400]) from None
    if b"/" in raw or b"\0" in raw or raw in (b".", b".."):
        raise NotFound("message", text[:400])
    return MessageId(directory, raw, tag)
