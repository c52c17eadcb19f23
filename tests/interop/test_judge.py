"""The judge of `make interop` sees what it is there for: an octet changed, a mail lost, one too many."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.interop.mails import mails
from tests.interop.servers import Arrived
from tests.interop.trial import Way, _judge

SENT = mails()
TRACE = b"Received: from a\r\n\tby b; Tue\r\n"
GOOD = [Arrived(mail.sender, mail.recipients, TRACE + mail.expected) for mail in SENT]


def _faults(arrived: list[Arrived], refused: dict[str, str] | None = None, *, smtputf8: bool = True) -> int:
    way = Way()
    _judge(way, SENT, arrived, refused or {}, smtputf8)
    return len(way.faults)


def test_all_intact_is_no_fault() -> None:
    assert _faults(GOOD) == 0


@pytest.mark.parametrize("number", range(len(SENT)), ids=[mail.name for mail in SENT])
def test_a_changed_octet_and_a_lost_or_doubled_mail_are_faults(number: int) -> None:
    one = GOOD[number]
    rest = GOOD[:number] + GOOD[number + 1 :]
    assert _faults(rest) == 1
    assert _faults([*rest, one, one]) == 1
    assert _faults([*rest, replace(one, octets=one.octets[:-3] + b"?\r\n")]) == 2
    assert _faults([*rest, replace(one, recipients=one.recipients[1:])]) == 1
    assert _faults([*rest, replace(one, sender="other@example.com")]) == 1


def test_only_what_needs_smtputf8_may_be_refused_and_only_without_it() -> None:
    without = [one for one, mail in zip(GOOD, SENT, strict=True) if not mail.international]
    refused = {"international": "failed: 553 5.6.7 no SMTPUTF8"}
    assert _faults(without, refused, smtputf8=False) == 0
    assert _faults(without, refused) == 1
    assert _faults(GOOD[1:], {"plain": "failed: 550 5.7.1"}) == 1
