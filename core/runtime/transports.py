"""An account's transport by the settings of the start: the one place where they meet."""

from __future__ import annotations

from core.domain.account import Account
from core.domain.clock import Clock
from core.runtime.secret_sources import SecretSources
from core.runtime.tokens import Tokens
from core.settings import Settings
from core.smtp.dialogue import Timeouts
from core.transport.smtp import SmtpTransport


def transport_of(
    account: Account, settings: Settings, clock: Clock, tokens: Tokens, outside: SecretSources
) -> SmtpTransport:
    """A way out that nothing has used yet."""
    timeouts = Timeouts(
        banner_seconds=settings.smtp_banner_timeout_seconds,
        command_seconds=settings.smtp_command_timeout_seconds,
        mail_seconds=settings.smtp_command_timeout_seconds,
        rcpt_seconds=settings.smtp_rcpt_timeout_seconds,
        data_seconds=settings.smtp_data_timeout_seconds,
        block_seconds=settings.smtp_block_timeout_seconds,
        dot_seconds=settings.smtp_dot_timeout_seconds,
        quit_seconds=settings.smtp_quit_timeout_seconds,
        transaction_seconds=settings.smtp_deadline_seconds,
        login_seconds=settings.smtp_banner_timeout_seconds + settings.smtp_command_timeout_seconds,
    )
    return SmtpTransport(
        account,
        clock=clock,
        timeouts=timeouts,
        token=tokens.source(account),
        secret=outside.password_of(account),
        allow_private=settings.allow_private_targets,
    )
