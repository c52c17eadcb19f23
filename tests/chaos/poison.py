"""P9: one poisonous file in 1,000 stalls nothing; P10: a planted password is nowhere to be found."""

from __future__ import annotations

import base64
import os
import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.chaos.child import place_at, set_up, work_off
from tests.chaos.mails import letters, move_in
from tests.chaos.result import Plan, Row, reckon
from tests.chaos.server import Ledger, server
from tests.support.service import Service, mail_server, service, taken

POISON: dict[str, bytes] = {
    "no recipient": b"From: a@example.com\r\nSubject: to nobody\r\n\r\nHello\r\n",
    "injected recipient": b"X-Receiver: d@e.example>\r\nX-Receiver: a b@c>d\r\nFrom: a@example.com\r\n\r\nHello\r\n",
    "only line ends": b"\r\n" * 50,
    "UTF-16": "From: a@example.com\r\nTo: b@example.com\r\n\r\nHello\r\n".encode("utf-16"),
    "parentheses": b"From: a@example.com\r\nTo: " + b"(" * 3000 + b"\r\n\r\nHello\r\n",
    "endless header": b"From: a@example.com\r\n" + b"X-A: 1\r\n" * 100_000 + b"\r\nHello\r\n",
}


def poison(plan: Plan) -> list[Row]:
    """Each kind among 999 good ones."""
    chance = random.Random(plan.seed)
    count = plan.size(999, 99)
    kinds = list(POISON) if plan.full else chance.sample(sorted(POISON), 2)
    row = Row("P9", f"one poisonous file among {count + 1}", len(kinds), (count + 1) * len(kinds))
    ledger = Ledger(plan.root / "ledger")
    with server(ledger.path) as port:
        for number, kind in enumerate(kinds):
            place = place_at(plan.root / f"round{number}")
            set_up(place, port)
            mails = letters(chance, f"g{number}x", count)
            at = chance.randrange(count)
            for index, mail in enumerate(mails):
                if index == at:
                    (place.pickup / "poison.eml").write_bytes(POISON[kind])
                move_in(place.pickup, mail)
            work_off(place)
            reckoning = reckon(mails, ledger.read())
            row.lost += len(reckoning.lost)
            row.misses += [f"{kind}: {mailbox} was not sent" for mailbox in reckoning.lost]
            row.expect(place.badmail() == {"poison.eml"}, f"{kind}: badmail holds {place.badmail() or 'nothing'}")
            reason = place.pickup / "badmail" / "poison.eml.reason.txt"
            row.expect(reason.exists() and reason.read_text().strip(), f"{kind}: no reason is given")
    row.notes = ", ".join(kinds)
    return [row]


def leaks(plan: Plan) -> list[Row]:
    """A password goes in, is used, is refused, and the service is killed: no octet of it is left anywhere."""
    row = Row("P10", "a planted password in logs, answers, database, WAL")
    password = f"Planted-{secrets.token_urlsafe(12)}-Grüße"
    place = place_at(plan.root / "service")
    ledger = plan.root / "ledger"
    answers: list[bytes] = []
    with mail_server(ledger) as port:
        for level in ("debug", "info")[: plan.size(2, 1)]:
            with service(place.data, place.pickup.parent, MPU_LOG_LEVEL=level, MPU_ALLOWED_SMTP_PORTS="0") as running:
                row.runs += 1
                _use(running, place.pickup, port, password, row)
                answers += _everything(running.http)
                running.kill()
    row.messages = len(taken(ledger))
    forms = {password.encode(), base64.b64encode(password.encode()), base64.b64encode(f"\0user\0{password}".encode())}
    forms |= {password.encode("unicode_escape"), password.split("-Gr")[0].encode()}
    for path in place.root.rglob("*"):
        if path.is_file():
            row.expect(not any(form in path.read_bytes() for form in forms), f"found in {path.name}")
    for answer in answers:
        row.expect(not any(form in answer for form in forms), f"found in an answer: {answer[:80]!r}")
    row.expect(len(answers) > 20, "hardly an answer was looked at")
    row.notes = f"{len(answers)} answers looked at, and all files of the service"
    return [row]


def _use(running: Service, pickup: Path, port: int, password: str, row: Row) -> None:
    """The account logs in to a server that offers no login: refused, then an open one that takes mail."""
    account = {"host": "127.0.0.1", "port": port, "security": "none", "auth": "plain", "username": "user"}
    answer = running.http.put("/accounts/main", json={**account, "password": password})
    row.expect(answer.is_success, f"the account was not saved: {answer.text[:200]}")
    running.http.put("/accounts/open", json={"host": "127.0.0.1", "port": port, "security": "none", "auth": "none"})
    running.http.post("/accounts/main/test", json={})
    running.http.put("/accounts/main", json={**account, "password": password, "port": "no port"})
    running.http.put("/directories/pickup", json={"path": str(pickup), "accounts": ["main", "open"]})
    for mail in letters(random.Random(port), f"l{row.runs}x", 20):
        move_in(pickup, mail)
    deadline = time.monotonic() + 20
    while any(n.endswith(".eml") for n in os.listdir(pickup)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _everything(http: httpx.Client) -> Iterator[bytes]:
    """Each GET of the interface that needs no more than these names."""
    paths = http.get("/openapi.json").json()["paths"]
    for path, acts in paths.items():
        if "get" in acts:
            name = "main" if "account" in path else "pickup"
            filled = "/".join(name if part.startswith("{") else part for part in path.split("/"))
            answer = http.get(filled)
            yield answer.content + repr(answer.headers).encode()
