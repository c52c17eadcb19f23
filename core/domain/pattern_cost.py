"""How long a regular expression of a user's may take at most, reckoned before it meets any text.

`re` tries one way after the other. Here the ways are counted in which a pattern can be tried on the worst text of some
length, and the steps on all of them. What multiplies them: the places where a search may begin, `*` and `+` (as many
lengths as there is text; the text is shared, so k of them in a row have length**k / k!), `{m,n}`, `?`, alternatives.
What divides them: a word, as it can't stand at each of several places side by side, but only at every p-th, p being its
period (of `limit` 5, of `aaa` 1). A step takes about 2 ns. What can't be counted so is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

MAX_DEPTH = 20  # groups in groups
_BRANCH = 4.0  # steps that it costs to come back to an alternative or a length
_REPETITION = re.compile(r"(?:(?P<mark>[*+?])|\{(?!\})(?P<least>[0-9]*)(?P<comma>,)?(?P<most>[0-9]*)\})[?+]?")
_ESCAPE = re.compile(r"\\(?:x..|u.{4}|U.{8}|0[0-7]{0,2}|N\{[^}]*\}|.)", re.DOTALL)
_SPECIAL = frozenset("\\^$.|?*+()[{")


class TooMuch(Exception):
    """A construct whose cost isn't bounded here."""


def steps_of(pattern: str, length: int, *, searched: bool) -> float:
    """Steps at most on a text of `length` characters. `searched`: anywhere in it, not as a whole.

    Only the counting is done here, the syntax is for re.compile. Raises TooMuch.
    """
    begin = _Ways(float(length), float(length), 1) if searched else _Ways(1.0, 1.0, 0)
    walk = _Walk(pattern, length)
    walk.whole(begin)
    return walk.steps


class _Ways(NamedTuple):
    """In how many ways a place of the pattern is reached.

    `run`: so many of them at a time lie side by side in the text. `stars`: over the text so far.
    """

    number: float
    run: float
    stars: int


@dataclass(slots=True)
class _Walk:
    """One pass over a pattern."""

    pattern: str
    length: int
    at: int = 0
    depth: int = 0
    steps: float = 0.0

    def whole(self, begin: _Ways) -> None:
        self._alternatives(begin)
        while self.at < len(self.pattern):  # a bracket too many, which does not compile
            self.at += 1
            self._alternatives(begin)

    def _alternatives(self, ways: _Ways) -> _Ways:
        end = self._sequence(ways)
        while self._peek() == "|":
            self.at += 1
            self.steps += _BRANCH * ways.number
            other = self._sequence(ways)
            end = _Ways(end.number + other.number, 1.0, min(end.stars, other.stars))
        return end

    def _sequence(self, ways: _Ways) -> _Ways:
        while (char := self._peek()) and char not in "|)":
            if char == "(":
                ways = self._group(ways)
            elif word := self._word():
                ways = self._past_word(ways, word)
            else:
                weight = self._atom()
                self.steps += weight * ways.number
                ways = self._repeated(ways, weight)
        return ways

    def _peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def _group(self, ways: _Ways) -> _Ways:
        self.at += 1
        if self._peek() == "?":
            if not self.pattern.startswith("?:", self.at):
                raise TooMuch("of the groups only (...) and (?:...) can be used")
            self.at += 2
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooMuch("too many groups in groups")
        self.steps += _BRANCH * ways.number
        end = self._alternatives(ways)
        self.depth -= 1
        self.at += 1  # the closing bracket
        self.steps += _BRANCH * end.number
        match = _REPETITION.match(self.pattern, self.at)
        if match is None:
            return end
        if match["mark"] != "?":
            raise TooMuch("a group can't be repeated, only be optional")
        self.at = match.end()
        self.steps += _BRANCH * ways.number
        return _Ways(end.number + ways.number, 1.0, ways.stars)

    def _word(self) -> str:
        """The characters from here on that stand for themselves and are not repeated."""
        word = ""
        while (char := self._peek()) and char.isascii():
            size = 1
            if char == "\\":
                char = self.pattern[self.at + 1 : self.at + 2]
                size = 2
                if not char.isascii() or char.isalnum() or not char:
                    break
            elif char in _SPECIAL:
                break
            if _REPETITION.match(self.pattern, self.at + size):
                break
            word += char.lower()
            self.at += size
        return word

    def _past_word(self, ways: _Ways, word: str) -> _Ways:
        groups, left = ways.number / ways.run, ways.run
        period = 1
        for period in _periods(word):
            self.steps += groups * left
            left = min(left, ways.run / period + 1)
        return _Ways(groups * left, ways.run if period == 1 else 1.0, ways.stars)

    def _atom(self) -> float:
        """Steps for one look at it."""
        char = self._peek()
        if char == "\\":
            if self.pattern[self.at + 1 : self.at + 2] in tuple("123456789"):
                raise TooMuch("there can be no back-references")
            match = _ESCAPE.match(self.pattern, self.at)
            self.at = len(self.pattern) if match is None else match.end()
            return 1.0
        self.at += 1
        return self._class() if char == "[" else 1.0

    def _class(self) -> float:
        began = self.at
        if self._peek() == "^":
            self.at += 1
        first = True
        while (char := self._peek()) and (char != "]" or first):
            self.at += 2 if char == "\\" else 1
            first = False
        self.at += 1
        return 2.0 + min(self.pattern.count("\\", began, self.at), 6)  # \w, \s, \d and their opposites

    def _repeated(self, ways: _Ways, weight: float) -> _Ways:
        """Past the repetitions of what went before."""
        while match := _REPETITION.match(self.pattern, self.at):
            self.at = match.end()
            least, most = self._bounds(match)
            self.steps += weight * ways.number * least
            lengths = float(most - least + 1)
            if lengths <= 1:
                continue
            rest = max(self.length / (ways.stars + 1), 1.0)
            if lengths >= rest:
                ways = _Ways(ways.number * rest, rest, ways.stars + 1)
            else:
                ways = ways._replace(number=ways.number * lengths, run=lengths)
            self.steps += (_BRANCH + weight - 1) * ways.number
        return ways

    def _bounds(self, match: re.Match[str]) -> tuple[int, int]:
        if match["mark"]:
            return (1 if match["mark"] == "+" else 0), (1 if match["mark"] == "?" else self.length)
        least = min(int(match["least"] or 0), self.length)
        most = min(int(match["most"] or self.length), self.length) if match["comma"] else least
        return least, most


def _periods(word: str) -> list[int]:
    """How far apart its beginnings of 1, 2, .. characters stand at least in a text (Knuth, Morris and Pratt)."""
    borders, border = [0], 0
    for place in range(1, len(word)):
        while border and word[place] != word[border]:
            border = borders[border - 1]
        border += word[place] == word[border]
        borders.append(border)
    return [place + 1 - border for place, border in enumerate(borders)]
