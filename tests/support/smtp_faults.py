"""Faults of a mail server at random, by a seed: what it does on its n-th connection is the same in each run.

    faults = RandomFaults(7, rate=0.1)
    async with SmtpServer(faults=faults) as server: ...
    faults.made  # how often each was made
    faults.verdict("jo@example.org")  # what this server says of a recipient, whenever it is asked

Recipients have a verdict each, by the seed and the mailbox alone: taken, put off `puts_off` times and then taken, or
refused for good. So a test knows what must become of each, whatever else goes wrong. All other faults are drawn anew
for each command of each connection, and pass: whoever tries on gets through.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.support.smtp_server import Close, Hang, Late, Raw, Seq, Trickle, Twice

BEFORE_CONTENT: dict[str, Any] = {
    "421": lambda: Close("421 4.3.2 shutting down"),
    "421 that goes on": lambda: "421 4.3.2 shutting down",
    "451": lambda: "451 4.3.0 later",
    "close": Close,
    "reset": lambda: Close(reset=True),
    "half a reply": lambda: Close(raw=b"250-2.0.0 hal"),
    "garbage": lambda: Raw(b"\x00\xffwhat?\r\n"),
    "mixed codes": lambda: Raw(b"250-2.1.0 yes\r\n550 5.0.0 no\r\n"),
    "long line": lambda: Raw(b"250 " + b"x" * 40_000 + b"\r\n"),
    "late": lambda: Late(0.02, "451 4.3.0 late and no"),
    "trickle": lambda: Trickle("451 4.3.0 no", 0.001),
    "twice": lambda: Twice("451 4.3.0 no"),
    "not asked": lambda: Seq(["451 4.3.0 no", "250 2.0.0 nobody asked"]),
    "hang": Hang,
}
AT_THE_END: dict[str, Any] = {
    "451": lambda: "451 4.3.0 later",
    "452 and close": lambda: Close("452 4.3.1 full"),
    "421": lambda: Close("421 4.3.2 shutting down"),
    "close": Close,
    "taken, then closed": lambda: Close(take=True),
    "taken, then reset": lambda: Close(take=True, reset=True),
    "taken, then half a reply": lambda: Close(raw=b"250-2.0", take=True),
    "late": lambda: Late(0.02, "250 2.0.0 taken"),
    "trickle": lambda: Trickle("250 2.0.0 taken", 0.001),
    "not asked": lambda: Seq(["250 2.0.0 taken", "250 2.0.0 nobody asked"]),
    "hang": Hang,
    "taken, then hangs": lambda: Hang(take=True),
}
_PLACES = {"accept", "banner", "ehlo", "helo", "mail", "data", "bdat", "rset", "dot"}
_SURPLUS = frozenset({"twice", "not asked"})
_AT_ACCEPT = ("close", "reset", "hang")


@dataclass
class RandomFaults:
    """`rate` of all answers are faults (0..1), `refused` and `put_off` of all recipients have that verdict."""

    seed: int
    rate: float = 0.05
    refused: float = 0.1
    put_off: float = 0.1
    puts_off: int = 1
    places: frozenset[str] = frozenset({"mail", "data", "dot"})
    hang: bool = False  # these last until the client's time is up
    surplus: bool = True  # replies that nobody asked for; while commands are pipelined nobody can tell them
    made: Counter[str] = field(default_factory=Counter)
    _draws: dict[int, random.Random] = field(default_factory=dict)
    _asked: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        assert self.places <= _PLACES, self.places - _PLACES

    def verdict(self, mailbox: str) -> str:
        """Taken, put off or refused."""
        drawn = random.Random(f"{self.seed}/{mailbox}").random()
        if drawn < self.refused:
            return "refused"
        return "put off" if drawn < self.refused + self.put_off else "taken"

    def at(self, connection: int, place: str, mailbox: str) -> Any:
        """What answers here (SmtpServer's Faults)."""
        if place == "rcpt":
            return self._rcpt(mailbox)
        if place not in self.places:
            return None
        draw = self._draws.setdefault(connection, random.Random(f"{self.seed}:{connection}"))
        if draw.random() >= self.rate:
            return None
        kinds = AT_THE_END if place == "dot" else BEFORE_CONTENT
        names = [n for n in (_AT_ACCEPT if place == "accept" else kinds) if self._may(n)]
        name = draw.choice(names)
        self.made[f"{place}: {name}"] += 1
        return kinds[name]()

    def _may(self, name: str) -> bool:
        return (self.hang or "hang" not in name) and (self.surplus or name not in _SURPLUS)

    def _rcpt(self, mailbox: str) -> str | None:
        verdict = self.verdict(mailbox)
        if verdict == "refused":
            return "550 5.1.1 no such user"
        self._asked[mailbox] += 1
        if verdict == "put off" and self._asked[mailbox] <= self.puts_off:
            return "450 4.2.1 later"
        return None
