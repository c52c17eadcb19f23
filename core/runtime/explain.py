"""What would happen to a mail, and why. Sends nothing and keeps nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from core.delivery import block_of
from core.domain.account import Account, Directory, DotStuffing
from core.domain.content import is_signed, only_hidden_recipients
from core.domain.message import State
from core.domain.routing import Refusal, Route
from core.errors import MessageChanged, MessageRefused, MessageRejected, MessageUnreadable
from core.runtime.views import (
    AccountChoice,
    DotStuffingView,
    EnvelopeRecipientView,
    EnvelopeView,
    Explanation,
)
from core.spool.body import Prepared, prepare

_WHY = {
    "tried": "was tried before",
    "unknown": "there is no such account",
    "disabled": "is disabled",
    "account_paused": "is paused",
}


@dataclass(frozen=True, slots=True)
class Explainer:
    """`route`: which account a message of the directory would take now; `account`: its settings."""

    route: Callable[[Directory], Route]
    account: Callable[[str], Account]
    max_header_bytes: int

    def explain(
        self, directory: Directory, fd: int, *, name: bytes = b"", proven: DotStuffing | None = None
    ) -> Explanation:
        """The message in `fd`, as if it lay in this directory. Blocks."""
        found = os.fstat(fd)
        size = found.st_size
        if size > directory.max_message_bytes:
            detail = f"{size} octets are more than the directory's max_message_bytes, {directory.max_message_bytes}"
            return _ended(directory, size, "badmail", State.BADMAIL, detail, "5.3.4")
        if size == 0:
            return _ended(directory, size, "badmail", State.BADMAIL, "the file is empty", "5.6.0")
        try:
            prepared = prepare(
                fd,
                size=size,
                mtime_ns=found.st_mtime_ns,
                dot_stuffing=directory.dot_stuffing,
                proven=proven,
                max_header_bytes=self.max_header_bytes,
                max_recipients=directory.max_recipients,
                name=name,
            )
        except MessageRejected as error:
            return _ended(directory, size, "badmail", State.BADMAIL, error.detail, error.enhanced_code)
        except (MessageRefused, MessageUnreadable, MessageChanged) as error:
            return _ended(directory, size, "left", State.WAITING, error.detail, None)
        return self._of(directory, prepared, size, proven)

    def _of(self, directory: Directory, prepared: Prepared, size: int, proven: DotStuffing | None) -> Explanation:
        route = self.route(directory)
        choices = [AccountChoice(r.account, chosen=False, why=_why(r)) for r in route.refusals]
        if route.account is not None:
            choices.append(AccountChoice(route.account, chosen=True, why="the first in order that may be used now"))
            why = f"goes out through {route.account}"
            account = self.account(route.account)
            limit = account.recipients_per_message
            if len(prepared.envelope.recipients) > limit:
                why += f", in transactions of at most {limit} recipients"
        else:
            why = f"no account may be used now: {block_of(route).reason}"
        header = prepared.header
        stripped = dict.fromkeys(header.data[s : s + len(n)].decode("ascii") for n, s, _, _ in header.leaving)
        return Explanation(
            directory=directory.name,
            outcome="send" if route.account is not None else "wait",
            state=State.WAITING,
            why=why,
            enhanced_code=None,
            envelope=_envelope(prepared),
            internet_message_id=prepared.internet_message_id,
            subject=prepared.subject,
            size_bytes=size,
            stripped=tuple(stripped),
            added=tuple(_added(prepared)),
            re_encoded=tuple(_re_encoded(prepared)),
            dot_stuffing=_dots(directory, prepared, proven),
            accounts=tuple(choices),
            notes=prepared.notes,
        )


def _why(refusal: Refusal) -> str:
    return _WHY.get(refusal.reason, refusal.reason)


def _ended(
    directory: Directory, size: int, outcome: str, state: State, why: str, enhanced_code: str | None
) -> Explanation:
    return Explanation(
        directory=directory.name,
        outcome="badmail" if outcome == "badmail" else "left",
        state=state,
        why=why,
        enhanced_code=enhanced_code,
        envelope=None,
        internet_message_id=None,
        subject=None,
        size_bytes=size,
        stripped=(),
        added=(),
        re_encoded=(),
        dot_stuffing=None,
        accounts=(),
    )


def _envelope(prepared: Prepared) -> EnvelopeView:
    envelope = prepared.envelope
    return EnvelopeView(
        envelope.sender,
        tuple(EnvelopeRecipientView(r.mailbox, r.notify, r.orcpt) for r in envelope.recipients),
        envelope.ret,
        envelope.envid,
        envelope.source,
    )


def _added(prepared: Prepared) -> list[str]:
    added = [] if prepared.has_date else ["Date"]
    if prepared.internet_message_id is None:
        added.append("Message-ID")
    if only_hidden_recipients(prepared.header):
        added.append("To: undisclosed-recipients:;")
    return added


def _re_encoded(prepared: Prepared) -> list[str]:
    facts, what = prepared.facts, []
    if facts.has_nul or facts.long_line:
        what.append("the parts with NUL octets or a line over 998 octets")
    if facts.eight_bit and not is_signed(prepared.header):
        what.append("8-bit parts, where the server does not offer 8BITMIME")
    if not prepared.header.data.isascii():
        what.append("raw octets over 127 in the header, where the server does not offer SMTPUTF8")
    return what


def _dots(directory: Directory, prepared: Prepared, proven: DotStuffing | None) -> DotStuffingView:
    facts = prepared.facts
    evidence = "plain" if facts.proves_plain else "ambiguous" if facts.dot_lines else "none"
    if directory.dot_stuffing is not DotStuffing.AUTO:
        why = "the directory's setting"
    elif facts.proves_plain:
        why = "a line begins with exactly one dot followed by something"
    elif not facts.dot_lines:
        why = "no line begins with a dot"
    elif proven is not None:
        why = f"earlier mail of this directory proved it {proven.value}"
    else:
        why = "X-Sender leads the file" if prepared.stuffed else "X-Sender does not lead the file"
    return DotStuffingView(
        setting=directory.dot_stuffing.value,
        evidence="plain" if evidence == "plain" else "ambiguous" if evidence == "ambiguous" else "none",
        verdict="stuffed" if prepared.stuffed else "plain",
        why=why,
    )
