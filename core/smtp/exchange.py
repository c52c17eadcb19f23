"""One mail transaction as the client sees it, and the table of its states.

| state    | meaning                                                             |
| -------- | ------------------------------------------------------------------- |
| ENVELOPE | MAIL, RCPT and perhaps DATA are being written or answered           |
| CONTENT  | the server waits for the content (354, or a good envelope and BDAT) |
| VERDICT  | the final dot or BDAT LAST is written; its reply is awaited         |
| OVER     | the result is told; replies that still come for it are ignored      |

With CHUNKING a small message goes from ENVELOPE to VERDICT at once, and MAIL and RCPT are answered there.
"""

from __future__ import annotations

from enum import StrEnum

from core.domain.reply import Phase, Reply
from core.smtp.dialogue import Failure, FailureKind, Transaction, TransactionResult


class Step(StrEnum):
    """Where a transaction is."""

    ENVELOPE = "envelope"
    CONTENT = "content"
    VERDICT = "verdict"
    OVER = "over"


class Happening(StrEnum):
    """What moves a transaction on."""

    GO_AHEAD = "go_ahead"  # there is somebody to send to, and the content may follow
    REFUSED = "refused"  # MAIL, all RCPT, or DATA
    LAST_WRITTEN = "last_written"  # the final dot or BDAT LAST
    ANSWERED = "answered"  # the verdict on the content; in CONTENT: it was cut short by a refusal
    LOST = "lost"  # the connection is gone or of no use


_ENVELOPE, _OVER = Step.ENVELOPE, Step.OVER  # with every message (core/domain)

TABLE: dict[Step, dict[Happening, Step]] = {
    Step.ENVELOPE: {
        Happening.GO_AHEAD: Step.CONTENT,
        Happening.REFUSED: Step.OVER,
        Happening.LAST_WRITTEN: Step.VERDICT,
        Happening.LOST: Step.OVER,
    },
    Step.CONTENT: {
        Happening.LAST_WRITTEN: Step.VERDICT,
        Happening.ANSWERED: Step.OVER,
        Happening.LOST: Step.OVER,
    },
    Step.VERDICT: {
        Happening.REFUSED: Step.OVER,
        Happening.ANSWERED: Step.OVER,
        Happening.LOST: Step.OVER,
    },
    Step.OVER: {},
}


class Exchange:
    """A transaction on its way. `result` fills while the replies come in."""

    __slots__ = (
        "accepted",
        "at_once",
        "began_at",
        "behind",
        "chunked",
        "kept",
        "result",
        "step",
        "transaction",
        "unanswered_rcpts",
    )

    def __init__(
        self, transaction: Transaction, *, chunked: bool, at_once: bool, kept: bool, behind: bool = False
    ) -> None:
        self.transaction = transaction
        self.chunked = chunked  # BDAT, not DATA
        self.at_once = at_once  # the content is written behind the envelope, before any reply
        self.kept = kept  # the connection has served before
        self.behind = behind  # its envelope was written while replies to the one before were due
        self.began_at = 0.0  # the loop's time, set by the connection
        self.step = _ENVELOPE
        self.accepted = 0
        self.unanswered_rcpts = len(transaction.recipients)
        self.result = TransactionResult(rcpt_replies=[None] * self.unanswered_rcpts)

    def move(self, happening: Happening) -> None:
        """By the table; an illegal move is a defect of ours (KeyError)."""
        self.step = TABLE[self.step][happening]

    @property
    def over(self) -> bool:
        return self.step is _OVER

    @property
    def accepted_mailboxes(self) -> list[str]:
        """The recipients that were accepted, or have not been refused yet."""
        replies = self.result.rcpt_replies
        recipients = self.transaction.recipients
        if self.accepted == len(replies):
            return [recipient.mailbox for recipient in recipients]
        return [
            recipient.mailbox
            for recipient, reply in zip(recipients, replies, strict=True)
            if reply is None or reply.severity == 2
        ]

    @property
    def phase(self) -> Phase:
        """The phase to name if the connection is lost now."""
        if self.result.dot_sent:
            return Phase.DOT
        if self.result.mail_reply is None:
            return Phase.MAIL
        if self.unanswered_rcpts:
            return Phase.RCPT
        return Phase.DATA if self.step is Step.ENVELOPE else Phase.BODY

    def lose(self, kind: FailureKind, detail: str, reply: Reply | None = None) -> None:
        """No verdict will come."""
        result = self.result
        result.failure = Failure(self.phase, kind, detail, reply)
        result.reused_dead = self.kept and result.mail_reply is None and not result.dot_sent
        self.move(Happening.LOST)
