"""A relay against a simple model: hypothesis drives applications, mail servers, operators, time, crashes.

After each step, once nothing moves any more: each mail lies exactly where the model says, the queue, the history and
each mail's life tell the same, nobody who took a mail is asked again, no .lck is left, and what could go is gone.

MODEL_EXAMPLES and MODEL_STEPS make it longer (and random, and what fails is shrunk); see `make model`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.domain.account import OnUnknown
from tests.support.model import QUEUED, Fate, Mail, Model, Outlet, Where
from tests.support.model_bench import CRASHES, ModelBench

T = TypeVar("T")

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))
STEPS = int(os.environ.get("MODEL_STEPS", "30"))
SHRINK = os.environ.get("MODEL_SHRINK", "1") == "1" and EXAMPLES > 0  # minutes, which `make test` has not
PEOPLE = ("ann@example.org", "bob@example.org", "cyd@example.org", "dan@example.net")
NAMES = ("a.eml", "b.eml", "c.eml", "d.eml")
ACTS = ("retry", "hold", "release", "delete")
STATES = ("waiting", "deferred", "held", "badmail")
MEMORY = "/dev/shm"  # syncs are for other tests: here they would be most of the time
TICK_SECONDS = 0.01  # from one step to the next
SWITCHES = ("account main", "account other", "directory", "relay")

names = st.sampled_from(NAMES)
recipients = st.lists(st.sampled_from(PEOPLE), min_size=1, max_size=4, unique=True).map(tuple)
which = st.integers(0, 30)
acts = st.sampled_from(ACTS)


class RelayMachine(RuleBasedStateMachine):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="mpu-model-", dir=MEMORY if os.path.isdir(MEMORY) else None)
        self.runner = asyncio.Runner()
        self.fates = dict.fromkeys(PEOPLE, Fate.TAKE)
        self.bench = ModelBench(Path(self.folder.name), self.fates)
        self.model = Model({"main": Outlet()}, ("main",))
        self.lost = False  # the database
        self.files: dict[str, int] = {}
        self.touched: set[int] = set()  # mails whose life may have changed

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def now(self) -> float:
        return self.bench.clock.now()

    @initialize()
    def start(self) -> None:
        self.run(self.bench.open())

    def teardown(self) -> None:
        try:
            if hasattr(self.bench, "http"):
                self.run(self.bench.close())
        finally:
            self.runner.close()
            self.folder.cleanup()

    def mail(self, number: int) -> Mail:
        """One of those that there are or were, the last ones more often."""
        mail = self.model.mails[-1 - number % len(self.model.mails)]
        self.touched.add(mail.number)
        return mail

    # --- applications ---

    @rule(name=names, to=recipients, by_rename=st.booleans(), twin=st.booleans())
    def drop(self, name: str, to: tuple[str, ...], by_rename: bool, twin: bool) -> None:
        """Under a new name, or one used before; over what waits there, in place or by rename."""
        mail = Mail(len(self.model.mails), to)
        there = self.files.get(name)
        self.bench.drop(mail, name, by_rename=by_rename, twin=twin)
        if there is not None:
            self.model.mails[there].where = Where.OVERWRITTEN
        self.model.mails.append(mail)
        self.touched.add(mail.number)

    # --- servers and time ---

    @rule(who=st.sampled_from(PEOPLE), fate=st.sampled_from(Fate))
    def decide(self, who: str, fate: Fate) -> None:
        self.fates[who] = fate

    @rule(seconds=st.sampled_from((1, 45, 100, 130, 700, 5_000, 90_000)))
    def wait(self, seconds: float) -> None:
        async def work() -> None:
            self.bench.advance(seconds)

        before = self.now
        self.run(work())
        rested = [self.model.accounts[name].resting_until for name in self.model.order]
        self._scanned(self.model.runs and any(t is not None and before < t <= self.now for t in rested))

    # --- operators ---

    @rule(include_deferred=st.booleans())
    def drain(self, include_deferred: bool) -> None:
        if include_deferred:
            self.model.make_due(self.now)
        answer = self.run(self.bench.post("/drain", include_deferred=include_deferred))
        (row,) = answer["directories"]
        skipped = None if self.model.runs else "paused" if self.model.enabled else "disabled"
        assert row["skipped"] == skipped
        if self.model.runs:
            self.model.notice_all()

    @rule(what=st.sampled_from(SWITCHES), pause=st.booleans())
    def switch(self, what: str, pause: bool) -> None:
        """Pause or resume an account, the directory, the relay."""
        kind, _, name = what.partition(" ")
        path = {"account": f"/accounts/{name}", "directory": "/directories/pickup", "relay": ""}[kind]
        if kind == "account" and name not in self.model.accounts:
            return
        self.run(self.bench.post(f"{path}/pause", reason="test") if pause else self.bench.post(f"{path}/resume"))
        looks = not pause
        if kind == "account":
            outlet = self.model.accounts[name]
            if pause:
                outlet.paused, outlet.on_trial, outlet.resting_until = True, False, None
            else:
                looks = outlet.resume() and name in self.model.order
        elif kind == "directory":
            self.model.directory_paused = pause
        else:
            self.model.relay_paused = pause
        self._scanned(looks and self.model.runs)

    def _scanned(self, run: bool) -> None:
        """If so, the whole directory was looked at."""
        if run:
            self.model.notice_all()

    @precondition(lambda self: self.model.mails)
    @rule(number=which, act=acts)
    def act(self, number: int, act: str) -> None:
        """On one message, whether it is still there or not."""
        mail = self.mail(number)
        if mail.where is Where.OVERWRITTEN:
            return
        expected = self.model.act(mail, act, self.now)
        path = f"/queue/messages/{mail.id}"

        async def call() -> int:
            http = self.bench.http
            answer = await (http.delete(path) if act == "delete" else http.post(f"{path}/{act}"))
            return answer.status_code

        assert self.run(call()) == expected, f"{act} of {mail}"

    @rule(state=st.sampled_from((None, *STATES)), act=acts, dry_run=st.booleans())
    def act_on_many(self, state: str | None, act: str, dry_run: bool) -> None:
        """On all that are in that state, or on all."""
        matched = [m for m in self.model.queued() if state in (None, m.state(self.now))]
        body: dict[str, Any] = {"filter": {"state": state}} if state else {"filter": {}, "all": True}

        async def call() -> Any:
            begun = await self.bench.post(f"/queue/messages/{act}", status=202, dry_run=dry_run, **body)
            await self.bench.settled()
            return await self.bench.get(f"/operations/{begun['id']}")

        told = self.run(call())
        done = 0
        for mail in [] if dry_run else matched:
            before = len(mail.acts)
            self.model.act(mail, act, self.now)
            done += len(mail.acts) - before
            self.touched.add(mail.number)
        assert (told["state"], told["matched"], told["done"], told["failed"]) == ("done", len(matched), done, 0), told

    @rule(
        name=st.sampled_from(("main", "other")),
        change=st.sampled_from(
            (
                {"enabled": False},
                {"enabled": True},
                {"recipients_per_message": 1},
                {"recipients_per_message": 2},
                {"recipients_per_message": 100},
                {"max_connections": 1},
                {"messages_per_connection": 1},
            )
        ),
    )
    def change_account(self, name: str, change: dict[str, Any]) -> None:
        if name not in self.model.accounts:
            return
        self.run(self.bench.patch(f"/accounts/{name}", **change))
        changed = replace(self.bench.accounts[name], **change)
        outlet = self.model.accounts[name]
        if changed != self.bench.accounts[name] and outlet.resting_until is not None:
            outlet.resume()
        outlet.enabled, outlet.recipients_per_message = changed.enabled, changed.recipients_per_message
        self._scanned(changed != self.bench.accounts[name] and name in self.model.order and self.model.runs)
        self.bench.accounts[name] = changed

    @precondition(lambda self: "other" not in self.model.accounts)
    @rule()
    def add_account(self) -> None:
        self.run(self.bench.add_account("other"))
        self.model.accounts["other"] = Outlet()

    @rule(
        change=st.sampled_from(
            (
                {"accounts": ["main"]},
                {"accounts": ["main", "other"]},
                {"accounts": ["other", "main"]},
                {"enabled": False},
                {"enabled": True},
                {"on_unknown": "hold"},
                {"on_unknown": "retry", "unknown_max": 1},
                {"expire_after_seconds": 300},
                {"retry_initial_seconds": 600},
            )
        )
    )
    def change_directory(self, change: dict[str, Any]) -> None:
        if "other" in change.get("accounts", ()) and "other" not in self.model.accounts:
            return
        self.run(self.bench.patch("/directories/pickup", **change))
        model = self.model
        model.order = tuple(change.get("accounts", model.order))
        for word in ("enabled", "on_unknown", "unknown_max", "expire_after_seconds", "retry_initial_seconds"):
            if word in change:
                setattr(model, word, change[word])
        changed = replace(
            self.bench.pickup,
            accounts=model.order,
            enabled=model.enabled,
            on_unknown=OnUnknown(model.on_unknown),
            unknown_max=model.unknown_max,
            expire_after_seconds=model.expire_after_seconds,
            retry_initial_seconds=model.retry_initial_seconds,
        )
        self._scanned(changed != self.bench.pickup and model.runs)
        self.bench.pickup = changed

    # --- the process ---

    def _restarted(self) -> None:
        for outlet in self.model.accounts.values():
            outlet.on_trial = False
        self._scanned(self.model.runs)

    @rule()
    def restart(self) -> None:
        async def work() -> None:
            await self.bench.stop()
            await self.bench.start()

        self.run(work())
        self._restarted()

    @rule(when=st.sampled_from(CRASHES), taken=st.booleans())
    def crash(self, when: str, taken: bool) -> None:
        """While it works off what is due; then a start."""
        if self.model.runs:
            self.model.notice_all()

        async def work() -> None:
            await self.bench.crash(when, taken=taken)
            killed_at = self.now
            self.bench.clock.advance(TICK_SECONDS)
            self._follow(killed_at, crash=when, recovered=self.now)
            await self.bench.start()

        self.run(work())
        self._restarted()

    @precondition(lambda self: not self.lost)
    @rule()
    def lose_database(self) -> None:
        """Once: it takes longest."""
        self.lost = True
        self.model.forget()
        self.run(self.bench.lose_database())
        self._restarted()
        self.touched.update(m.number for m in self.model.mails)

    # --- what must hold ---

    def _follow(self, now: float, **crash: Any) -> None:
        seen = list(self.bench.seen)
        self.bench.seen.clear()
        self.touched.update(each.mail for each in seen)
        self.model.saw(seen, now, **crash)

    @invariant()
    def agrees(self) -> None:
        """All sides tell the same, and it is what the model says."""
        if not hasattr(self.bench, "http"):
            return
        self.run(self.bench.settled())
        self._follow(self.now)
        self._files()
        self.run(self._interface())
        stuck = self.model.could_go(self.now)
        assert not stuck, f"nothing keeps these from going: {stuck}"
        self.wait(TICK_SECONDS)
        self.run(self.bench.settled())
        self._follow(self.now)

    def _files(self) -> None:
        self.files = self.bench.files()
        place_of: dict[int, str] = {}
        for name, number in self.files.items():
            assert number not in place_of, f"mail {number} lies twice"
            assert not name.endswith(".lck"), f"{name} is left over"
            held, badmail = name.endswith(".hold"), name.startswith("badmail/")
            place_of[number] = "held" if held else "badmail" if badmail else "waiting"
        assert place_of == {m.number: m.where.value for m in self.model.queued()}

    async def _interface(self) -> None:
        get, model = self.bench.get, self.model
        queued = {m.id: m for m in model.queued()}
        rows = (await get("/queue/messages", limit=500))["items"]
        assert {
            row["id"]: (row["state"], row["attempts"], _time(row["due_at"]), row["possible_duplicate"]) for row in rows
        } == {m.id: self._shown(m) for m in queued.values()}
        assert len(rows) == len(queued)
        totals = (await get("/queue"))["totals"]
        counted = Counter(m.state(self.now) for m in queued.values())
        assert {state: totals[state] for state in (*STATES, "claimed")} == {s: counted[s] for s in (*STATES, "claimed")}
        history = (await get("/history", limit=500))["items"]
        told = {(row["message_id"], row["recipient"]): row["status"] for row in history}
        assert told == {(m.id, r): word for m in model.mails for r, word in m.history.items()}
        assert len(told) == len(history)
        for number in sorted(self.touched):
            await self._life(model.mails[number])
        self.touched.clear()

    def _shown(self, mail: Mail) -> tuple[str, int, float | None, bool]:
        state = mail.state(self.now)
        return state, mail.attempts, round(mail.due or 0, 2) if state == "deferred" else None, mail.duplicate

    async def _life(self, mail: Mail) -> None:
        if mail.where is Where.OVERWRITTEN:
            return
        answer = await self.bench.http.get(f"/messages/{mail.id}")
        if mail.where not in QUEUED and not mail.history:
            assert answer.status_code == 404, f"{answer.text} of {mail}"
            return
        assert answer.status_code == 200, f"{answer.text} of {mail}"
        life = answer.json()
        assert life["state"] == mail.state(self.now)
        told = {r["recipient"]: r["status"] for r in life["recipients"] if r["status"] is not None}
        assert told == mail.history, mail
        tries: dict[int, tuple[str, dict[str, str], bool]] = {}
        for line in life["attempts"]:
            outcomes = tries.setdefault(line["number"], (line["account"], {}, line["possible_duplicate"]))[1]
            outcomes.update(dict.fromkeys(line["recipients"], line["outcome"]))
        expected = [(t.account, t.outcomes, t.possible_duplicate) for t in mail.tries]
        assert mail.killed or [tries[n] for n in sorted(tries)] == expected, mail
        assert [act["act"] for act in life["acts"]] == mail.acts


def _time(text: str | None) -> float | None:
    return None if text is None else round(datetime.fromisoformat(text).timestamp(), 2)


def test_relay_does_what_the_model_says() -> None:
    """A seeded share; more with MODEL_EXAMPLES."""
    run_state_machine_as_test(
        RelayMachine,
        settings=settings(
            max_examples=EXAMPLES or 10,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if SHRINK else [Phase.generate],
            suppress_health_check=[HealthCheck.too_slow],  # files, SQLite and sockets
        ),
    )
