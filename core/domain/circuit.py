"""The circuit breaker of an account: closed, open until a time, half-open with one message on trial.

Pure: the time is passed in. A service's pause that ends by itself lets ONE message try; its success closes the circuit,
another fault opens it again, longer. A refused login is tried again once an hour, at most 5 times, then only when an
operator resumes or edits the account: providers lock accounts whose login is hammered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from core.domain.backoff import delay_seconds
from core.domain.blame import TOO_FAST
from core.domain.outcome import AccountFault

PASSING_MAX_SECONDS = 3600.0
SLOWER_MAX_SECONDS = 60.0  # of a server that is sent to too fast: the rate is what mends it, not the pause
LOGIN_TRIAL_SECONDS = 3600.0
LOGIN_TRIALS_MAX = 5


class PausedBy(StrEnum):
    """Who paused."""

    OPERATOR = "operator"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Pause:
    """Why something stands still. Times in seconds since the epoch; `until` None: until it is resumed."""

    by: PausedBy
    code: str
    reason: str
    since: float
    until: float | None = None
    remedy: str = ""
    trials: int = 0  # tried since, to see whether it can be lifted

    def in_force(self, now: float) -> bool:
        """Whether its `until` is still to come."""
        return self.until is None or now < self.until


def operators_pause(reason: str, *, since: float, until: float | None) -> Pause:
    """Of whatever stands still by an operator's act."""
    return Pause(PausedBy.OPERATOR, "operator", reason, since, until, "Resume it when you are done.")


TRIAL = Pause(PausedBy.SERVICE, "trial", "one message is tried first", 0.0, None)


@dataclass(frozen=True, slots=True)
class Circuit:
    """An account's circuit: why it is open, faults in a row, and whether one message is trying now."""

    pause: Pause | None = None
    half_open: bool = False  # resumed: the next message goes alone
    failures: int = 0
    next_trial_at: float | None = None  # of a refused login
    trial: bool = False
    due: bool = False  # the wait is over by the monotonic clock, whatever the wall clock says

    def blocked(self, now: float) -> Pause | None:
        """The pause that keeps a message from going now; None: it may go (perhaps as the one on trial)."""
        if self.trial:
            return self.pause or TRIAL
        if self.pause is None or self.due:
            return None
        opens = self.opens_at
        return None if opens is not None and now >= opens else self.pause

    @property
    def opens_at(self) -> float | None:
        """When a message may try next; None: closed already, or only after an operator's act."""
        if self.pause is None:
            return None
        if self.pause.until is not None:
            return self.pause.until
        return self.next_trial_at if self.pause.by is PausedBy.SERVICE else None

    def waited(self) -> Circuit:
        """The time until `opens_at` has passed: a clock that was set back since keeps no account waiting."""
        return replace(self, due=True) if self.pause is not None else self

    def begin_trial(self) -> Circuit:
        """A message goes through although the pause isn't lifted yet."""
        return replace(self, trial=True) if self.pause is not None or self.half_open else self

    def end_trial(self) -> Circuit:
        """The message on trial did not get as far as to tell (it vanished, or was refused for its own sake)."""
        return replace(self, trial=False)

    def succeeded(self) -> Circuit:
        """The server took a message or refused it politely: the account works."""
        return Circuit()

    def failed(self, fault: AccountFault, *, now: float, chance: float) -> Circuit:
        """Open, longer each time. An operator's pause stays the operator's while it is in force."""
        present = self.pause
        if present is not None and present.by is PausedBy.OPERATOR:
            if present.in_force(now):
                return self.end_trial()
            present = None
        failures, until, trial_at = self.failures + 1, None, None
        trials = present.trials if present is not None else 0
        if fault.pause_seconds is not None:
            seconds = fault.pause_seconds
            if fault.passing:
                top = max(SLOWER_MAX_SECONDS if fault.code == TOO_FAST else PASSING_MAX_SECONDS, seconds)
                seconds = delay_seconds(failures, initial_seconds=seconds, max_seconds=top, chance=chance)
            until = now + seconds
        else:
            trials += 1
            trial_at = now + LOGIN_TRIAL_SECONDS if trials <= LOGIN_TRIALS_MAX else None
        since = present.since if present is not None else now
        pause = Pause(PausedBy.SERVICE, fault.code, fault.detail, since, until, fault.remedy, trials)
        return Circuit(pause, failures=failures, next_trial_at=trial_at)

    @classmethod
    def stored(cls, pause: Pause | None) -> Circuit:
        """As it was before a restart: trials of a refused login go on at their times."""
        if pause is None or pause.until is not None or pause.by is PausedBy.OPERATOR:
            return cls(pause)
        again = pause.since + pause.trials * LOGIN_TRIAL_SECONDS if pause.trials <= LOGIN_TRIALS_MAX else None
        return cls(pause, next_trial_at=again)

    def paused_by_operator(self, pause: Pause) -> Circuit:
        """In place of the service's pause; what came before it still counts."""
        return Circuit(pause, failures=self.failures)

    def resumed(self) -> Circuit:
        """By an operator: one message is tried first, at once."""
        return self if self == Circuit() else Circuit(half_open=True, failures=self.failures)
