"""The connections of one account (interface; the implementation follows)."""

from __future__ import annotations

from core.smtp.dialogue import Capabilities, Target, Transaction, TransactionResult


class PoolTurn:
    """The right to send one message over one connection now. Must be used or released."""

    capabilities: Capabilities
    server: str  # host:port
    tls: str | None  # "TLSv1.3 TLS_AES_256_GCM_SHA384"; None: plain

    async def send(self, transaction: Transaction) -> TransactionResult:
        """Send one message. Raises ValueError (nothing was sent), and what body.chunks() or on_begin raised."""
        raise NotImplementedError

    def release(self) -> None:
        """Give it back unused. Harmless after use."""
        raise NotImplementedError


class Pool:
    """Connections of one account, opened when needed, kept while they are of use."""

    def __init__(
        self,
        target: Target,
        *,
        max_connections: int = 5,
        messages_per_connection: int = 1000,
        idle_timeout_seconds: float = 30,
        in_flight_per_connection: int = 8,
    ) -> None:
        raise NotImplementedError

    async def turn(self) -> PoolTurn:
        """Wait for a connection that is ready, first come, first served. Raises ConnectFailed."""
        raise NotImplementedError

    async def close(self) -> None:
        """No more turns; QUIT on idle connections; what is in flight goes on to its end."""
        raise NotImplementedError
