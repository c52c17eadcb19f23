"""The accounts at work: who is paused, who goes on trial, who is woken, what is written down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from core.delivery import block_of
from core.domain.account import Account, Directory, FromPolicy, SenderRoute, Strategy
from core.domain.circuit import Pause, PausedBy, operators_pause
from core.domain.outcome import AccountFault
from core.domain.reply import Phase
from core.domain.routing import Refusal, Route
from core.errors import NotFound
from core.runtime.outlets import Outlets, Passage
from core.transport.base import Turn
from tests.support.clock import ManualClock

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
OUT = Account("out", "smtp.example.com")
SPARE = Account("spare", "smtp.example.net")
DIRECTORY = Directory("in", "/in", ("out", "spare"))
NOBODY: frozenset[str] = frozenset()
REFUSED = AccountFault("out", Phase.AUTH, "login_refused", "535 no", "Check the password.", None, passing=False)
PASSING = AccountFault("out", Phase.CONNECT, "connect_failed", "refused", "Check the host.", MINUTE, passing=True)
TENANT = AccountFault("out", Phase.DOT, "tenant_blocked", "550 5.7.233", "Ask its administrator.", None, passing=False)


@dataclass(eq=False)
class FakeTransport:
    account: Account
    closed: bool = False
    aborted: bool = False
    connections: int = 0
    rate: float | None = None
    trouble: AccountFault | None = None
    most: int | None = None

    async def turn(self) -> Turn:
        raise AssertionError("nothing is sent here")

    def limit_connections(self, most: int | None) -> None:
        self.most = most

    def abort(self) -> None:
        self.aborted = True

    async def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class FakeTimer:
    at: float
    run: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class Bench:
    """The outlets with everything around them: a clock that is moved, timers that run when it is."""

    clock: ManualClock = field(default_factory=ManualClock)
    made: list[FakeTransport] = field(default_factory=list)
    written: list[tuple[str, Pause | None]] = field(default_factory=list)
    woken: list[str] = field(default_factory=list)
    timers: list[FakeTimer] = field(default_factory=list)
    passages: dict[str, Passage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.outlets = Outlets(
            clock=self.clock,
            chance=lambda: 0.5,
            make_transport=self._make,
            remember=lambda name, pause: self.written.append((name, pause)),
            on_open=self.woken.append,
        )

    def _make(self, account: Account) -> FakeTransport:
        transport = FakeTransport(account)
        self.made.append(transport)
        return transport

    def call_later(self, delay: float, callback: Callable[..., None], *args: Any) -> FakeTimer:
        timer = FakeTimer(self.clock.monotonic() + delay, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def elapse(self, seconds: float) -> None:
        self.clock.advance(seconds)
        due = [t for t in self.timers if not t.cancelled and t.at <= self.clock.monotonic()]
        for timer in due:
            self.timers.remove(timer)
            timer.run()

    def may_send(self, *tried: str) -> str | None:
        return self.outlets.route(DIRECTORY, frozenset(tried)).account

    def on_trial(self, act: Callable[[], None], name: str = "out") -> None:
        """A message sets out, the act happens, it ends."""
        self.begin(name)
        act()
        self.ended(name)

    def pause(self, name: str, reason: str, until: float | None) -> Pause:
        pause = operators_pause(reason, since=self.clock.now(), until=until)
        self.outlets.pause(name, pause)
        return pause

    def begin(self, name: str) -> None:
        """The message whose news is told next, until another sets out."""
        self.passages[name] = self.outlets.begin(name)

    def worked(self, name: str) -> None:
        self.outlets.worked(self.passages[name])

    def failed(self, fault: AccountFault) -> None:
        self.outlets.failed(self.passages[fault.account], fault)

    def ended(self, name: str) -> None:
        self.outlets.ended(self.passages[name])

    def set(self, account: Account, pause: Pause | None = None) -> None:
        """Add it, and have a message under way through it."""
        self.outlets.set(account, pause)
        self.begin(account.name)


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", bench.call_later)
    bench.set(OUT)
    bench.set(SPARE)
    return bench


# --- routes ----------------------------------------------------------------------------------------------------------


async def test_mail_goes_through_the_first_account(bench: Bench) -> None:
    assert bench.outlets.route(DIRECTORY, NOBODY) == Route("out")


async def test_mail_goes_through_the_next_account_while_the_first_is_paused(bench: Bench) -> None:
    bench.failed(PASSING)
    until = bench.clock.now() + MINUTE
    assert bench.outlets.route(DIRECTORY, NOBODY) == Route("spare", (Refusal("out", "account_paused", until),))


async def test_disabled_removed_and_tried_accounts_are_not_taken(bench: Bench) -> None:
    bench.outlets.set(replace(OUT, enabled=False))
    assert bench.outlets.route(DIRECTORY, NOBODY) == Route("spare", (Refusal("out", "disabled"),))
    bench.outlets.remove("out")
    assert bench.outlets.route(DIRECTORY, NOBODY) == Route("spare", (Refusal("out", "unknown"),))
    assert bench.may_send("spare") is None


async def test_a_directory_without_accounts_has_no_way_out(bench: Bench) -> None:
    assert bench.outlets.route(Directory("in", "/in"), NOBODY) == Route(None)


async def test_the_common_case_is_one_look_up_and_makes_nothing(bench: Bench) -> None:
    prepared = bench.outlets.route(DIRECTORY, NOBODY, "jo@a.example")
    assert bench.outlets.route(DIRECTORY, NOBODY, "x@b.example") is prepared
    assert bench.outlets.route(DIRECTORY, NOBODY) is prepared
    bench.outlets.set_sender_routes([SenderRoute(("@c.example",), ("spare",))])
    assert bench.outlets.route(DIRECTORY, NOBODY, "jo@c.example") == Route("spare")
    bench.outlets.set_sender_routes([])
    assert bench.outlets.route(DIRECTORY, NOBODY, "jo@c.example") is prepared
    own = replace(OUT, senders=("@x.example",), from_address="jo@x.example", from_policy=FromPolicy.REPLACE)
    bench.outlets.set(own)  # it sends as itself, whoever wrote the mail
    assert bench.outlets.route(DIRECTORY, NOBODY, "jo@c.example") is prepared


async def test_senders_count_from_the_next_message_on(bench: Bench) -> None:
    bench.outlets.set(replace(OUT, senders=("@x.example",)))
    assert bench.outlets.route(DIRECTORY, NOBODY, "jo@X.example").account == "out"
    refused = (Refusal("out", "sender_not_allowed"),)
    assert bench.outlets.route(DIRECTORY, NOBODY, "jo@y.example") == Route("spare", refused)
    assert bench.outlets.route(DIRECTORY, NOBODY).account == "out"  # mail of some sender could go
    bench.outlets.set(OUT)
    assert bench.outlets.route(DIRECTORY, NOBODY, "jo@y.example") == Route("out")


async def test_turns_are_counted_where_mail_sets_out_and_not_where_somebody_asks(bench: Bench) -> None:
    directory = replace(DIRECTORY, strategy=Strategy.BALANCE, weights=(2, 1))

    def set_out() -> str | None:
        for _ in range(3):
            bench.outlets.route(directory, NOBODY)
            bench.outlets.standings(directory, "jo@x.example")
        name = bench.outlets.route(directory, NOBODY, "jo@x.example").account
        assert name is not None
        bench.outlets.ended(bench.outlets.begin(name, directory))
        return name

    assert [set_out() for _ in range(6)] == ["out", "spare", "out"] * 2
    directory = replace(directory, weights=(1, 2))  # other weights: from the beginning
    assert [set_out() for _ in range(6)] == ["out", "spare", "spare"] * 2
    other = replace(directory, name="other")
    assert bench.outlets.route(other, NOBODY, "jo@x.example").account == "out"


async def test_a_sender_routes_account_serves_every_directory(bench: Bench) -> None:
    one = Directory("one", "/one", ("out",))
    assert [bench.outlets.serves(name, one) for name in ("out", "spare")] == [True, False]
    bench.outlets.set_sender_routes([SenderRoute(("@c.example",), ("spare",))])
    assert bench.outlets.serves("spare", one)
    bench.pause("out", "maintenance", None)
    assert bench.outlets.route(one, NOBODY).account == "spare"  # some message could go,
    assert bench.outlets.route(one, NOBODY, "jo@x.example").account is None  # this one can't
    bench.pause("spare", "maintenance", None)
    assert bench.outlets.route(one, NOBODY).refusals == (Refusal("out", "account_paused"),)


# --- faults and trials -----------------------------------------------------------------------------------------------


async def test_a_fault_pauses_at_once_and_is_written_down(bench: Bench) -> None:
    now = bench.clock.now()
    bench.failed(PASSING)
    pause = Pause(PausedBy.SERVICE, "connect_failed", "refused", now, now + MINUTE, "Check the host.")
    assert bench.outlets.pause_of("out") == pause
    assert bench.written == [("out", pause)]


async def test_the_same_fault_of_others_in_flight_makes_the_pause_no_longer(bench: Bench) -> None:
    bench.failed(PASSING)
    pause = bench.outlets.pause_of("out")
    for _ in range(4):
        bench.failed(PASSING)
    assert bench.outlets.pause_of("out") == pause
    assert len(bench.written) == 1


async def test_directories_are_woken_when_the_pause_is_over_and_not_before(bench: Bench) -> None:
    bench.failed(PASSING)
    bench.elapse(MINUTE - 0.5)
    assert (bench.woken, bench.may_send()) == ([], "spare")
    bench.elapse(0.6)
    assert (bench.woken, bench.may_send()) == (["out"], "out")


async def test_one_message_goes_on_trial_alone(bench: Bench) -> None:
    bench.failed(PASSING)
    bench.elapse(MINUTE + 1)
    bench.begin("out")
    assert bench.may_send() == "spare"
    bench.woken.clear()
    bench.worked("out")
    assert (bench.may_send(), bench.woken) == ("out", ["out"])
    assert bench.outlets.pause_of("out") is None
    assert bench.written[-1] == ("out", None)
    bench.woken.clear()
    bench.ended("out")
    bench.begin("out")
    assert (bench.may_send(), bench.woken) == ("out", [])  # all together again


async def test_a_failed_trial_doubles_the_pause(bench: Bench) -> None:
    bench.failed(PASSING)
    for seconds in (120, 240, 480, 960, 1920, 3600, 3600):
        bench.elapse(HOUR + 1)
        bench.on_trial(lambda: bench.failed(PASSING))
        pause = bench.outlets.pause_of("out")
        assert pause is not None
        assert pause.until == bench.clock.now() + seconds
        assert bench.may_send() == "spare"


async def test_a_trial_that_told_nothing_is_followed_by_another(bench: Bench) -> None:
    bench.failed(PASSING)
    bench.elapse(MINUTE + 1)
    bench.woken.clear()
    bench.on_trial(lambda: None)
    assert (bench.may_send(), bench.woken) == ("out", ["out"])


async def test_a_message_that_was_in_flight_does_not_lift_the_pause(bench: Bench) -> None:
    bench.begin("out")
    bench.failed(PASSING)
    bench.worked("out")
    assert bench.may_send() == "spare"


async def test_a_refused_login_is_tried_once_an_hour_five_times(bench: Bench) -> None:
    bench.failed(REFUSED)
    logins = 1
    for _ in range(30 * 4):
        bench.elapse(HOUR / 4)
        if bench.may_send() == "out":
            logins += 1
            bench.on_trial(lambda: bench.failed(REFUSED))
    assert logins == 6
    assert bench.may_send() == "spare"


async def test_a_clock_set_back_keeps_no_account_waiting(bench: Bench) -> None:
    bench.failed(PASSING)
    bench.clock.jump(-DAY)
    bench.elapse(MINUTE + 1)
    assert (bench.woken, bench.may_send()) == (["out"], "out")
    bench.on_trial(lambda: bench.failed(PASSING))
    assert bench.may_send() == "spare"


async def test_a_tenants_fault_pauses_all_accounts_of_its_domain(bench: Bench) -> None:
    host = "smtp.office365.com"
    for name, user in [("a", "a@x.example"), ("b", "b@X.example"), ("c", "c@y.example"), ("d", None), ("e", None)]:
        bench.set(Account(name, host, username=user))
    bench.set(Account("f", host, from_address="f@x.example"))
    bench.set(Account("g", "smtp.example.com", username="g@x.example"))
    bench.failed(replace(TENANT, account="a"))
    assert [n for n in bench.outlets.names if bench.outlets.pause_of(n) is not None] == ["a", "b", "f"]
    assert sorted(name for name, _ in bench.written) == ["a", "b", "f"]


async def test_a_tenants_fault_of_an_account_without_a_domain_is_its_own(bench: Bench) -> None:
    bench.set(Account("other", OUT.host))
    bench.failed(TENANT)
    assert [n for n in bench.outlets.names if bench.outlets.pause_of(n) is not None] == ["out"]


@pytest.mark.parametrize("fault", [PASSING, REFUSED])
async def test_other_faults_pause_one_account(bench: Bench, fault: AccountFault) -> None:
    bench.set(Account("one", "h", username="a@x.example"))
    bench.set(Account("two", "h", username="b@x.example"))
    bench.failed(replace(fault, account="one"))
    assert bench.outlets.pause_of("two") is None


async def test_news_of_an_account_that_is_gone_is_no_error(bench: Bench) -> None:
    bench.outlets.remove("out")
    bench.failed(PASSING)
    bench.worked("out")
    bench.ended("out")
    assert bench.written == []


# --- operators -------------------------------------------------------------------------------------------------------


async def test_an_operators_pause_holds_until_resumed(bench: Bench) -> None:
    pause = bench.pause("out", "maintenance", None)
    assert bench.outlets.pause_of("out") == pause
    bench.elapse(365 * DAY)
    assert (bench.may_send(), bench.woken) == ("spare", [])
    bench.outlets.resume("out")
    assert (bench.may_send(), bench.woken) == ("out", ["out"])
    assert bench.written == []  # it was before
    bench.begin("out")
    assert bench.may_send() == "spare"  # one message first


async def test_resuming_what_runs_does_nothing(bench: Bench) -> None:
    bench.outlets.resume("out")
    assert (bench.woken, bench.written) == ([], [])


async def test_an_operators_pause_ends_by_its_until_alone(bench: Bench) -> None:
    bench.pause("out", "tonight", bench.clock.now() + HOUR)
    bench.elapse(HOUR + 1)
    assert bench.outlets.pause_of("out") is None
    assert (bench.may_send(), bench.woken) == ("out", ["out"])
    assert bench.written[-1] == ("out", None)


async def test_an_operators_until_is_a_time_of_the_wall_clock(bench: Bench) -> None:
    bench.pause("out", "tonight", bench.clock.now() + HOUR)
    bench.clock.jump(-HOUR)
    bench.elapse(HOUR + 1)
    assert (bench.may_send(), bench.woken) == ("spare", [])
    assert bench.outlets.pause_of("out") is not None
    bench.elapse(HOUR)
    assert (bench.may_send(), bench.woken) == ("out", ["out"])


async def test_a_pause_that_is_over_is_not_shown_although_no_timer_ran(bench: Bench) -> None:
    bench.pause("out", "tonight", bench.clock.now() + HOUR)
    bench.clock.jump(2 * HOUR)
    assert bench.outlets.pause_of("out") is None
    assert bench.may_send() == "out"


async def test_a_login_refused_after_an_operators_until_is_not_hammered(bench: Bench) -> None:
    bench.pause("out", "tonight", bench.clock.now() + HOUR)
    bench.clock.jump(2 * HOUR)
    bench.on_trial(lambda: bench.failed(REFUSED))
    assert bench.may_send() == "spare"
    pause = bench.outlets.pause_of("out")
    assert pause is not None
    assert pause.code == "login_refused"


async def test_what_is_in_flight_does_not_touch_an_operators_pause(bench: Bench) -> None:
    bench.begin("out")
    pause = bench.pause("out", "maintenance", None)
    bench.failed(REFUSED)
    bench.worked("out")
    bench.ended("out")
    assert bench.outlets.pause_of("out") == pause
    assert bench.may_send() == "spare"


# --- settings --------------------------------------------------------------------------------------------------------


async def test_the_same_settings_again_do_not_reconnect(bench: Bench) -> None:
    bench.failed(REFUSED)
    bench.outlets.set(replace(OUT))
    assert [t.account.name for t in bench.made] == ["out", "spare"]
    assert bench.outlets.pause_of("out") is not None


async def test_a_fault_of_old_settings_does_not_pause_the_edited_account(bench: Bench) -> None:
    bench.outlets.set(replace(OUT, password="new"))
    bench.failed(REFUSED)  # of a login that was under way with the old password
    assert (bench.may_send(), bench.outlets.pause_of("out")) == ("out", None)


async def test_a_message_from_before_the_pause_does_not_end_anothers_trial(bench: Bench) -> None:
    early = bench.outlets.begin("out")
    bench.failed(PASSING)
    bench.elapse(MINUTE + 1)
    bench.begin("out")
    bench.outlets.worked(early)
    bench.outlets.ended(early)
    assert bench.may_send() == "spare"
    bench.worked("out")
    assert bench.may_send() == "out"


async def test_an_edit_connects_anew_and_lets_the_old_connections_finish(bench: Bench) -> None:
    old = bench.outlets.transport("out")
    edited = replace(OUT, password="new")
    bench.outlets.set(edited)
    assert bench.outlets.account("out") == edited
    assert bench.outlets.transport("out") is bench.made[-1] is not old
    await bench.outlets.close()
    assert all(t.closed for t in bench.made)


async def test_an_edit_lifts_the_services_pause_and_tries_one_message(bench: Bench) -> None:
    bench.failed(REFUSED)
    bench.outlets.set(replace(OUT, password="new"))
    assert (bench.outlets.pause_of("out"), bench.may_send(), bench.woken) == (None, "out", ["out"])
    assert bench.written[-1] == ("out", None)
    bench.begin("out")
    assert bench.may_send() == "spare"


@pytest.mark.parametrize("edit", [{"idle_timeout_seconds": 9}, {"messages_per_day": 9}, {"senders": ("a@b.example",)}])
async def test_an_edit_that_cures_no_login_makes_none(bench: Bench, edit: dict[str, Any]) -> None:
    bench.failed(REFUSED)
    bench.outlets.set(replace(OUT, **edit))
    assert bench.outlets.pause_of("out") is not None
    assert bench.outlets.account("out") == replace(OUT, **edit)


async def test_an_edit_leaves_an_operators_pause(bench: Bench) -> None:
    pause = bench.pause("out", "maintenance", None)
    bench.outlets.set(replace(OUT, password="new"))
    assert bench.outlets.pause_of("out") == pause


async def test_an_edit_during_a_trial_is_followed_by_another_trial(bench: Bench) -> None:
    bench.failed(REFUSED)
    bench.outlets.resume("out")
    bench.begin("out")
    bench.outlets.set(replace(OUT, password="new"))
    assert bench.may_send() == "out"
    bench.ended("out")  # that of the old settings, which tells nothing
    assert bench.may_send() == "out"
    bench.on_trial(lambda: bench.worked("out"))
    bench.begin("out")
    assert bench.may_send() == "out"  # all together


async def test_resuming_during_a_trial_lets_another_message_try(bench: Bench) -> None:
    bench.pause("out", "maintenance", None)
    bench.outlets.resume("out")
    bench.begin("out")
    bench.woken.clear()
    assert bench.may_send() == "spare"
    bench.outlets.resume("out")
    assert (bench.may_send(), bench.woken) == ("out", ["out"])


async def test_what_waits_for_its_turn_stands_until_something_comes_in_the_way(bench: Bench) -> None:
    stands = bench.outlets.stands
    passage = bench.outlets.begin("out")
    assert stands(passage)
    bench.failed(PASSING)
    assert not stands(passage)
    bench.elapse(MINUTE + 1)
    assert not stands(passage), "first the one on trial"
    trial = bench.outlets.begin("out")
    assert (stands(trial), stands(passage)) == (True, False)
    bench.pause("out", "maintenance", None)
    assert not stands(trial)
    bench.outlets.resume("out")
    again = bench.outlets.begin("out")
    bench.outlets.set(replace(OUT, password="new"))
    newest = bench.outlets.begin("out")
    assert (stands(again), stands(newest)) == (False, True)
    bench.outlets.worked(newest)
    assert stands(again)
    bench.outlets.set(replace(OUT, enabled=False))
    assert not stands(again)
    bench.outlets.remove("out")
    assert not stands(again)


async def test_a_stored_pause_holds_after_a_restart(bench: Bench) -> None:
    now = bench.clock.now()
    pause = Pause(PausedBy.SERVICE, "quota_exceeded", "full", now - HOUR / 2, now + HOUR / 2)
    bench.outlets.remove("out")
    bench.outlets.set(OUT, pause)
    assert (bench.may_send(), bench.outlets.pause_of("out"), bench.written) == ("spare", pause, [])
    bench.elapse(HOUR / 2 + 1)
    assert (bench.may_send(), bench.woken) == ("out", ["out"])


async def test_an_operators_pause_that_ended_while_the_service_was_down_is_lifted(bench: Bench) -> None:
    now = bench.clock.now()
    bench.outlets.remove("out")
    bench.outlets.set(OUT, Pause(PausedBy.OPERATOR, "operator", "tonight", now - DAY, now - HOUR))
    assert (bench.may_send(), bench.outlets.pause_of("out")) == ("out", None)
    bench.elapse(1)
    assert bench.written == [("out", None)]


async def test_a_removed_account_wakes_nobody(bench: Bench) -> None:
    bench.failed(PASSING)
    bench.outlets.remove("out")
    bench.elapse(HOUR)
    assert bench.woken == []
    assert all(timer.cancelled for timer in bench.timers)


@pytest.mark.parametrize("ask", ["account", "transport", "begin", "pause_of", "resume"])
async def test_an_account_that_is_not_there_is_not_found(bench: Bench, ask: str) -> None:
    with pytest.raises(NotFound):
        getattr(bench.outlets, ask)("nobody")


async def test_abort_cuts_every_connection(bench: Bench) -> None:
    bench.outlets.abort()
    assert [t.aborted for t in bench.made] == [True, True]


async def test_close_ends_politely_and_leaves_nothing(bench: Bench) -> None:
    bench.failed(PASSING)
    await bench.outlets.close()
    assert bench.outlets.names == []
    assert [t.closed for t in bench.made] == [True, True]
    assert all(timer.cancelled for timer in bench.timers)


# --- limits -----------------------------------------------------------------------------------------------------------


TOO_MANY = AccountFault("out", Phase.MAIL, "too_many_connections", "432 4.3.2", "Fewer.", 90.0, passing=False)
TOO_FAST = AccountFault("out", Phase.MAIL, "sending_too_fast", "454 Throttling", "Slower.", 10.0, passing=True)


def transport_of(bench: Bench, number: int = 0) -> FakeTransport:
    return bench.made[number]


async def test_an_account_out_of_quota_gives_way_and_comes_back(bench: Bench) -> None:
    bench.outlets.set(replace(OUT, messages_per_hour=1))
    passage = bench.outlets.begin("out")
    assert passage.quota is not None
    room = passage.quota.reserve(1)
    passage.quota.settle(room, 1)
    route = bench.outlets.route(DIRECTORY, NOBODY)
    (refusal,) = route.refusals
    assert (route.account, refusal.account, refusal.reason) == ("spare", "out", "quota")
    assert refusal.until is not None
    assert HOUR <= refusal.until - bench.clock.now() <= HOUR + MINUTE
    bench.woken.clear()
    bench.elapse(refusal.until - bench.clock.now() + 0.01)
    assert (bench.may_send(), bench.woken) == ("out", ["out"])
    assert bench.outlets.limited
    bench.outlets.set(OUT)
    assert bench.outlets.begin("out").quota is None
    assert not bench.outlets.limited


async def test_limits_that_are_set_while_a_message_is_under_way_count_it(bench: Bench) -> None:
    without = bench.outlets.begin("out")
    bench.outlets.set(replace(OUT, messages_per_day=10))
    within = bench.outlets.begin("out")
    quota = within.quota
    assert quota is not None
    room = quota.reserve(1)
    quota.settle(room, 1)
    for passage, recipients in ((without, 3), (within, 1), (without, 0)):
        bench.outlets.settled(passage, recipients)
    assert quota.used() == (2, 2, 4)


async def test_limits_matter_to_the_directories_that_send_through_the_account(bench: Bench) -> None:
    other = Directory("other", "/other", ("spare",))
    assert not bench.outlets.limits(DIRECTORY)
    bench.outlets.set(replace(OUT, messages_per_day=10))
    assert [bench.outlets.limits(directory) for directory in (DIRECTORY, other)] == [True, False]
    bench.outlets.set_sender_routes([SenderRoute(("@c.example",), ("out",))])
    assert bench.outlets.limits(other)
    bench.outlets.remove("out")
    assert (bench.outlets.limited, bench.outlets.limits(other)) == (False, False)


async def test_nobody_waits_open_where_mail_of_others_has_another_way(bench: Bench) -> None:
    bench.set(replace(OUT, messages_per_minute=1, senders=("@a.example",)))
    passage = bench.outlets.begin("out")
    assert passage.quota is not None
    passage.quota.settle(passage.quota.reserve(1), 1)
    bench.elapse(MINUTE - 5)

    async def waits(directory: Directory) -> bool:
        task = asyncio.ensure_future(
            bench.outlets.waited(directory, bench.outlets.route(directory, NOBODY, "jo@a.example"))
        )
        for _ in range(3):
            await asyncio.sleep(0)
        waiting = not task.done()
        task.cancel()
        return waiting

    alone = Directory("one", "/one", ("out",))
    assert await waits(alone)
    bench.outlets.set(replace(SPARE, senders=("@b.example",)))
    assert not await waits(DIRECTORY)
    bench.outlets.set_sender_routes([SenderRoute(("@c.example",), ("spare",))])
    assert not await waits(alone)


async def test_what_is_told_is_the_quota_only_where_it_is_what_comes_next(bench: Bench) -> None:
    bench.outlets.set(replace(OUT, messages_per_hour=1))
    passage = bench.outlets.begin("out")
    assert passage.quota is not None
    passage.quota.settle(passage.quota.reserve(1), 1)
    bench.pause("spare", "maintenance", None)
    assert block_of(bench.outlets.route(DIRECTORY, NOBODY)).reason == "quota"
    bench.pause("spare", "maintenance", bench.clock.now() + MINUTE)
    told = block_of(bench.outlets.route(DIRECTORY, NOBODY))
    assert (told.reason, told.account, told.until) == ("account_paused", "spare", bench.clock.now() + MINUTE)


async def test_too_many_connections_means_one_fewer_for_a_while(bench: Bench) -> None:
    transport = transport_of(bench)
    transport.connections, transport.rate = 3, 20.0
    bench.failed(TOO_MANY)
    bench.failed(TOO_MANY)  # the others that were under way hear the same
    assert transport.most == 2
    quota = bench.outlets.quotas.get("out")
    assert quota is not None
    assert quota.slowed_to() == 10.0, "half, once"
    bench.elapse(600)
    bench.begin("out")
    assert transport.most == 3
    bench.elapse(1200)
    bench.begin("out")
    assert transport.most is None


async def test_what_its_server_asked_for_outlasts_an_edit_and_ends(bench: Bench) -> None:
    transport_of(bench).rate = 20.0
    bench.failed(TOO_FAST)
    bench.outlets.set(replace(OUT, max_connections=7))
    passage = bench.outlets.begin("out")
    assert passage.quota is not None
    bench.outlets.worked(passage)
    bench.elapse(HOUR)
    assert bench.outlets.begin("out").quota is None
    assert bench.outlets.quotas.get("out") is None
    assert bench.outlets.route(DIRECTORY, NOBODY) == Route("out")
