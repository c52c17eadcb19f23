"""Encoded words (RFC 2047): read for people, written where a server can't take raw octets in a header.

Reading never fails and is bounded: what can't be decoded is shown as it is. It is our own, since what `email.header`
makes of odd words differs from one Python to the next. Writing goes by field: phrases and comments in address fields,
words elsewhere; MIME fields (Content-*) are not touched, their parameters have another syntax.
"""

from __future__ import annotations

import binascii
import codecs
import re
from io import StringIO
from itertools import groupby

from core.domain.address import AddressError, parse_mailbox

_READ_LIMIT = 2000  # octets of a value that are looked at
_WORD_OCTETS = 36  # of UTF-8 in one encoded word: 48 characters of base64, 60 with its frame

_ADDRESS_FIELDS = frozenset(
    {
        b"from", b"sender", b"reply-to", b"to", b"cc", b"disposition-notification-to", b"return-receipt-to",
        b"resent-from", b"resent-sender", b"resent-to", b"resent-cc", b"resent-reply-to",
    }
)  # fmt: skip
_ADDRESS_TOKEN = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?'  # one that is not closed goes to the end
    r"|<[^<>]*+>"
    r"|\([^()]*+\)"
    r'|([^\s"<>(),:;]++)'
    r"|[ \t>),:;]++|.",
    re.DOTALL,
)
_RAW_WORD_MORE = re.compile(r'[ \t]++[^\s"<>(),:;@]*[^\x00-\x7f][^\s"<>(),:;@]*+')  # of the same phrase
# charset, language (RFC 2231 section 5), encoding, text; blanks in the text are wrong, and common
_WORD = re.compile(r"=\?([^?*\s]{1,64}+)(?:\*[^?*\s]{0,64}+)?\?([BbQq])\?([^?]*+)\?=")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*+={0,2}")
_QUOTED = re.compile(rb"=([0-9A-Fa-f]{2})")
_RAW = re.compile(r"[^\x00-\x7f]")
_WORD_END = re.compile(r"[^ \t]*+")
_BLANKS = re.compile(r"[ \t]++")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

# Text encodings of Python's that no mail is written in: some warn, some take a square of time, some differ by system.
_NO_CHARSETS = frozenset(
    {
        "charmap", "idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape",
        "unicode-internal", "utf-8-sig",
    }
)  # fmt: skip


def decode_words(value: bytes) -> str:
    """An unstructured value as people read it, at most 2,000 octets of it."""
    value = value[:_READ_LIMIT]
    text = value.decode("utf-8", "replace") if _is_utf8(value) else value.decode("latin-1")
    return _decoded(text) if "=?" in text else text


def _decoded(text: str) -> str:
    done: list[str] = []
    run: list[tuple[str, bytes, str]] = []  # with nothing but white space between them: charset, octets, as written
    end = 0
    for match in _WORD.finditer(text):
        octets = _octets(match[2], match[3])
        if octets is None:
            continue  # stays text
        between = text[end : match.start()]
        if not run or between.strip():
            done += (_shown(run), between)
            run = []
        run.append((match[1].lower(), octets, match[0]))
        end = match.end()
    return "".join((*done, _shown(run), text[end:]))


def _octets(encoding: str, text: str) -> bytes | None:
    """What the text of a word stands for; None where it is not of that encoding (RFC 2047 section 4)."""
    if not text.isascii():
        return None
    if encoding in "Qq":
        return _QUOTED.sub(lambda match: bytes((int(match[1], 16),)), text.replace("_", " ").encode("ascii"))
    text = "".join(text.split())
    if not _BASE64.fullmatch(text):
        return None
    text = text.rstrip("=")
    return binascii.a2b_base64(text + "=" * (-len(text) % 4)) if len(text) % 4 != 1 else None


def _shown(run: list[tuple[str, bytes, str]]) -> str:
    """White space between them is none (section 6.2); many writers part a character's octets between two words."""
    done: list[str] = []
    for charset, group in groupby(run, key=lambda word: word[0]):
        words = list(group)
        try:
            text = b"".join(octets for _, octets, _ in words).decode(_codec(charset))
            text.encode()  # halves of surrogate pairs are no text
        except (LookupError, ValueError):
            text = " ".join(written for _, _, written in words)
        done.append(text)
    return "".join(done)


def _codec(charset: str) -> str:
    """Python's name of a charset. Raises LookupError, ValueError."""
    name = codecs.lookup(charset).name
    if name.replace("_", "-") in _NO_CHARSETS:
        raise LookupError(charset)
    return name


def encode_field(name: bytes, value: bytes) -> bytes | None:
    """The unfolded value of a field in ASCII; None where that can't be done without changing what it means."""
    if name.startswith(b"content-"):
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    encoded = _encode_addresses(text) if name in _ADDRESS_FIELDS else _encode_words(text)
    return encoded.encode("ascii") if encoded.isascii() else None


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return len(value) == _READ_LIMIT and error.reason == "unexpected end of data"  # cut within a character
    return True


def _encode_words(text: str) -> str:
    """Runs of words that aren't ASCII, with the white space between them, as encoded words."""
    done = StringIO()
    position = 0  # behind what is written
    while (raw := _RAW.search(text, position)) is not None:
        at = raw.start()
        start = max(position, text.rfind(" ", position, at) + 1, text.rfind("\t", position, at) + 1)
        end = _behind_word(text, at)
        while (space := _BLANKS.match(text, end)) is not None:
            behind = _behind_word(text, space.end())
            if text[space.end() : behind].isascii():
                break
            end = behind
        done.write(text[position:start])
        done.write(_encode(text[start:end]))
        position = end
    done.write(text[position:])
    return done.getvalue()


def _behind_word(text: str, at: int) -> int:
    word = _WORD_END.match(text, at)
    return word.end() if word else at


def _encode_addresses(text: str) -> str:
    done = StringIO()
    position = 0
    while (token := _ADDRESS_TOKEN.match(text, position)) is not None:
        end = token.end()
        while token.lastindex and (more := _RAW_WORD_MORE.match(text, end)) is not None:
            end = more.end()
        done.write(_encode_token(text[position:end]))
        position = end
    return done.getvalue()


def _encode_token(token: str) -> str:
    if token.isascii():
        return token
    if token[0] == '"':
        if len(token) < 2 or token[-1] != '"':
            return token
        return _encode(_ESCAPE.sub(r"\1", token[1:-1]))
    if token[0] == "(":
        return f"({_encode(token[1:-1])})"
    if "@" not in token:
        return _encode(token)
    bare = token.strip("<>").strip()
    try:
        ascii_form = str(parse_mailbox(bare))
    except AddressError:
        return token
    return f"<{ascii_form}>" if token[0] == "<" else ascii_form


def _encode(text: str) -> str:
    """Encoded words of whole characters, folded between them (RFC 2047 section 2)."""
    words: list[str] = []
    octets = b""
    for char in text:
        one = char.encode()
        if len(octets) + len(one) > _WORD_OCTETS:
            words.append(_word(octets))
            octets = b""
        octets += one
    words.append(_word(octets))
    return "\r\n ".join(words)


def _word(octets: bytes) -> str:
    return f"=?utf-8?B?{binascii.b2a_base64(octets, newline=False).decode()}?="
