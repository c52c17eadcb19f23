"""What the tests of the SMTP client send, and the target they send it to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from core.domain.account import Security
from core.smtp.dialogue import Target, Timeouts, Transaction, TransactionResult
from tests.support.smtp_server import SmtpServer

MAIL = b"Subject: hello\r\nFrom: <a@example.org>\r\n\r\nHello.\r\n.A line with a dot.\r\n..\r\nBye\r\n"

SHORT = Timeouts(
    connect_seconds=0.5,
    banner_seconds=0.25,
    command_seconds=0.25,
    mail_seconds=0.25,
    rcpt_seconds=0.25,
    data_seconds=0.25,
    block_seconds=0.25,
    dot_seconds=0.25,
    quit_seconds=0.1,
    transaction_seconds=5,
    login_seconds=5,
)


@dataclasses.dataclass(frozen=True)
class To:
    mailbox: str
    notify: str | None = None
    orcpt: str | None = None


class Octets:
    """A body in memory, in blocks of a given size; `fail_after` blocks it raises OSError."""

    dotless = False

    def __init__(self, octets: bytes, block: int = 262_144, fail_after: int | None = None) -> None:
        self.octets = octets
        self.size = len(octets)
        self.block = block
        self.fail_after = fail_after

    def chunks(self) -> Iterator[bytes]:
        for number, start in enumerate(range(0, self.size, self.block)):
            if number == self.fail_after:
                raise OSError("the file changed")
            yield self.octets[start : start + self.block]
        if self.fail_after is not None and self.fail_after * self.block >= self.size:
            raise OSError("the file changed at its end")


class GivenTokens:
    """Gives these in turn, the last one again and again; says what became of them."""

    def __init__(self, *tokens: str | Exception, again: bool = False) -> None:
        self.given = list(tokens)
        self.again = again
        self.told: list[str] = []

    async def __call__(self) -> str:
        token = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        if isinstance(token, Exception):
            raise token
        return token

    async def refused(self, token: str) -> bool:
        self.told.append(f"refused {token}")
        return self.again

    def accepted(self, token: str) -> None:
        self.told.append(f"accepted {token}")


class Told:
    """A transaction, and what its callbacks were told."""

    def __init__(
        self, *recipients: str, body: bytes = MAIL, on_begin: Callable[[list[str]], None] | None = None, **options: Any
    ) -> None:
        self.begun: list[list[str]] = []
        self.results: list[TransactionResult] = []
        self._on_begin = on_begin
        options.setdefault("sender", "a@example.org")
        options.setdefault("body", Octets(body))
        options.setdefault("recipients", [To(name) for name in recipients or ("b@example.org",)])
        self.transaction = Transaction(on_begin=self._begin, on_result=self.results.append, **options)

    def _begin(self, mailboxes: list[str]) -> None:
        self.begun.append(mailboxes)
        if self._on_begin is not None:
            self._on_begin(mailboxes)


def target(server: SmtpServer, **options: Any) -> Target:
    """The server, in clear unless said otherwise."""
    options.setdefault("security", Security.NONE)
    return Target(host=options.pop("host", "127.0.0.1"), port=server.port, **options)
