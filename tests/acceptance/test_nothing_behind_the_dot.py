"""A server that offers PIPELINING and answers 503 to an envelope behind a final dot, as Haraka does.

RFC 2920 section 3.1 allows that envelope. The 503 says nothing of the mail behind it: no mail may fail for it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.relay import account, mail, running
from tests.support.smtp_server import Late, Script, Session, SmtpServer


@pytest.mark.parametrize("connections", [1, 3])
async def test_mail_behind_a_dot_is_not_blamed_and_the_next_waits_for_the_verdict(
    tmp_path: Path, connections: int
) -> None:
    refused: list[str] = []

    def on_mail(session: Session, sender: str) -> str:
        if session._out:  # the verdict on the mail before is not sent yet: this came behind the dot
            refused.append(sender)
            return "503 Bad sequence of commands - pipelined after end of DATA"
        return "250 2.1.0 ok"

    script = Script(mail={"*": on_mail}, dot=lambda session, argument: Late(0.02, "250 2.0.0 taken"))
    async with SmtpServer(script) as server:
        async with running(tmp_path, [account(server, max_connections=connections)]) as bench:
            for number in range(12):
                bench.drop(f"{number}.eml", mail(number))
            result = await bench.drain(timeout_seconds=20)
            assert (result["sent"], result["failed"], result["deferred"], result["unknown"]) == (12, 0, 0, 0)
            assert bench.names() == []
        assert len(server.messages) == len({message.sha256 for message in server.messages}) == 12
        assert 0 < len(refused) <= connections  # learned, not tried again
