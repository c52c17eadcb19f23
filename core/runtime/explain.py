"""What would happen to a mail, and why. Sends nothing and keeps nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from core.delivery import block_of
from core.domain.account import Account, Directory, DotStuffing
from core.domain.clock import utc_text
from core.domain.content import FromRewrite, from_rewrite, is_signed, only_hidden_recipients, rewritten_from
from core.domain.envelope import Envelope, rewrite_sender
from core.domain.message import State
from core.domain.routing import (
    DISABLED,
    PAUSED,
    QUOTA,
    SENDER_NOT_ALLOWED,
    TRIED,
    UNKNOWN,
    Ground,
    Refusal,
    Route,
    Standing,
    no_account_for,
)
from core.errors import MessageChanged, MessageRefused, MessageRejected, MessageUnreadable
from core.runtime.views import (
    AccountChoice,
    DotStuffingView,
    EnvelopeRecipientView,
    EnvelopeView,
    Explanation,
)
from core.spool.body import Prepared, prepare

_IN_THE_WAY = {
    TRIED: "was tried before",
    UNKNOWN: "there is no such account",
    DISABLED: "is disabled",
    PAUSED: "is paused",
    QUOTA: "has spent its quota",
}
_GROUNDS = {
    Ground.SENDER_ROUTE: "a sender route names {}",
    Ground.ORDER: "in the directory's order",
    Ground.TURN: "shares the mail by weight {}",
    Ground.ADDRESS: "its senders name {}",
    Ground.DOMAIN: "its senders name {}",
    Ground.ANYONE: "takes any sender",
    Ground.REST: "its senders do not name this one",
}


@dataclass(frozen=True, slots=True)
class Explainer:
    """`standings`: the accounts for a message of this envelope sender, best first; `account`: its settings."""

    standings: Callable[[Directory, str], Sequence[Standing]]
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
        header, sender = prepared.header, prepared.envelope.sender
        standings = self.standings(directory, sender)
        refusals = tuple(standing.refusal for standing in standings if standing.refusal is not None)
        free = [standing.account for standing in standings if standing.refusal is None]
        outcome: Literal["send", "wait", "badmail"] = "send" if free else "wait"
        state, code, account, rewrite = State.WAITING, None, None, None
        if free:
            account = self.account(free[0])
            rewrite = from_rewrite(header, account.from_address, account.from_policy)
            why = f"goes out through {account.name}"
            limit = account.recipients_per_message
            if len(prepared.envelope.recipients) > limit:
                why += f", in transactions of at most {limit} recipients"
        elif Route(None, refusals).never:
            error = no_account_for(sender, [standing.account for standing in standings])
            outcome, state, code, why = "badmail", State.BADMAIL, error.enhanced_code, f"{error.detail}; {error.remedy}"
        else:
            why = f"no account may be used now: {_in_the_way(block_of(Route(None, refusals)), '')}"
        leaving = dict.fromkeys(header.data[s : s + len(n)].decode("ascii") for n, s, _, _ in header.leaving)
        return Explanation(
            directory=directory.name,
            outcome=outcome,
            state=state,
            why=why,
            enhanced_code=code,
            envelope=_envelope(prepared),
            internet_message_id=prepared.internet_message_id,
            subject=prepared.subject,
            size_bytes=size,
            stripped=(*leaving, *_gives_way(prepared, rewrite)),
            added=tuple(_added(prepared)),
            re_encoded=tuple(_re_encoded(prepared, rewrite)),
            dot_stuffing=_dots(directory, prepared, proven),
            accounts=tuple(_choices(standings, sender, self.account)),
            notes=prepared.notes,
            rewritten=tuple(_rewritten(prepared, account, rewrite)),
        )


def _choices(standings: Sequence[Standing], sender: str, account: Callable[[str], Account]) -> Iterator[AccountChoice]:
    chosen: str | None = None
    for standing in standings:
        place = _GROUNDS[standing.ground].format(standing.detail)
        if standing.ground is Ground.TURN and standing.detail == "0":
            place = "has weight 0: only if no other may"
        if standing.refusal is not None:
            counts = sender
            if standing.refusal.reason == SENDER_NOT_ALLOWED:
                settings = account(standing.account)
                counts = rewrite_sender(Envelope(sender, ()), settings.from_address, settings.from_policy).sender
            yield AccountChoice(
                standing.account, chosen=False, why=f"{_in_the_way(standing.refusal, counts)} ({place})"
            )
        elif chosen is None:
            chosen = standing.account
            yield AccountChoice(standing.account, chosen=True, why=f"takes it: {place}")
        else:
            yield AccountChoice(standing.account, chosen=False, why=f"helps out where {chosen} can't ({place})")


def _in_the_way(refusal: Refusal, sender: str) -> str:
    """In plain words. `sender`: the address that counts for the account."""
    if refusal.reason == SENDER_NOT_ALLOWED:
        return f"may not send as {sender}"
    words = _IN_THE_WAY.get(refusal.reason, refusal.reason)
    if refusal.until is None:
        return words
    return f"{words} until {utc_text(refusal.until)}"


def _gives_way(prepared: Prepared, rewrite: FromRewrite | None) -> Iterator[str]:
    """Names of the fields that leave because From is rewritten."""
    if rewrite is not None:
        for name, shown in ((b"sender", "Sender"), (b"dkim-signature", "DKIM-Signature")):
            if name in prepared.header.by_name:
                yield shown


def _rewritten(prepared: Prepared, account: Account | None, rewrite: FromRewrite | None) -> Iterator[str]:
    """The sender as the account's `from_policy` makes it, in envelope and header."""
    if account is not None:
        envelope = rewrite_sender(prepared.envelope, account.from_address, account.from_policy)
        if envelope.sender != prepared.envelope.sender:
            yield f"envelope sender: {envelope.sender}"
    if rewrite is not None:
        for line in rewritten_from(prepared.header, rewrite):
            yield line.decode("utf-8", "replace").replace("\r\n", "")


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


def _re_encoded(prepared: Prepared, rewrite: FromRewrite | None) -> list[str]:
    facts, what = prepared.facts, []
    if facts.has_nul or facts.long_line:
        what.append("the parts with NUL octets or a line over 998 octets")
    if facts.eight_bit and not is_signed(prepared.header, without_dkim=rewrite is not None):
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
