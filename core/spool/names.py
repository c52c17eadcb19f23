"""File names of messages in each state, as bytes: `x.eml`, `x.eml.lck`, `x.eml.hold`, `badmail/x.eml`, `x~N.eml`."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator

LOCK = b".lck"
HOLD = b".hold"
BADMAIL = b"badmail"
STATE_DIRECTORY = b".mpu"
REASON = b".reason.txt"
MAX_NAME = 240  # octets: leaves room for ~N, .lck and .hold within the 255 of common file systems
_OURS = frozenset({BADMAIL, STATE_DIRECTORY})
_SUFFIXES = (LOCK, HOLD)
_NUMBERED = re.compile(rb"(.*)~(\d{1,9})(\.[^.]*)?", re.DOTALL)
_FIRST_FREE_LIMIT = 100_000

Matcher = Callable[[bytes], bool]


def matcher(patterns: tuple[str, ...]) -> Matcher:
    """Whether a name is that of a waiting message: shell patterns, case-insensitive, on bytes.

    As in a shell `*` does not match a leading dot (a file still under its temporary name), unless the name is nothing
    but the extension: a writer with an empty name meant a mail.
    """
    lowered = [p.encode("utf-8", "surrogateescape").lower() for p in patterns]
    simple = [p[1:] for p in lowered if p[:1] == b"*" and not re.search(rb"[*?\[]", p[1:])]
    whole = frozenset(simple)
    if len(simple) == len(lowered):
        ends = tuple(simple)

        def by_extension(name: bytes) -> bool:
            low = name.lower()
            if not low.endswith(ends) or low.endswith(_SUFFIXES) or low in _OURS:
                return False
            return low[:1] != b"." or low in whole

        return by_extension
    visible = _any_of(lowered)
    hidden = _any_of([p for p in lowered if p[:1] == b"."])

    def by_pattern(name: bytes) -> bool:
        low = name.lower()
        if low.endswith(_SUFFIXES) or low in _OURS:
            return False
        if low[:1] == b".":
            return low in whole or hidden.match(low) is not None
        return visible.match(low) is not None

    return by_pattern


def unmatchable(pattern: str) -> str | None:
    """Why `matcher` lets no name through for this pattern; None: it lets some."""
    low = pattern.lower().encode("utf-8", "surrogateescape")
    tail = re.split(rb"[*?\[\]]", low)[-1]
    if tail.endswith(_SUFFIXES):
        return "matches names that end as those of claimed (.lck) and held (.hold) mails, which are not taken"
    if low in _OURS:
        return "is a folder that MPU makes there itself"
    if low in (b".", b".."):
        return "is no name of a file"
    if "(?!)" in fnmatch.translate(low.decode("latin-1")):  # as of [z-a]
        return "matches no name at all: a range in it is empty"
    return None


def _any_of(patterns: list[bytes]) -> re.Pattern[bytes]:
    parts = [fnmatch.translate(p.decode("latin-1")).encode("latin-1") for p in patterns]
    return re.compile(b"|".join(b"(?:%s)" % p for p in parts) or b"(?!)")


def maildir_name(name: bytes) -> bool:
    """Whether a name in new/ is that of a waiting message: any but hidden ones and ours."""
    return name[:1] != b"." and not name.endswith(_SUFFIXES)


def split_extension(name: bytes) -> tuple[bytes, bytes]:
    """b"x.eml" -> (b"x", b".eml"); without a dot, or with only a leading one, the extension is empty."""
    dot = name.rfind(b".")
    return (name[:dot], name[dot:]) if dot > 0 else (name, b"")


def alternatives(name: bytes) -> Iterator[bytes]:
    """The name, then `x~1.eml`, `x~2.eml`, ... of it."""
    yield name
    stem, extension = split_extension(name)
    for number in range(1, _FIRST_FREE_LIMIT):
        yield b"%s~%d%s" % (stem, number, extension)


def arrival_of(name: bytes) -> bytes | None:
    """What `x~N.eml` was before its name was found taken; None if it is no such name."""
    match = _NUMBERED.fullmatch(name)
    return None if match is None else match[1] + (match[3] or b"")


def base_of(file_name: bytes) -> bytes:
    """The plain name of a message: without its place, `.lck` or `.hold`."""
    base = file_name.rpartition(b"/")[2]
    for suffix in _SUFFIXES:
        if base.endswith(suffix):
            return base[: -len(suffix)]
    return base


def is_plain(name: bytes) -> bool:
    """Whether it can be that of a file in a directory: what is read from a file of others must not lead elsewhere."""
    return 0 < len(name) <= 255 and b"/" not in name and b"\0" not in name and name not in (b".", b"..")


def reason_name(base: bytes) -> bytes:
    """The file beside a dead letter; shortened with a hash where it would be too long."""
    if len(base) + len(REASON) <= 255:
        return base + REASON
    return base[:200] + b"." + hashlib.sha256(base).hexdigest()[:16].encode() + REASON
