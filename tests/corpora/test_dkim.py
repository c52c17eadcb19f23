"""A signed mail still verifies when it has been through: dkimpy signs and verifies, the relay carries."""

from __future__ import annotations

import itertools
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.corpora.through import through

CANONICAL = (b"simple", b"relaxed")
MAIL = (
    b"From: Shop <shop@example.com>\r\nTo:   Jo  <jo@example.org>\r\nSubject: Your  invoice \r\n\tof today\r\n"
    b"Date: Tue, 24 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@example.com>\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Gr\xc3\xbc\xc3\x9fe  \r\n.a dot\r\n..two\r\n\r\n\t tail \r\n\r\n\r\n"
)


class _Key:
    def __init__(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self._record = b"v=DKIM1; k=rsa; p=" + b"".join(pem.splitlines()[1:-1])

    def dns(self, name: bytes, timeout: int = 5) -> bytes:
        return self._record

    def verifies(self, mail: bytes) -> bool:
        found: bool = dkim.verify(mail, dnsfunc=self.dns)
        return found


@pytest.fixture(scope="module")
def key() -> _Key:
    return _Key()


async def test_signatures_hold_in_every_canonical_form_and_line_end(tmp_path: Path, key: _Key) -> None:
    """Signed with CRLF, as RFC 6376 has it, and then stored with CRLF, LF or CR by the writer."""
    files: dict[str, bytes] = {}
    for header, body, line_end in itertools.product(CANONICAL, CANONICAL, (b"\r\n", b"\n", b"\r")):
        signature = dkim.sign(MAIL, b"s", b"example.com", key.private, canonicalize=(header, body))
        signed = signature + MAIL
        assert key.verifies(signed)
        files[f"{header!r}/{body!r} {line_end!r}"] = signed.replace(b"\r\n", line_end)
    came = await through(tmp_path, files)
    for name, one in came.items():
        assert one.octets is not None, (name, one.reason)
        assert key.verifies(one.octets), name


def test_the_verifier_sees_a_changed_octet(key: _Key) -> None:
    signed = dkim.sign(MAIL, b"s", b"example.com", key.private, canonicalize=CANONICAL) + MAIL
    assert not key.verifies(signed.replace(b"..two", b".two"))
    assert not key.verifies(signed.replace(b"Your  invoice", b"Your invoice "[:-1] + b"s"))
