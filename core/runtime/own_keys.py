"""The service's own keys, wherever they were loaded from: what goes to no server as an account's secret.

Compared are values, not places, so that a copy or a hard link is known too: the encryption keys and the API key that
the start was given, those in `secret.key` and `api-key` of the data directory, the encryption keys in use, and every
API key that the database knows (by its digest).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from core.settings import Settings
from core.store import keys
from core.store.store import Store

MAX_FILE_CHARACTERS = 65_536
LEAST_CHARACTERS = 16  # what is shorter is no key, and may be part of anything
_MADE = re.compile(rf"(?=({keys.PREFIX}[A-Za-z0-9_-]{{43}}))")  # at any place, even one within another


class OwnKeys:
    """Of one process. May be asked from any thread. `store`: None where there is no database."""

    def __init__(self, settings: Settings, store: Store | None = None) -> None:
        self._files = (settings.secret_key_file, settings.api_key_file)
        given = [secret.get_secret_value() for secret in (settings.secret_key, settings.api_key) if secret is not None]
        self._given = frozenset(word for text in given for word in re.split(r"[,\s]+", text))
        self._store = store

    def any_in(self, text: str) -> bool:
        """Whether one of them is the text, or a part of it. Blocks. Raises DatabaseUnavailable."""
        words = [word.rstrip("=") for word in self._words()]  # without the padding it is the same Fernet key
        if any(word in text for word in words if len(word) >= LEAST_CHARACTERS):
            return True
        if self._store is None:
            return False
        known = self._store.read_now(keys.digests)
        return any(keys.digest(candidate) in known for candidate in _candidates(text))

    def _words(self) -> Iterator[str]:
        yield from self._given
        if self._store is not None:
            yield from self._store.secrets.keys
        for path in self._files:
            yield from _words_of(path)


def _words_of(path: Path) -> list[str]:
    """A key file's words without its comments; none where it isn't there or can't be read."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            lines = file.read(MAX_FILE_CHARACTERS).splitlines()
    except OSError:
        return []
    return [word for line in lines if not line.startswith("#") for word in line.split()]


def _candidates(text: str) -> Iterator[str]:
    """What may be an API key: each word, and within them what looks like one that we made."""
    yield from text.split()
    yield from _MADE.findall(text)
