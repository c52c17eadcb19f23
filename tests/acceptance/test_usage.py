"""What an account sent is known exactly: over kills of the process, and of test messages that go over a limit."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from core.domain.account import Directory
from tests.support.clock import ManualClock
from tests.support.relay import account, mail, running
from tests.support.service import mail_server, service, taken, wait_until
from tests.support.smtp_server import SmtpServer

MAILS, PER_SECOND, KILLS = 90, 60, 3


async def test_a_test_message_goes_over_a_spent_limit_says_so_and_counts(tmp_path: Path) -> None:
    """One mail, for a person who waits for it: what it answers must tell of the server, not of our counting."""
    clock = ManualClock()
    pickup = Directory("pickup", str(tmp_path / "spool" / "pickup"), ("main",), watch=False)
    async with SmtpServer() as server:
        value = account(server, messages_per_day=1)
        async with running(tmp_path, [value], pickups=[pickup], clock=clock) as bench:

            async def test_message() -> dict[str, Any]:
                answer = await bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"})
                assert answer.status_code == 200, answer.text
                told: dict[str, Any] = answer.json()
                return told

            first = await test_message()
            until = (await bench.get("/accounts/main"))["usage"]["next_at"]
            assert until is not None
            assert (first["ok"], first["over_quota_until"]) == (True, until), "it was the last that had room"
            second = await test_message()
            assert (second["ok"], second["over_quota_until"]) == (True, until)
            assert (await bench.get("/accounts/main"))["usage"]["messages_last_day"] == 2
            bench.drop("0.eml", mail(0))
            await bench.drain()
            assert len(server.messages) == 2, "mail of directories waits"


async def test_a_test_message_tells_the_end_of_a_limit_with_itself_counted(tmp_path: Path) -> None:
    """Of two buckets of an hour the earlier frees too little once the message counts in the later one."""
    clock = ManualClock()
    async with SmtpServer() as server:
        value = account(server, messages_per_hour=2)
        async with running(tmp_path, [value], pickups=[], clock=clock) as bench:
            told = []
            for _ in range(3):
                answer = await bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"})
                told.append(answer.json()["over_quota_until"])
                assert told[-1] == (await bench.get("/accounts/main"))["usage"]["next_at"]
                clock.advance(600)
            assert told[0] is None
            assert told[1] < told[2]


async def test_a_test_message_of_an_account_that_is_only_slow_went_over_no_limit(tmp_path: Path) -> None:
    """Its next mail of a directory waits for its turn; what limits the account has are not spent."""
    clock = ManualClock()
    async with SmtpServer() as server, running(tmp_path, [account(server)], pickups=[], clock=clock) as bench:
        quotas, value = bench.relay.outlets.quotas, bench.relay.outlets.account("main")
        quota = quotas.throttled(value, "sending_too_fast", reached=0.4, connections=1)
        for _ in range(2):
            quota.reserve(1)
        assert (await bench.get("/accounts/main"))["usage"]["next_at"] is not None
        answer = await bench.http.post("/accounts/main/test-message", json={"to": "jo@example.org"})
        assert (answer.json()["ok"], answer.json()["over_quota_until"]) == (True, None)


async def test_a_process_that_is_killed_again_and_again_counts_what_the_server_took(tmp_path: Path) -> None:
    """With a server so slow that each kill meets mails whose dot is out: what may have been taken counts, too."""
    inbox, ledger = tmp_path / "spool" / "pickup", tmp_path / "ledger"
    inbox.mkdir(parents=True)
    for number in range(MAILS):
        (inbox / f"{number:02}.eml").write_bytes(mail(number))

    def lives() -> None:
        with mail_server(ledger, "--round-trip-seconds", "0.05") as port:
            for life in range(KILLS + 1):
                with service(tmp_path / "data", tmp_path / "spool", MPU_ALLOWED_SMTP_PORTS="0") as one:
                    if life == 0:
                        body = {"host": "127.0.0.1", "port": port, "security": "none"}
                        body |= {"messages_per_second": PER_SECOND}
                        assert one.http.put("/accounts/main", json=body).status_code == 201
                        pickup = {"path": str(inbox), "accounts": ["main"], "retry_initial_seconds": 1}
                        assert one.http.put("/directories/pickup", json=pickup).status_code == 201
                    if life < KILLS:
                        before = len(taken(ledger))
                        wait_until(lambda before=before: len(taken(ledger)) > before + 12, "some more")  # type: ignore[misc]
                        one.kill()
                        continue
                    end = time.monotonic() + 30
                    while list(inbox.glob("*.eml*")) and time.monotonic() < end:
                        one.post("/drain", include_deferred=True, timeout_seconds=30)
                    used = one.http.get("/accounts/main").json()["usage"]
            sent = taken(ledger)
            assert len(set(sent)) == MAILS
            # a connection that was cut off right behind the dot: it may have been taken, so it counts
            assert 0 <= used["messages_last_day"] - len(sent) <= KILLS * 5
            assert used["recipients_last_day"] == used["messages_last_day"]

    await asyncio.to_thread(lives)
