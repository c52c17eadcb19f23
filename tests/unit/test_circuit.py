"""The circuit of an account: when a message may go, when one goes on trial, how long each pause is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.domain.circuit import LOGIN_TRIALS_MAX, TRIAL, Circuit, Pause, PausedBy, operators_pause
from core.domain.outcome import AccountFault
from core.domain.reply import Phase

T = 1_800_000_000.0
MINUTE, HOUR = 60.0, 3600.0
REFUSED = AccountFault("out", Phase.AUTH, "login_refused", "535 no", "Check the password.", None, passing=False)
QUOTA = AccountFault("out", Phase.DOT, "quota_exceeded", "554 quota", "Wait.", HOUR, passing=False)
PASSING = AccountFault("out", Phase.CONNECT, "connect_failed", "refused", "Check the host.", MINUTE, passing=True)
OPERATOR = Pause(PausedBy.OPERATOR, "operator", "maintenance", T, None, "Resume it when you are done.")


def fail_on_trial(circuit: Circuit, fault: AccountFault, at: float, chance: float = 0.5) -> Circuit:
    assert circuit.blocked(at) is None
    return circuit.begin_trial().failed(fault, now=at, chance=chance)


def pauses(fault: AccountFault, times: int, chance: float = 0.5) -> list[float]:
    """Seconds of each pause when every trial fails the same way."""
    circuit, now, lengths = Circuit(), T, []
    for _ in range(times):
        circuit = circuit.begin_trial().failed(fault, now=now, chance=chance)
        opens = circuit.opens_at
        assert opens is not None
        assert circuit.blocked(opens - 0.001) == circuit.pause
        assert circuit.blocked(opens) is None
        lengths.append(round(opens - now, 3))
        now = opens
    return lengths


@pytest.mark.parametrize(
    ("fault", "chance", "lengths"),
    [
        (PASSING, 0.5, [60, 120, 240, 480, 960, 1920, 3600, 3600]),
        (PASSING, 0.0, [54, 108, 216, 432, 864, 1728, 3240, 3240]),
        (PASSING, 1.0, [66, 132, 264, 528, 1056, 2112, 3600, 3600]),
        (replace(PASSING, pause_seconds=10), 0.5, [10, 20, 40, 80, 160, 320, 640, 1280]),
        (replace(PASSING, code="sending_too_fast", pause_seconds=10), 0.5, [10, 20, 40, 60, 60, 60, 60, 60]),
        (replace(PASSING, pause_seconds=7200), 0.5, [7200, 7200, 7200, 7200, 7200, 7200, 7200, 7200]),
        (QUOTA, 0.0, [HOUR] * 8),  # tried hourly
        (replace(QUOTA, pause_seconds=900), 1.0, [900] * 8),
        (REFUSED, 0.5, [HOUR] * LOGIN_TRIALS_MAX),
    ],
)
def test_each_pause_has_its_length(fault: AccountFault, chance: float, lengths: list[float]) -> None:
    assert pauses(fault, len(lengths), chance) == lengths


def test_a_refused_login_is_tried_five_times_then_only_when_somebody_acts() -> None:
    circuit = Circuit().failed(REFUSED, now=T, chance=0.5)
    for trial in range(1, LOGIN_TRIALS_MAX + 1):
        circuit = fail_on_trial(circuit, REFUSED, T + trial * HOUR)
    assert circuit.opens_at is None
    assert circuit.blocked(T + 1000 * HOUR) == circuit.pause
    assert circuit.pause is not None
    assert (circuit.pause.since, circuit.pause.until, circuit.pause.code) == (T, None, "login_refused")
    assert circuit.resumed().blocked(T) is None


def test_another_fault_between_does_not_give_a_refused_login_more_trials() -> None:
    circuit, now, logins = Circuit().failed(REFUSED, now=T, chance=0.5), T, 1
    for _ in range(20):
        opens = circuit.opens_at
        if opens is None:
            break
        now = opens
        circuit = fail_on_trial(circuit, PASSING, now)
        assert circuit.opens_at is not None
        now = circuit.opens_at
        circuit = fail_on_trial(circuit, REFUSED, now)
        logins += 1
    assert logins == 1 + LOGIN_TRIALS_MAX


def test_closed_lets_everything_through() -> None:
    circuit = Circuit()
    assert circuit.blocked(T) is None
    assert circuit.opens_at is None
    assert circuit.begin_trial() is circuit


def test_the_pause_says_who_why_since_and_what_to_do() -> None:
    pause = Circuit().failed(PASSING, now=T, chance=0.5).pause
    assert pause == Pause(PausedBy.SERVICE, "connect_failed", "refused", T, T + MINUTE, "Check the host.", 0)


def test_only_one_message_goes_on_trial() -> None:
    circuit = Circuit().failed(PASSING, now=T, chance=0.5)
    assert circuit.begin_trial().blocked(T + MINUTE) == circuit.pause
    assert circuit.begin_trial().end_trial() == circuit  # it did not get far enough to tell


def test_success_closes_and_forgets() -> None:
    circuit = fail_on_trial(Circuit().failed(PASSING, now=T, chance=0.5), PASSING, T + MINUTE)
    assert circuit.begin_trial().succeeded() == Circuit()


def test_since_is_the_first_fault_in_a_row() -> None:
    circuit = fail_on_trial(Circuit().failed(PASSING, now=T, chance=0.5), QUOTA, T + MINUTE)
    assert circuit.pause is not None
    assert (circuit.pause.since, circuit.pause.code, circuit.pause.until) == (T, "quota_exceeded", T + MINUTE + HOUR)


@pytest.mark.parametrize("jump", [-365 * 24 * HOUR, -24 * HOUR, -1.0])
@pytest.mark.parametrize("fault", [PASSING, QUOTA, REFUSED])
def test_a_clock_set_back_keeps_no_account_waiting(fault: AccountFault, jump: float) -> None:
    circuit = Circuit().failed(fault, now=T, chance=0.5)
    assert circuit.blocked(T + jump) is not None
    waited = circuit.waited()
    assert waited.blocked(T + jump) is None
    assert waited.begin_trial().blocked(T + jump) is not None  # still one alone
    assert waited.begin_trial().failed(fault, now=T + jump, chance=0.5).blocked(T + jump) is not None
    assert Circuit().waited() == Circuit()


# --- operators -------------------------------------------------------------------------------------------------------


def test_an_operators_pause_holds_until_an_operator_or_its_until() -> None:
    forever = Circuit().paused_by_operator(operators_pause("maintenance", since=T, until=None))
    assert forever.pause == OPERATOR
    assert forever.blocked(T + 1e9) == OPERATOR
    timed = Circuit().paused_by_operator(operators_pause("maintenance", since=T, until=T + HOUR))
    assert timed.blocked(T + HOUR - 0.001) == timed.pause
    assert timed.blocked(T + HOUR) is None
    assert timed.opens_at == T + HOUR


def test_an_operators_pause_replaces_the_services_and_starts_anew() -> None:
    circuit = (
        Circuit()
        .failed(REFUSED, now=T, chance=0.5)
        .paused_by_operator(operators_pause("maintenance", since=T + 5, until=None))
    )
    assert circuit.pause == replace(OPERATOR, since=T + 5)
    assert circuit.opens_at is None  # no trial login


@pytest.mark.parametrize("until", [None, T + HOUR])
@pytest.mark.parametrize("fault", [PASSING, QUOTA, REFUSED])
def test_no_fault_touches_an_operators_pause_in_force(fault: AccountFault, until: float | None) -> None:
    circuit = Circuit().paused_by_operator(operators_pause("maintenance", since=T, until=until))
    assert circuit.begin_trial().failed(fault, now=T + 1, chance=0.5) == circuit


@pytest.mark.parametrize("fault", [PASSING, QUOTA, REFUSED])
def test_a_fault_after_an_operators_until_pauses_as_any_other(fault: AccountFault) -> None:
    over = Circuit().paused_by_operator(operators_pause("maintenance", since=T, until=T + HOUR))
    circuit = fail_on_trial(over, fault, T + 2 * HOUR)
    fresh = Circuit().failed(fault, now=T + 2 * HOUR, chance=0.5)
    assert circuit == fresh
    assert circuit.blocked(T + 2 * HOUR) is not None


def test_resuming_lets_one_message_try_at_once_and_alone() -> None:
    circuit = Circuit().failed(REFUSED, now=T, chance=0.5).resumed()
    assert circuit.pause is None
    assert circuit.blocked(T) is None
    on_trial = circuit.begin_trial()
    assert on_trial.blocked(T) == TRIAL
    assert on_trial.end_trial().blocked(T) is None
    assert on_trial.succeeded() == Circuit()


def test_resuming_forgets_the_trials_but_not_the_faults_in_a_row() -> None:
    circuit = Circuit().failed(PASSING, now=T, chance=0.5).resumed()
    assert fail_on_trial(circuit, PASSING, T + 1).opens_at == T + 1 + 2 * MINUTE
    exhausted = Circuit(Pause(PausedBy.SERVICE, "login_refused", "no", T, trials=LOGIN_TRIALS_MAX + 1))
    assert fail_on_trial(exhausted.resumed(), REFUSED, T).opens_at == T + HOUR


def test_resuming_lets_another_try_whatever_became_of_the_one_on_trial() -> None:
    on_trial = Circuit().failed(REFUSED, now=T, chance=0.5).resumed().begin_trial()
    assert on_trial.resumed().blocked(T) is None


def test_resuming_what_is_not_paused_changes_nothing() -> None:
    circuit = Circuit()
    assert circuit.resumed() is circuit


# --- after a restart -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pause", "opens_at"),
    [
        (None, None),
        (Pause(PausedBy.SERVICE, "quota_exceeded", "", T, T + HOUR), T + HOUR),
        (Pause(PausedBy.SERVICE, "login_refused", "", T, trials=1), T + HOUR),
        (Pause(PausedBy.SERVICE, "login_refused", "", T, trials=3), T + 3 * HOUR),
        (Pause(PausedBy.SERVICE, "login_refused", "", T, trials=LOGIN_TRIALS_MAX), T + LOGIN_TRIALS_MAX * HOUR),
        (Pause(PausedBy.SERVICE, "login_refused", "", T, trials=LOGIN_TRIALS_MAX + 1), None),
        (OPERATOR, None),
        (replace(OPERATOR, until=T + HOUR), T + HOUR),
    ],
)
def test_a_stored_pause_goes_on_where_it_was(pause: Pause | None, opens_at: float | None) -> None:
    circuit = Circuit.stored(pause)
    assert circuit.opens_at == opens_at
    assert circuit.pause == pause


def test_a_restart_gives_a_refused_login_no_more_trials() -> None:
    circuit, now, logins = Circuit().failed(REFUSED, now=T, chance=0.5), T, 1
    while (opens := circuit.opens_at) is not None:
        now = max(now, opens)
        circuit = Circuit.stored(fail_on_trial(circuit, REFUSED, now).pause)
        logins += 1
    assert logins == 1 + LOGIN_TRIALS_MAX
