"""What accounts sent is counted with the outcomes: once, by bucket, and for a day."""

from __future__ import annotations

from core.domain.outcome import Outcome
from core.store import retention, usage
from core.store.entry import Status
from core.store.store import Store
from core.store.usage import Usage, Used
from tests.support.database import START, MovableClock, attempt, entry, outcome

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
SENT, DEFERRED, UNKNOWN, FAILED = Outcome.SENT, Outcome.DEFERRED, Outcome.UNKNOWN, Outcome.FAILED


async def of(store: Store, clock: MovableClock, account: str = "main") -> tuple[int, int]:
    found = await store.read(lambda session: usage.of(session, account, now=clock.now()))
    return found.messages_last_day, found.recipients_last_day


async def test_transactions_and_recipients_that_a_server_took_or_may_have_are_counted(
    store: Store, clock: MovableClock
) -> None:
    clock.move(5)
    mixed = [outcome("a@x"), outcome("b@x", DEFERRED, 450), outcome("c@x", UNKNOWN, None), outcome("d@x", FAILED, 550)]
    await store.ledger.settle(
        entry(
            "one.eml",
            attempts=(
                attempt(1, mixed),
                attempt(2, [outcome("b@x", DEFERRED, 450)]),
                attempt(3, [outcome("e@x")], account="other"),
            ),
            status=Status.DEFERRED,
        )
    )
    await store.ledger.settle(entry("two.eml", attempts=(attempt(1, [outcome("a@x")]),)))
    assert await of(store, clock) == (2, 3)
    assert await of(store, clock, "other") == (1, 1)
    assert await of(store, clock, "nobody") == (0, 0)


async def test_what_is_told_twice_counts_once_and_a_retry_counts_anew(store: Store, clock: MovableClock) -> None:
    clock.move(500)
    all_sent = entry("all.eml", attempts=(attempt(1, [outcome("a@x")]),))
    part = attempt(1, [outcome("a@x"), outcome("b@x", DEFERRED, 450)])
    partly = entry("part.eml", attempts=(part,), status=Status.DEFERRED)
    for told in (all_sent, partly, all_sent, partly):
        await store.ledger.settle(told)
    assert await of(store, clock) == (2, 2)
    retried = attempt(200, [outcome("b@x")])
    for attempts in ((retried,), (retried,), (part, retried)):
        await store.ledger.settle(entry("part.eml", attempts=attempts))
    assert await of(store, clock) == (3, 3)
    unknown = entry("maybe.eml", attempts=(attempt(1, [outcome("a@x", UNKNOWN, None)]),), status=Status.UNKNOWN)
    await store.ledger.settle(unknown)
    await store.ledger.settle(entry("maybe.eml", attempts=(attempt(300, [outcome("a@x")]),)))
    assert await of(store, clock) == (5, 5), "it went out twice, for all that the provider knows"


async def test_buckets_end_after_a_day_and_are_forgotten(store: Store, clock: MovableClock) -> None:
    for number, at in enumerate((0.0, 299.0, 300.0, 7200.0)):
        await store.ledger.settle(entry(f"{number}.eml", attempts=(attempt(1, [outcome("a@x")], at=START + at - 1),)))
    clock.move(7210)
    assert await store.read(lambda s: usage.last_day(s, "main", now=clock.now())) == [
        Used(START + 300, 2, 2),
        Used(START + 600, 1, 1),
        Used(START + 7210, 1, 1),
    ]
    assert await store.read(lambda s: usage.of(s, "main", now=clock.now())) == Usage(1, 4, 4)
    clock.time = START + DAY + 299
    assert await of(store, clock) == (4, 4)
    clock.time = START + DAY + 300
    assert await of(store, clock) == (2, 2)
    clock.time = START + DAY + 1500
    assert await retention.run(store, clock) == 2
    assert await of(store, clock) == (1, 1)


async def test_buckets_of_a_clock_that_was_ahead_count_from_now_and_for_a_day(
    store: Store, clock: MovableClock
) -> None:
    await store.ledger.settle(entry("a.eml", attempts=(attempt(1, [outcome("a@x")], at=START + 400 * DAY),)))
    await store.ledger.settle(entry("b.eml", attempts=(attempt(1, [outcome("a@x")], at=START + 10),)))
    clock.move(20)
    for _ in range(2):
        await store.write(lambda session: usage.bring_back(session, now=clock.now()))
        assert await of(store, clock) == (2, 2)
    clock.move(DAY + 300)
    await store.write(lambda session: usage.bring_back(session, now=clock.now()))
    assert await of(store, clock) == (0, 0)
