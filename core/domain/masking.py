"""Whether a text repeats a secret: as it is, or in a spelling that people and programs read back.

Looked through are percent-encoding, HTML entities, escapes of JSON, base64 and hex, several deep, whatever the case and
the blanks in between. A part of a secret, and what was made of it otherwise, is not found.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus, unquote

MASK = "[redacted]"
_SHORTEST = 4  # characters of a secret; a shorter one may be a part of any word
_DEEP = 3  # codings on top of one another
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_BLANK = re.compile(r"[\s\\+\x00-\x20\x7f]+")  # a plus is a blank in a form
_BASE64_PLUS = str.maketrans("-_", "+/")


def without(text: str, secrets: Iterable[str | None]) -> str:
    """The text with every secret masked, as it is or in a form's coding."""
    for secret in secrets:
        if secret and len(secret) >= _SHORTEST:
            for form in sorted(_spelled(secret), key=len, reverse=True):
                text = text.replace(form, MASK)
    return text


def repeats(text: str, secrets: Iterable[str | None]) -> bool:
    """Whether one of the secrets can be read from the text."""
    sought = {form for secret in secrets if secret for form in _sought(secret)}
    return bool(sought) and any(form in read for read in _readings(text) for form in sought)


def _spelled(secret: str) -> set[str]:
    return {secret, quote_plus(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}


def _sought(secret: str) -> Iterator[str]:
    if len(_folded(secret)) < _SHORTEST:
        return
    yield _folded(secret)
    for spelled in {secret, quote_plus(secret), quote(secret, safe="")}:
        data = spelled.encode("utf-8", "surrogatepass")
        yield data.hex()
        for before in range(3):  # behind other octets ("client:") the same ones are other characters
            coded = b64encode(bytes(before) + data).decode()
            whole = (before + len(data)) * 8 // 6  # characters that what follows does not change
            inner = _folded(coded[-(-before * 8 // 6) : whole])
            if len(inner) >= _SHORTEST:
                yield inner


def _readings(text: str) -> set[str]:
    """The text and what it decodes to, folded."""
    found = layer = {text}
    for _ in range(_DEEP):
        layer = {
            decoded for read in layer for decoded in (unquote(read), html.unescape(read), _unescaped(read))
        } - found
        found = found | layer
    return {_folded(form) for read in found for form in (read, read.translate(_BASE64_PLUS))}


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), text)


def _folded(text: str) -> str:
    return _BLANK.sub("", text).casefold()
