"""The history: filters, pages that show each recipient once, the life of a message, and how old rows go."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from core.domain.outcome import Outcome
from core.errors import InvalidSettings, NotFound
from core.store import audit, history, idempotency, retention, settings
from core.store.entry import Status
from core.store.history import HistoryFilter, HistoryPage
from core.store.store import Store
from tests.support.database import START, MovableClock, attempt, entry, message_id, outcome

DAY = 86_400.0


async def page(store: Store, where: HistoryFilter | None = None, **options: Any) -> HistoryPage:
    return await store.read(lambda session: history.page(session, where or HistoryFilter(), **options))


async def filled(store: Store, clock: MovableClock) -> None:
    """Four messages, a minute apart."""
    await store.ledger.settle(entry("1.eml", ["anna@One.example", "ben@two.example"], at=clock.now()))
    clock.move(60)
    await store.ledger.settle(entry("2.eml", ["anna@one.example"], what=Outcome.FAILED, directory="mails"))
    clock.move(60)
    told = (attempt(1, [outcome("cleo@two.example", Outcome.DEFERRED, 450)], account="other"),)
    await store.ledger.settle(entry("3.eml", attempts=told, status=Status.DEFERRED, finished=False, sender=""))
    clock.move(60)
    await store.ledger.settle(entry("4.eml", ["dora@one.example"], what=Outcome.UNKNOWN, internet_message_id=None))


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (HistoryFilter(), ["4 dora", "3 cleo", "2 anna", "1 ben", "1 anna"]),
        (HistoryFilter(status=Status.SENT), ["1 ben", "1 anna"]),
        (HistoryFilter(status=Status.FAILED), ["2 anna"]),
        (HistoryFilter(status=Status.DELETED), []),
        (HistoryFilter(recipient="anna@ONE.example"), ["2 anna", "1 anna"]),
        (HistoryFilter(recipient="Anna@one.example"), []),  # local parts are as their server takes them
        (HistoryFilter(recipient="@Two.example"), ["3 cleo", "1 ben"]),
        (HistoryFilter(recipient="@one.exampl"), []),
        (HistoryFilter(sender=""), ["3 cleo"]),
        (HistoryFilter(sender="shop@example.net"), ["4 dora", "2 anna", "1 ben", "1 anna"]),
        (HistoryFilter(directory="mails"), ["2 anna"]),
        (HistoryFilter(account="other"), ["3 cleo"]),
        (HistoryFilter(internet_message_id="<1.eml@example.net>"), ["1 ben", "1 anna"]),
        (HistoryFilter(internet_message_id="<1.eml@example.net>", recipient="ben@two.example"), ["1 ben"]),
        (HistoryFilter(since=START + 60), ["4 dora", "3 cleo", "2 anna"]),
        (HistoryFilter(until=START + 60), ["1 ben", "1 anna"]),
        (HistoryFilter(since=START + 60, until=START + 120), ["2 anna"]),
        (HistoryFilter(since=START + 60, recipient="@one.example"), ["4 dora", "2 anna"]),
        (HistoryFilter(recipient="@two.example", status=Status.SENT, directory="web", account="main"), ["1 ben"]),
        (HistoryFilter(directory="mails", account="other"), []),
        (HistoryFilter(directory="nowhere"), []),
        (HistoryFilter(sender="' OR 1=1 --"), []),
    ],
)
async def test_filters(store: Store, clock: MovableClock, where: HistoryFilter, found: list[str]) -> None:
    await filled(store, clock)
    names = {message_id(f"{n}.eml", "mails" if n == 2 else "web"): str(n) for n in range(1, 5)}
    items = (await page(store, where)).items
    assert [f"{names[row.message_id]} {row.recipient.partition('@')[0]}" for row in items] == found


@pytest.mark.parametrize(
    "subject", ['a "b" \\ c', "\x00\x1b[2J\r\n\x7f", "\u2028 Grüße \U0001f600", '{"a": [1]}', "", None]
)
async def test_text_comes_back_as_it_was(store: Store, subject: str | None) -> None:
    await store.ledger.settle(entry(subject=subject))
    (row,) = (await page(store)).items
    assert row.subject == subject


async def test_a_row_tells_what_became_of_one_recipient(store: Store, clock: MovableClock) -> None:
    clock.move(7)
    await store.ledger.settle(entry(what=Outcome.DEFERRED, possible_duplicate=True))
    (row,) = (await page(store)).items
    assert row == history.HistoryRow(
        message_id=message_id("a.eml"),
        internet_message_id="<a.eml@example.net>",
        directory="web",
        sender="shop@example.net",
        recipient="anna@example.com",
        subject="Your order",
        status=Status.DEFERRED,
        account="main",
        server="smtp.example.com:587",
        code=450,
        enhanced_code=None,
        text="450 said",
        phase=row.phase,
        attempts=1,
        size_bytes=1000,
        arrived_at=START - 5,
        at=START + 7,
        possible_duplicate=True,
    )


async def test_pages_show_each_recipient_once_while_rows_come_change_and_go(store: Store, clock: MovableClock) -> None:
    for n in range(40):
        await store.ledger.settle(entry(f"{n}.eml", what=Outcome.DEFERRED if n % 3 == 0 else Outcome.SENT))
        clock.move(1)
    names = {message_id(f"{n}.eml"): n for n in range(40)}
    seen: list[int] = []
    cursor = None
    for step in range(100):
        shown = await page(store, limit=3, cursor=cursor)
        seen += [names[row.message_id] for row in shown.items]
        cursor = shown.next
        if cursor is None:
            break
        changed = (step * 6) % 40  # ahead of the list, and behind it; some of them more than once
        told = entry(f"{changed}.eml", what=Outcome.SENT if step % 2 else Outcome.DEFERRED, number=step + 2)
        await asyncio.gather(store.ledger.settle(told), store.ledger.settle(entry(f"new {step}.eml")))
        clock.move(1)
        await store.write(lambda session: retention.superseded(session, before=clock.now() - 3600))
    assert seen == list(range(39, -1, -1))
    everything = [row.message_id for row in (await page(store, limit=500)).items]
    assert len(everything) == len(set(everything)) == 40 + 13


async def test_a_page_of_the_exact_length_is_the_last(store: Store) -> None:
    await store.ledger.settle(entry(recipients=[f"r{n}@x.example" for n in range(6)]))
    first = await page(store, limit=3)
    second = await page(store, limit=3, cursor=first.next)
    assert (len(first.items), len(second.items), second.next) == (3, 3, None)
    assert (await page(store, limit=6)).next is None
    assert len((await page(store, limit=100_000)).items) == 6


async def test_a_strange_cursor_is_refused(store: Store) -> None:
    with pytest.raises(InvalidSettings):
        await page(store, cursor="AAAA")


async def test_an_empty_history_has_one_empty_page(store: Store) -> None:
    assert await page(store) == HistoryPage((), None)


async def test_the_life_of_a_mail_that_went_out_at_once(store: Store) -> None:
    await store.ledger.settle(entry(recipients=["a@x.example", "b@x.example"]))
    life = await store.read(lambda session: history.life(session, message_id("a.eml")))
    assert life.status is Status.SENT
    assert life.finished_at == START + 1
    (only,) = life.attempts
    assert (only.number, only.account, only.server, only.tls) == (1, "main", "smtp.example.com:587", "TLSv1.3")
    assert (only.started_at, only.ended_at, only.outcome, only.code) == (START, START + 1, Outcome.SENT, 250)
    assert only.recipients == ("a@x.example", "b@x.example")


async def test_the_life_of_a_mail_with_troubles(store: Store, clock: MovableClock) -> None:
    own = message_id("a.eml")
    await store.ledger.settle(entry(what=Outcome.DEFERRED))
    await store.ledger.settle(entry(what=Outcome.FAILED, number=2, at=START + 60))
    await store.write(lambda session: history.act(session, own, "retry", key="ops", now=START + 90))
    await store.ledger.settle(entry(what=Outcome.SENT, number=1, at=START + 120))  # numbers begin again
    life = await store.read(lambda session: history.life(session, own))
    assert [(a.number, a.outcome, a.code) for a in life.attempts] == [
        (1, Outcome.DEFERRED, 450),
        (2, Outcome.FAILED, 550),
        (3, Outcome.SENT, 250),
    ]
    assert [(a.act, a.key, a.at) for a in life.acts] == [("retry", "ops", START + 90)]
    assert [(r.recipient, r.status) for r in life.recipients] == [("anna@example.com", Status.SENT)]
    assert (life.first_attempt_at, life.finished_at) == (START, START + 121)


async def test_a_message_without_any_recipient_is_in_the_history(store: Store) -> None:
    told = entry(attempts=(), status=Status.FAILED, finished=True, reason="no recipient", enhanced_code="5.1.3")
    await store.ledger.settle(told)
    (row,) = (await page(store, HistoryFilter(status=Status.FAILED))).items
    assert (row.recipient, row.text, row.enhanced_code) == ("", "no recipient", "5.1.3")
    await store.ledger.settle(entry(number=1))  # its recipients are known by now
    assert [row.recipient for row in (await page(store)).items] == ["anna@example.com"]


async def test_an_unknown_message_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.read(lambda session: history.life(session, message_id("none.eml")))


async def test_old_history_goes_and_what_is_younger_stays(store: Store, clock: MovableClock) -> None:
    for n in range(130):
        await store.ledger.settle(entry(f"old {n}.eml", ["a@x.example", "b@x.example"], what=Outcome.DEFERRED))
    await store.ledger.settle(entry("long.eml", what=Outcome.DEFERRED))
    await store.write(lambda s: history.act(s, message_id("old 1.eml"), "hold", key="ops", now=clock.now()))
    await store.write(lambda s: audit.record(s, key="ops", action="x", target="y", now=clock.now()))
    clock.move(30 * DAY)
    await store.ledger.settle(entry("long.eml", number=2, at=clock.now()))
    clock.move(61 * DAY)
    await store.ledger.settle(entry("new.eml"))
    assert await retention.run(store, clock) > 0
    assert [row.message_id for row in (await page(store)).items] == [message_id("new.eml"), message_id("long.eml")]
    assert len((await store.read(lambda s: history.life(s, message_id("long.eml")))).attempts) == 2
    with pytest.raises(NotFound):
        await store.read(lambda s: history.life(s, message_id("old 1.eml")))
    assert await store.read(lambda s: history.acts(s, message_id("old 1.eml"))) == ()
    assert (await store.read(audit.page))[0] == []

    def counts(session: Any) -> list[int]:
        one = session.connection().exec_driver_sql
        return [one(f"SELECT count(*) FROM {table}").scalar() for table in ("message", "recipient", "attempt")]

    assert await store.read(counts) == [2, 2, 2]
    assert await retention.run(store, clock) == 0


@pytest.mark.parametrize(("days", "left"), [(None, 1), (0, 0)])
async def test_history_days_may_be_unlimited_or_none(
    store: Store, clock: MovableClock, days: int | None, left: int
) -> None:
    await store.ledger.settle(entry())
    await store.write(lambda session: settings.put(session, "history_days", days))
    clock.move(1)
    await retention.run(store, clock)
    assert len((await page(store)).items) == left


async def test_one_batch_of_retention_keeps_to_its_time(store: Store, clock: MovableClock) -> None:
    await store.ledger.settle(entry(recipients=[f"r{n}@x.example" for n in range(500)]))
    clock.move(DAY)
    first = await store.write(lambda s: retention.history(s, before=clock.now(), budget_seconds=0))
    assert 0 < first < 500  # one look at the clock is enough to stop
    total = first
    while count := await store.write(lambda s: retention.history(s, before=clock.now(), budget_seconds=0)):
        total += count
    assert total == 501


async def test_an_idempotency_key_counts_for_a_day_and_its_api_key(store: Store, clock: MovableClock) -> None:
    now, find = clock.now(), idempotency.find
    facts: dict[str, Any] = {"api_key": 1, "body_hash": "h", "message_id": "m"}
    await store.write(lambda s: idempotency.reserve(s, "k", now=now, **facts))
    first = idempotency.Use("k", "h", "m", now)
    assert await store.read(lambda s: find(s, "k", api_key=1, now=now + DAY - 1)) == first
    assert await store.read(lambda s: find(s, "k", api_key=2, now=now)) is None
    assert await store.read(lambda s: find(s, "k", api_key=1, now=now + DAY)) is None
    await store.write(lambda s: idempotency.reserve(s, "k", now=now + DAY, **facts | {"message_id": "n"}))
    later = await store.read(lambda s: find(s, "k", api_key=1, now=now + DAY))
    assert later == idempotency.Use("k", "h", "n", now + DAY)
    assert await store.write(lambda s: idempotency.forget_old(s, now=now + 3 * DAY)) == 1


async def test_only_the_mail_that_a_key_is_reserved_for_marks_it_as_written(store: Store, clock: MovableClock) -> None:
    async def reserve(message_id: str) -> None:
        await store.write(
            lambda s: idempotency.reserve(s, "k", api_key=1, body_hash="h", message_id=message_id, now=clock.now())
        )

    async def written(message_id: str) -> bool:
        await store.write(lambda s: idempotency.written(s, "k", api_key=1, message_id=message_id))
        use = await store.read(lambda s: idempotency.find(s, "k", api_key=1, now=clock.now()))
        return use is not None and use.written

    await reserve("m")
    assert [await written("other"), await written("m")] == [False, True]
    await reserve("n")
    assert [await written("m"), await written("n")] == [False, True]
