"""Logins, sans-IO: what to send first, and what to answer to each 334 (RFC 4954).

PLAIN (RFC 4616), LOGIN (draft-murchison-sasl-login), CRAM-MD5 (RFC 2195), XOAUTH2 (Google's and Microsoft's).
No exception and no representation of these objects holds a secret.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode

from core.domain.account import AuthMethod
from core.smtp.errors import ProtocolError

MASK = "[redacted]"
MAX_COMMAND_BYTES = 512  # RFC 4954 section 4: a longer initial response waits for the server's 334


class Login:
    """One login: `command()` first, then `answer(challenge)` for each 334."""

    __slots__ = ("_method", "_secret", "_steps", "_told", "_username")

    def __init__(self, method: AuthMethod, username: str, secret: str) -> None:
        """`secret` is the password, or the access token of XOAUTH2."""
        self._method = method
        self._username = username
        self._secret = secret
        self._steps = self._responses()
        encoded = [b64encode(step).decode() for step in (*self._steps, secret.encode())]
        # a short password in the clear may be any word: the blame is judged by the words
        self._told = [text for text in (*encoded, secret if len(secret) >= 4 else "") if text]

    def _responses(self) -> list[bytes]:
        """The responses that don't depend on a challenge, in order."""
        user, secret = self._username.encode(), self._secret.encode()
        match self._method:
            case AuthMethod.PLAIN:
                return [b"\0" + user + b"\0" + secret]
            case AuthMethod.XOAUTH2:
                return [b"user=" + user + b"\x01auth=Bearer " + secret + b"\x01\x01"]
            case AuthMethod.LOGIN:
                return [user, secret]
            case _:
                return []

    def without_secret(self, text: str) -> str:
        """The words of a server that repeats what it was told ("unknown command: ..."), without the secret in them."""
        for told in self._told:
            text = text.replace(told, MASK)
        return text

    def command(self) -> bytes:
        """The AUTH command, with the initial response where the mechanism has one and it fits."""
        line = b"AUTH " + self._method.value.upper().encode()
        if self._method in (AuthMethod.PLAIN, AuthMethod.XOAUTH2):
            full = line + b" " + b64encode(self._steps[0]) + b"\r\n"
            if len(full) <= MAX_COMMAND_BYTES:
                self._steps.clear()
                return full
        return line + b"\r\n"

    def answer(self, challenge: str) -> bytes:
        """The line to send after a 334 with this text."""
        if self._method is AuthMethod.CRAM_MD5 and self._secret:
            try:
                nonce = b64decode(challenge.strip().encode(), validate=True)
            except (binascii.Error, ValueError):
                raise ProtocolError("the server's CRAM-MD5 challenge is not base64") from None
            digest = hmac.new(self._secret.encode(), nonce, "md5").hexdigest()
            self._secret = ""  # one challenge is answered, once
            return b64encode(self._username.encode() + b" " + digest.encode()) + b"\r\n"
        if self._steps:
            return b64encode(self._steps.pop(0)) + b"\r\n"
        if self._method is AuthMethod.XOAUTH2:
            return b"\r\n"  # the 334 carries the error; an empty line fetches the final reply
        return b"*\r\n"  # RFC 4954 section 4: cancel, we have nothing more to say
