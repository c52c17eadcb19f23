"""Address lists of header fields (RFC 5322 section 3.4), read in one pass: linear, no recursion, nothing repaired.

Display names, quoted strings, encoded words, nested comments and groups are understood. A source route in brackets is
dropped (RFC 5321 appendix C). `;` outside a group separates like a comma, as some writers have it. An entry that is no
mailbox is reported with its reason and does not spoil the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO

from core.domain.address import AddressError, Mailbox, parse_mailbox

_SHOWN = 320  # characters of a wrong entry that are reported

# A group that is repeated possessively must begin with an octet that decides, and then not fail (tests/unit/
# test_patterns.py). So quoted strings may lack their closing quote where a bracket has to follow: there is none then.
_ATOM = r'[^\s"(<>,;:\[\]=\\@)]++'
_WORDS = r'[^\s"(<>,;:\[\]=\\@)][^"(<>,;:\[\]=\\@)]*+'  # atoms and the white space between and behind them
_ONE = re.compile(rf'\s*+(?P<display>"[^"\\]*+"|(?:{_WORDS})?+)\s*+<(?P<address>{_ATOM}@{_ATOM})>\s*+')
_BARE = re.compile(rf"\s*+({_ATOM}@{_ATOM})\s*+")
_TOKEN = re.compile(
    r'(?P<quoted>"[^"\\]*+(?:\\.[^"\\]*+)*+")'
    r"|(?P<word>=\?[^?\s]++\?[BbQq]\?[^?\s]*+\?=)"
    r"|(?P<space>\s++)"
    r"|(?P<literal>\[[^\[\]\\]*+\])"
    r"|(?P<special>[<>,;:(])"
    r'|(?P<text>[^\s"(<>,;:\[=]++|.)',
    re.DOTALL,
)
_ANGLE = re.compile(r'<([^<>"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"?+[^<>"]*+)*+)>', re.DOTALL)
_COMMENT_PART = re.compile(r"[()]|\\.", re.DOTALL)
_ROUTE = re.compile(r'@[^:"<>]*+:')


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a list: a mailbox, or the reason why it is none."""

    text: str  # as written, shortened where long
    display: str  # as written, quotes and encoded words included
    mailbox: Mailbox | None
    reason: str = ""


def parse_address_list(value: bytes) -> list[Entry]:
    """The entries of an unfolded field value, group members included, in order."""
    return list(address_entries(value))


def address_entries(value: bytes) -> Iterator[Entry]:
    """The same one by one: a list of 16 MiB has millions."""
    text = value.decode("utf-8", "surrogateescape")
    one = _ONE.fullmatch(text)
    if one is not None:
        return iter((_entry(text, one["display"], one["address"]),))
    bare = _BARE.fullmatch(text)
    if bare is not None:
        return iter((_entry(text, "", bare[1]),))
    return _Parser(text).run()


def without_route(angle: str) -> str:
    """What stands in angle brackets, without white space around it and without a source route."""
    angle = angle.strip()
    route = _ROUTE.match(angle)
    return angle[route.end() :].strip() if route else angle


def _entry(text: str, display: str, address: str) -> Entry:
    shown = text.strip()[:_SHOWN]
    try:
        return Entry(shown, display.strip(), parse_mailbox(address))
    except AddressError as error:
        return Entry(shown, display.strip(), None, str(error))


class _Parser:
    """One pass over a list. What is gathered of the present entry lies in the attributes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.entries: list[Entry] = []
        self.in_group = False
        self.position = 0
        self.words = StringIO()  # a list would take 60 octets for each
        self.begin(0)

    def begin(self, at: int) -> None:
        self.start = at
        if self.words.tell():
            self.words = StringIO()
        self.angle: str | None = None
        self.angle_at = 0
        self.wrong = ""

    def run(self) -> Iterator[Entry]:
        """All entries."""
        text = self.text
        size = len(text)
        while self.position < size:
            token = _TOKEN.match(text, self.position)
            if token is None:  # pragma: no cover - the pattern takes any character
                break
            kind = token.lastgroup
            at = self.position
            self.position = token.end()
            if kind == "special":
                self.special(token[0], at)
                yield from self.entries
                self.entries.clear()
            elif kind == "space":
                self.words.write(" ")
            elif token[0] == '"':
                self.wrong = "a quoted string is not closed"
                self.position = size
            else:
                self.word(token[0])
        self.finish(size)
        yield from self.entries

    def word(self, text: str) -> None:
        if self.angle is not None:
            self.wrong = self.wrong or "something follows the address in brackets"
        self.words.write(text)

    def special(self, char: str, at: int) -> None:
        if char == "(":
            self.comment(at)
        elif char == "<":
            self.bracket(at)
        elif char == ">":
            self.wrong = self.wrong or "a closing bracket has no opening one"
        elif char == ":":
            self.colon()
        else:
            self.finish(at)
            if char == ";":
                self.in_group = False

    def bracket(self, at: int) -> None:
        match = _ANGLE.match(self.text, at)
        if match is None:
            self.wrong = self.wrong or "a bracket is not closed"
            return
        if self.angle is not None:
            self.wrong = "two addresses without a comma between them"
        self.angle = match[1]
        self.angle_at = at
        self.position = match.end()

    def colon(self) -> None:
        """The end of a group's name; anything else that holds a colon is wrong."""
        if self.wrong:
            return
        if self.in_group or self.angle is not None or "@" in (name := self.words.getvalue()) or not name.strip():
            self.wrong = "a colon stands where none can be"
            return
        self.in_group = True
        self.begin(self.position)

    def comment(self, at: int) -> None:
        depth = 0
        for part in _COMMENT_PART.finditer(self.text, at):
            if part[0] == "(":
                depth += 1
            elif part[0] == ")":
                depth -= 1
                if depth == 0:
                    self.words.write(" ")
                    self.position = part.end()
                    return
        self.wrong = "a comment is not closed"
        self.position = len(self.text)

    def finish(self, end: int) -> None:
        """The entry ends at `end`."""
        address = without_route(self.angle) if self.angle is not None else self.words.getvalue().strip()
        if self.wrong:
            self.entries.append(Entry(self.text[self.start : end].strip()[:_SHOWN], "", None, self.wrong))
        elif address or self.angle is not None:
            display = self.text[self.start : self.angle_at] if self.angle is not None else ""
            self.entries.append(_entry(self.text[self.start : end], display, address))
        self.begin(end + 1)
