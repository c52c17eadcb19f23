"""What becomes of a message: every kind of outcome, whole lives until expiry, unknowns, retries."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from core.domain.account import Directory, OnUnknown
from core.domain.lifecycle import EXPIRY_MIN_ATTEMPTS, Disposition, Settlement, explain, letter, restart, settle
from core.domain.outcome import Blame, Outcome, RecipientOutcome
from core.domain.reply import Phase
from core.domain.sidecar import Sidecar

DIRECTORY = Directory("in", "/in", ("out",))
NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 86_400.0
A, B, C = "a@example.com", "b@example.com", "c@example.com"

SENT = RecipientOutcome(A, Outcome.SENT, Phase.DOT, None, 250, "2.0.0", "2.0.0 queued")
LATER = RecipientOutcome(A, Outcome.DEFERRED, Phase.RCPT, Blame.RECIPIENT, 450, "4.2.1", "4.2.1 too quickly")
BUSY = RecipientOutcome(A, Outcome.DEFERRED, Phase.DOT, Blame.TRANSIENT, 451, "4.3.0", "4.3.0 later")
NEVER = RecipientOutcome(A, Outcome.FAILED, Phase.RCPT, Blame.RECIPIENT, 550, "5.1.1", "5.1.1 no such user")
UNKNOWN = RecipientOutcome(A, Outcome.UNKNOWN, Phase.DOT, None, text="no reply after the final dot")
ACCOUNT = RecipientOutcome(A, Outcome.DEFERRED, Phase.MAIL, Blame.ACCOUNT, 454, None, "rate")
SENDER_WAITS = RecipientOutcome(A, Outcome.DEFERRED, Phase.MAIL, Blame.SENDER, 550, "5.7.60", "5.7.60 not as you")

DELETE, PUT_BACK, BADMAIL, HOLD = Disposition.DELETE, Disposition.PUT_BACK, Disposition.BADMAIL, Disposition.HOLD


def decide(
    *outcomes: RecipientOutcome | None,
    before: Sidecar | None = None,
    directory: Directory = DIRECTORY,
    now: float = NOW,
    chance: float = 0.5,
) -> Settlement:
    """Outcomes of A, B, C in this order; None: not tried."""
    recipients = (A, B, C)[: len(outcomes)]
    given = {r: replace(o, recipient=r) for r, o in zip(recipients, outcomes, strict=True) if o is not None}
    return settle(directory, before, recipients, given, now=now, chance=chance, account="out")


# --- one claim -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "disposition", "status", "attempts"),
    [
        ((SENT,), DELETE, Outcome.SENT, None),
        ((SENT, SENT, SENT), DELETE, Outcome.SENT, None),
        ((NEVER,), BADMAIL, Outcome.FAILED, 1),
        ((SENT, NEVER), BADMAIL, Outcome.FAILED, 1),
        ((LATER,), PUT_BACK, Outcome.DEFERRED, 1),
        ((BUSY, BUSY), PUT_BACK, Outcome.DEFERRED, 1),
        ((SENT, LATER), PUT_BACK, Outcome.DEFERRED, 1),
        ((NEVER, LATER), PUT_BACK, Outcome.DEFERRED, 1),
        ((SENT, NEVER, LATER), PUT_BACK, Outcome.DEFERRED, 1),
        ((UNKNOWN,), PUT_BACK, Outcome.UNKNOWN, 1),
        ((UNKNOWN, NEVER), PUT_BACK, Outcome.UNKNOWN, 1),
        ((UNKNOWN, LATER), PUT_BACK, Outcome.UNKNOWN, 1),
        ((SENDER_WAITS,), PUT_BACK, Outcome.DEFERRED, 1),
        ((ACCOUNT,), PUT_BACK, Outcome.DEFERRED, None),
        ((ACCOUNT, None), PUT_BACK, Outcome.DEFERRED, None),
        ((None,), PUT_BACK, Outcome.DEFERRED, None),
        ((ACCOUNT, LATER), PUT_BACK, Outcome.DEFERRED, 1),
        ((SENT, ACCOUNT), PUT_BACK, Outcome.DEFERRED, 0),
        ((NEVER, ACCOUNT), PUT_BACK, Outcome.DEFERRED, 0),
        ((SENT, None), PUT_BACK, Outcome.DEFERRED, 0),
    ],
)
def test_the_outcomes_decide(
    outcomes: tuple[RecipientOutcome | None, ...], disposition: Disposition, status: Outcome, attempts: int | None
) -> None:
    """`attempts` None: no sidecar is written."""
    settlement = decide(*outcomes)
    written = settlement.sidecar
    assert (settlement.disposition, settlement.status) == (disposition, status)
    assert (None if written is None else written.attempts) == attempts
    assert settlement.finished is (disposition in (DELETE, BADMAIL))


def test_the_fault_of_an_account_changes_nothing_of_what_is_known() -> None:
    before = Sidecar(attempts=2, first_attempt_at=1.0, last_attempt_at=2.0, due_at=3.0, accepted=frozenset({B}))
    settlement = decide(ACCOUNT, before=before)
    assert (settlement.disposition, settlement.sidecar) == (PUT_BACK, None)


def test_an_accepted_recipient_is_remembered_beside_the_fault_of_an_account() -> None:
    before = Sidecar(attempts=2, first_attempt_at=1.0, last_attempt_at=2.0, age_seconds=9.0, due_at=3.0)
    after = decide(SENT, ACCOUNT, before=before).sidecar
    assert after is not None
    assert after.accepted == {A}
    assert (after.attempts, after.last_attempt_at, after.age_seconds, after.due_at) == (2, 2.0, 9.0, 3.0)


def test_what_is_remembered_of_a_deferral() -> None:
    after = decide(SENT, NEVER, LATER).sidecar
    assert after == Sidecar(
        attempts=1,
        first_attempt_at=NOW,
        last_attempt_at=NOW,
        due_at=NOW + 60,
        accepted=frozenset({A}),
        failed=frozenset({B}),
        refusals=(f"{B}: 550 5.1.1 no such user (rcpt)",),
        reason=f"{C}: 450 4.2.1 too quickly (rcpt)",
        text=LATER.text,
        blame="recipient",
        code=450,
        enhanced_code="4.2.1",
        account="out",
    )


def test_the_letter_names_every_refused_recipient_and_counts_those_that_have_it() -> None:
    first = decide(SENT, NEVER, LATER)
    last = decide(None, None, NEVER, before=first.sidecar)
    assert last.disposition is BADMAIL
    assert letter(last).splitlines() == [
        f"{B}: 550 5.1.1 no such user (rcpt)",
        f"{C}: 550 5.1.1 no such user (rcpt)",
        "Recipients that have it already: 1. `mpu retry` does not send to them again.",
    ]


def test_recipients_of_earlier_claims_stay_decided() -> None:
    before = Sidecar(attempts=1, accepted=frozenset({A}), failed=frozenset({B}), reason="b was refused")
    settlement = decide(None, None, SENT, before=before)
    assert (settlement.disposition, settlement.status, settlement.reason) == (BADMAIL, Outcome.FAILED, "b was refused")
    assert settlement.sidecar is not None
    assert (settlement.sidecar.accepted, settlement.sidecar.failed) == (frozenset({A, C}), frozenset({B}))


def test_nothing_takes_an_acceptance_back() -> None:
    settlement = decide(NEVER, SENT, before=Sidecar(attempts=1, accepted=frozenset({A})))
    assert settlement.disposition is DELETE


def test_all_decided_before_and_only_the_file_left_over() -> None:
    before = Sidecar(attempts=3, accepted=frozenset({A, B}))
    assert decide(None, None, before=before).disposition is DELETE
    assert decide(None, None, before=replace(before, accepted=frozenset({A}), failed=frozenset({B}))).disposition is (
        BADMAIL
    )


def test_dead_mail_is_not_due() -> None:
    dead = decide(NEVER, before=Sidecar(attempts=1, last_attempt_at=NOW - 60, due_at=NOW)).sidecar
    assert dead is not None
    assert dead.due_at is None


# --- whole lives -----------------------------------------------------------------------------------------------------


def live(
    directory: Directory = DIRECTORY,
    *,
    outcome: RecipientOutcome = LATER,
    gaps: dict[int, float] | None = None,
    every: float | None = None,
    limit: int = 1000,
) -> tuple[list[float], Settlement]:
    """Try whenever due until it is over: seconds from the first to each attempt, and how it ended.

    `gaps`: seconds added before that attempt (1 is the second). `every`: tried only at multiples of it.
    """
    sidecar: Sidecar | None = None
    now, times = NOW, []
    for number in range(1, limit):
        settlement = decide(outcome, before=sidecar, directory=directory, now=now)
        times.append(now - NOW)
        sidecar = settlement.sidecar
        if settlement.disposition is not PUT_BACK:
            return times, settlement
        assert sidecar is not None
        assert sidecar.due_at is not None
        now = sidecar.due_at + (gaps or {}).get(number, 0.0)
        if every is not None:
            now = NOW + -(-(now - NOW) // every) * every
    raise AssertionError("it never ended")


def test_a_mail_is_given_up_after_five_days_and_not_before() -> None:
    times, end = live()
    assert times[:8] == [0, 60, 180, 420, 900, 1860, 3780, 3780 + HOUR]
    assert [b - a for a, b in itertools.pairwise(times[7:])] == [HOUR] * (len(times) - 8)
    assert 5 * DAY < times[-1] <= 5 * DAY + HOUR
    assert (end.disposition, end.status, end.expired) == (BADMAIL, Outcome.FAILED, (A,))
    assert end.reason == f"given up after {len(times)} attempts; the last: {A}: 450 4.2.1 too quickly (rcpt)"
    assert end.sidecar is not None
    assert (end.sidecar.failed, end.sidecar.due_at, end.sidecar.reason) == (frozenset({A}), None, end.reason)


@pytest.mark.parametrize(
    ("expire_after", "attempts"),
    [(1, 5), (899, 5), (900, 6), (901, 6), (1859, 6), (1860, 7)],
)
def test_expiry_needs_the_age_and_five_attempts(expire_after: float, attempts: int) -> None:
    times, _ = live(replace(DIRECTORY, expire_after_seconds=expire_after))
    assert len(times) == attempts >= EXPIRY_MIN_ATTEMPTS


@pytest.mark.parametrize("pause", [5 * DAY, 30 * DAY])
@pytest.mark.parametrize("at", [1, 4, 20, 60])
def test_a_pause_makes_no_mail_old(at: int, pause: float) -> None:
    undisturbed, _ = live()
    times, _ = live(gaps={at: pause})
    assert len(undisturbed) - 1 <= len(times) <= len(undisturbed)  # at most one more delay counts
    assert times[-1] > pause + undisturbed[-1] - 2 * HOUR


@pytest.mark.parametrize("jump", [DAY, 365 * DAY, -DAY, -365 * DAY])
def test_a_jump_of_the_clock_expires_nothing_at_once(jump: float) -> None:
    before = Sidecar(attempts=50, first_attempt_at=NOW - 2 * DAY, last_attempt_at=NOW, age_seconds=2 * DAY, due_at=NOW)
    settlement = decide(LATER, before=before, now=NOW + jump)
    assert settlement.disposition is PUT_BACK
    assert settlement.sidecar is not None
    assert 2 * DAY <= settlement.sidecar.age_seconds <= 2 * DAY + HOUR


def test_nightly_mail_is_given_up_after_five_days_too() -> None:
    nightly = replace(DIRECTORY, interval_seconds=None, schedule="0 3 * * *", watch=False)
    times, _ = live(nightly, every=DAY)
    assert times == [n * DAY for n in range(7)]


def test_weekly_mail_has_its_five_attempts() -> None:
    weekly = replace(DIRECTORY, interval_seconds=None, schedule="0 3 * * 1", watch=False)
    times, _ = live(weekly, every=7 * DAY)
    assert len(times) == EXPIRY_MIN_ATTEMPTS


def test_the_first_attempt_is_kept_and_counted_attempts_add_up() -> None:
    sidecar: Sidecar | None = None
    for number, outcome in enumerate([LATER, ACCOUNT, BUSY, ACCOUNT, LATER]):
        sidecar = decide(outcome, before=sidecar, now=NOW + number * HOUR).sidecar or sidecar
    assert sidecar is not None
    assert (sidecar.attempts, sidecar.first_attempt_at, sidecar.last_attempt_at) == (3, NOW, NOW + 4 * HOUR)


# --- unknown ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_an_unknown_outcome_is_retried_so_often_then_held(most: int) -> None:
    times, end = live(replace(DIRECTORY, unknown_max=most), outcome=UNKNOWN)
    assert len(times) == 1 + most
    assert (end.disposition, end.status, end.finished) == (HOLD, Outcome.UNKNOWN, False)
    assert end.sidecar is not None
    assert (end.sidecar.unknown, end.sidecar.due_at, end.sidecar.possible_duplicate) == (1 + most, None, True)


def test_an_unknown_outcome_backs_off_and_marks_the_mail() -> None:
    after = decide(UNKNOWN).sidecar
    assert after is not None
    assert (after.unknown, after.possible_duplicate, after.due_at, after.attempts) == (1, True, NOW + 60, 1)


def test_an_unknown_outcome_can_be_held_at_once() -> None:
    settlement = decide(UNKNOWN, SENT, directory=replace(DIRECTORY, on_unknown=OnUnknown.HOLD))
    assert (settlement.disposition, settlement.status) == (HOLD, Outcome.UNKNOWN)
    assert settlement.sidecar is not None
    assert (settlement.sidecar.accepted, settlement.sidecar.due_at) == (frozenset({B}), None)


def test_a_mail_that_may_be_a_duplicate_stays_marked() -> None:
    first = decide(UNKNOWN).sidecar
    after = decide(LATER, before=first, now=NOW + 60).sidecar
    assert after is not None
    assert (after.unknown, after.possible_duplicate, after.attempts) == (1, True, 2)


# --- retry from badmail, and words -----------------------------------------------------------------------------------


def test_a_retry_starts_again_but_keeps_who_has_the_mail() -> None:
    dead = Sidecar(
        attempts=9,
        unknown=2,
        first_attempt_at=1.0,
        last_attempt_at=2.0,
        age_seconds=9e9,
        due_at=3.0,
        accepted=frozenset({A}),
        failed=frozenset({B}),
        message_id="<1@host>",
        date="Tue, 1 Jan 2030 00:00:00 +0000",
        possible_duplicate=True,
        reason="no",
        text="no",
        blame="recipient",
        code=550,
        enhanced_code="5.1.1",
        account="out",
    )
    assert restart(dead) == Sidecar(
        accepted=frozenset({A}),
        message_id="<1@host>",
        date="Tue, 1 Jan 2030 00:00:00 +0000",
        possible_duplicate=True,
    )
    assert restart(None) == Sidecar()


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (NEVER, f"{A}: 550 5.1.1 no such user (rcpt)"),
        (replace(NEVER, text="no such user"), f"{A}: 550 5.1.1 no such user (rcpt)"),
        (replace(NEVER, enhanced_code=None, text=""), f"{A}: 550 (rcpt)"),
        (UNKNOWN, f"{A}: no reply after the final dot (dot)"),
        (replace(UNKNOWN, text=""), f"{A}: unknown (dot)"),
    ],
)
def test_an_outcome_in_one_line(outcome: RecipientOutcome, line: str) -> None:
    assert explain(outcome) == line


@pytest.mark.parametrize(
    ("outcomes", "named"),
    [
        ((LATER, NEVER), A),
        ((LATER, UNKNOWN), B),
        ((UNKNOWN, NEVER, LATER), A),
        ((SENT, LATER, LATER), B),
        ((LATER, LATER), A),
        ((SENT, NEVER, NEVER), B),
    ],
)
def test_the_worst_outcome_of_those_that_wait_is_the_reason(outcomes: tuple[RecipientOutcome, ...], named: str) -> None:
    assert decide(*outcomes).reason.startswith(f"{named}: ")


def test_a_mail_that_is_dead_for_one_says_so_though_another_was_taken_last() -> None:
    first = decide(SENT, NEVER, LATER)
    assert first.sidecar is not None
    assert first.sidecar.code == 450, "what it waits for"
    last = settle(DIRECTORY, first.sidecar, (A, B, C), {C: replace(SENT, recipient=C)}, now=NOW, chance=0.5)
    assert last.disposition is BADMAIL
    assert last.sidecar is not None
    assert (last.sidecar.code, last.sidecar.enhanced_code, last.sidecar.blame) == (550, "5.1.1", "recipient")
    assert last.reason == last.sidecar.reason == explain(replace(NEVER, recipient=B))


def test_outcomes_of_others_make_no_mail_sent() -> None:
    """Of a log that an older version wrote, which spelled a mailbox otherwise."""
    given = {B: replace(SENT, recipient=B)}
    assert settle(DIRECTORY, None, (A,), given, now=NOW, chance=0.5).disposition is not DELETE
