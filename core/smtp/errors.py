"""What the state machine and the connection raise among themselves."""

from __future__ import annotations

from core.smtp.dialogue import FailureKind


class ProtocolError(Exception):
    """The server did not speak SMTP, or said what nobody asked for. The connection is of no use any more."""


class InjectedOctets(ProtocolError):
    """Octets came in clear between the 220 to STARTTLS and the handshake: somebody may sit between (RFC 3207)."""


class ConversationEnded(Exception):
    """The connection was lost, or given up, while a reply of the session was awaited."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
