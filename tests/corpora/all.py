"""All mails of the corpora (`make corpora`): intact at the server, or rejected for the reason that is pinned here.

Each goes twice: as it is, and with an envelope of its own (X-Sender, X-Receiver) in front. Each rejection below was
looked at. What must be re-encoded (NUL octets, lines over 998 octets) is compared by what the parts decode to.
"""

from __future__ import annotations

import email
import email.policy
from email.message import Message
from pathlib import Path

import pytest

from tests.corpora.fetch import mails
from tests.corpora.through import intact, through

_NO_SENDER = "5.1.7 there is no sender"
_NO_RECIPIENT = "5.1.3 there is no recipient"
REJECTED = {
    "python/msg_05.txt": "5.1.7 From 'foo' is not a mailbox",
    "python/msg_11.txt": _NO_SENDER,
    "python/msg_15.txt": "5.1.3 no recipient is a mailbox: 'XX'",
    "python/msg_18.txt": _NO_SENDER,
    "python/msg_19.txt": "5.6.0 line 2 of the header block",  # a body without a header
    "python/msg_23.txt": _NO_RECIPIENT,
    "python/msg_28.txt": _NO_RECIPIENT,
    "python/msg_30.txt": _NO_RECIPIENT,
    "python/msg_31.txt": _NO_RECIPIENT,
    "python/msg_35.txt": "5.6.0 line 5 of the header block",  # text between the fields
    "python/msg_36.txt": _NO_RECIPIENT,
    "python/msg_37.txt": _NO_SENDER,
    "python/msg_38.txt": _NO_SENDER,
    "python/msg_39.txt": _NO_SENDER,
    "python/msg_40.txt": _NO_SENDER,
    "python/msg_43.txt": "5.1.7 From 'MAILER DAEMON <>' is not a mailbox",
    "mail-parser/mail_outlook_1": "5.6.0 the header block contains a NUL octet",  # a .msg file of Outlook, no mail
    "mail-parser/mail_test_10": _NO_RECIPIENT,
    "mail-parser/mail_test_15": _NO_RECIPIENT,
    "mail-parser/mail_test_4": _NO_RECIPIENT,
    "dkimpy/ed25519test2.msg": _NO_RECIPIENT,
    "dkimpy/rfc6376.w1258.msg": "is not a mailbox: it is not valid UTF-8",  # windows-1258 in the address
    "dkimpy/test_nofrom.message": _NO_SENDER,
    "talon/reply-quotations-share-block.eml": _NO_RECIPIENT,
}
REJECTED_WITH_ENVELOPE = {
    "python/msg_19.txt": "5.6.0 line 4 of the header block",
    "python/msg_35.txt": "5.6.0 line 7 of the header block",
    "mail-parser/mail_outlook_1": "5.6.0 the header block contains a NUL octet",
    "mail-parser/mail_test_5": "5.1.7 there are 2 X-Sender fields",  # it has one of its own
}
RE_ENCODED = {
    "mail-parser/mail_malformed_3": "NUL octets of what no boundary makes a part become ?",
    "talon/reply-quotations-share-block.eml": "a base64 line over 998 octets is wrapped",
    "talon/standard_replies/outlook.eml": "a text line over 998 octets becomes quoted-printable",
}


@pytest.mark.parametrize("envelope", [False, True], ids=["as it is", "with an envelope"])
async def test_every_mail_arrives_intact_or_is_rejected_rightly(tmp_path: Path, envelope: bool) -> None:
    files = {name: path.read_bytes() for name, path in mails().items()}
    assert len(files) > 90
    came = await through(tmp_path, files, envelope=envelope)
    rejected = REJECTED_WITH_ENVELOPE if envelope else REJECTED
    wrong: list[str] = []
    for number, (name, file) in enumerate(files.items()):
        one = came[name]
        if one.octets is None:
            if name not in rejected or rejected[name] not in one.reason:
                wrong.append(f"{name} was rejected: {one.reason}")
        elif name in rejected:
            wrong.append(f"{name} was sent, and should not have been")
        elif name in RE_ENCODED:
            if _parts(one.octets) != _parts(file.replace(b"\0", b"?")):
                wrong.append(f"{name} does not decode to the same")
        elif not intact(file, one, number, envelope=envelope):
            wrong.append(f"{name} is not intact")
    assert wrong == []


def _parts(octets: bytes) -> list[tuple[str, bytes]]:
    """Type and decoded octets of each leaf, line ends of text as LF, without white space at its end."""
    parser: Message = email.message_from_bytes(octets, policy=email.policy.compat32)
    found: list[tuple[str, bytes]] = []
    for part in parser.walk():
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            text = (
                payload.replace(b"\r\n", b"\n").rstrip()
                if part.get_content_maintype() in ("text", "multipart")
                else payload
            )
            found.append((part.get_content_type(), text))
    return found
