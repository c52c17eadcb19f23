"""Trying an account out, step by step: name, connection, TLS, greeting, login, NOOP. Sends no mail."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from core.domain.account import Account, Security
from core.domain.outcome import AccountFault
from core.domain.reply import Phase
from core.smtp.connection import Connection
from core.smtp.dial import dial, tls_context
from core.smtp.dialogue import AccessTokens, ConnectFailed, Timeouts
from core.smtp.events import Command
from core.transport.smtp import fault_of, target_of

CHECK_SECONDS = 30.0  # a person waits for it


@dataclass(frozen=True, slots=True)
class Step:
    """One step: how long it took, and its fault where it failed."""

    name: str
    ok: bool
    seconds: float
    detail: str = ""
    fault: AccountFault | None = None


async def check(account: Account, token: AccessTokens | None = None, *, allow_private: bool = True) -> list[Step]:
    """All steps that were reached; the last one failed if not all are ok."""
    timeouts = Timeouts(banner_seconds=CHECK_SECONDS, command_seconds=CHECK_SECONDS)
    target = target_of(account, timeouts, token, allow_private=allow_private)
    steps: list[Step] = []
    began = time.perf_counter()

    def reached(phase: Phase, detail: str) -> None:
        nonlocal began
        now = time.perf_counter()
        steps.append(Step(phase.value, True, now - began, detail))
        began = now

    connection: Connection | None = None
    try:
        context = None if account.security is Security.NONE else await asyncio.to_thread(tls_context, target)
        connection = await dial(target, context, _ignore, reached)
        reply = await connection.command(Command.NOOP, b"NOOP\r\n")
        steps.append(Step("noop", reply.severity == 2, time.perf_counter() - began, f"{reply.code} {reply.text}"))
    except ConnectFailed as error:
        fault = fault_of(account, error)
        detail = f"{error.detail}: {error.reply.code} {error.reply.text}" if error.reply is not None else error.detail
        steps.append(Step(error.phase.value, False, time.perf_counter() - began, detail, fault))
    finally:
        if connection is not None:
            await connection.leave()
    return steps


def _ignore(_: Connection) -> None:
    """Nobody waits for this connection's turns."""
