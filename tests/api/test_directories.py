"""Directories over HTTP: where they may lie, when they run, what is tried."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.runtime.directory_rules import timing_rules
from core.runtime.views import CheckStepView
from core.settings import Settings
from tests.api.fakes import FakeRelay
from tests.api.test_accounts import pointers
from tests.support.database import START


@pytest.fixture
async def client(admin: httpx.AsyncClient) -> httpx.AsyncClient:
    """An admin's client; the accounts office and ses are there."""
    for name in ("office", "ses"):
        await admin.post("/accounts", json={"name": name, "host": "smtp.example.org"})
    return admin


def body(path: Path | str, **change: Any) -> dict[str, Any]:
    return {"path": str(path), "accounts": ["office"], **change}


async def test_create_show_delete(client: httpx.AsyncClient, relay: FakeRelay, roots: Path) -> None:
    made = await client.post("/directories", json=body(roots / "a", name="shop"))
    assert made.status_code == 201, made.text
    assert made.headers["location"] == "/directories/shop"
    shown = await client.get("/directories/shop")
    assert shown.headers["etag"] == made.headers["etag"]
    assert shown.json() == {
        "name": "shop",
        "path": str(roots / "a"),
        "accounts": ["office"],
        "strategy": "failover",
        "weights": [],
        "enabled": True,
        "patterns": ["*.eml"],
        "format": "eml",
        "dot_stuffing": "auto",
        "interval_seconds": 60,
        "schedule": None,
        "schedule_timezone": "UTC",
        "watch": True,
        "quiet_seconds": 2,
        "retry_initial_seconds": 60,
        "retry_max_seconds": 3600,
        "expire_after_seconds": 432000,
        "on_unknown": "retry",
        "unknown_max": 3,
        "max_message_bytes": 52428800,
        "max_recipients": 10000,
        "oldest_alert_seconds": 900,
        "created_at": "2027-01-15T08:00:00.000Z",
        "updated_at": "2027-01-15T08:00:00.000Z",
        "pause": None,
    }
    (roots / "a" / "x.eml").write_bytes(b"mail")
    assert (await client.delete("/directories/shop")).status_code == 204
    assert (roots / "a" / "x.eml").exists()
    assert (await client.get("/directories/shop")).status_code == 404
    assert relay.applied[-2:] == ["directory shop", "directory shop"]


async def test_put_creates_replaces_and_keeps_still(client: httpx.AsyncClient, relay: FakeRelay, roots: Path) -> None:
    made = await client.put("/directories/shop", json=body(roots / "a", quiet_seconds=9))
    assert made.status_code == 201
    same = await client.put("/directories/shop", json=body(f"{roots}/b/../a/", quiet_seconds=9.0))
    assert (same.status_code, same.headers["etag"]) == (200, made.headers["etag"])
    assert relay.applied.count("directory shop") == 1
    assert len(relay.checks.directories) == 1
    replaced = await client.put("/directories/shop", json=body(roots / "a", accounts=["ses", "office"]))
    assert (replaced.json()["quiet_seconds"], replaced.json()["accounts"]) == (2, ["ses", "office"])
    assert relay.applied.count("directory shop") == 2


async def test_a_merge_patch_changes_what_it_names(client: httpx.AsyncClient, roots: Path) -> None:
    await client.post("/directories", json=body(roots / "a", name="shop", patterns=["*.txt", "*.eml"]))
    changed = await client.patch("/directories/shop", json={"patterns": None, "enabled": False})
    assert (changed.json()["patterns"], changed.json()["enabled"]) == (["*.eml"], False)
    assert pointers(await client.patch("/directories/shop", json={"path": None})) == {"/path": "required"}
    assert pointers(await client.patch("/directories/shop", json={"accounts": None})) == {"/accounts": "required"}
    assert pointers(await client.patch("/directories/shop", json={"name": "x"})) == {"/name": "read_only"}


async def test_schedule_and_interval_take_each_others_place(client: httpx.AsyncClient, roots: Path) -> None:
    async def timing(**change: Any) -> tuple[Any, Any]:
        answer = await client.patch("/directories/shop", json=change)
        assert answer.status_code == 200, answer.text
        return answer.json()["interval_seconds"], answer.json()["schedule"]

    made = await client.post("/directories", json=body(roots / "a", name="shop", schedule="0 2 * * *"))
    assert (made.json()["interval_seconds"], made.json()["schedule"]) == (None, "0 2 * * *")
    assert await timing(watch=False) == (None, "0 2 * * *")
    assert await timing(interval_seconds=5) == (5, None)
    assert await timing(schedule="*/5 * * * *") == (None, "*/5 * * * *")
    assert await timing(schedule=None) == (60, None)
    assert await timing(interval_seconds=None) == (60, None)
    both = {"interval_seconds": 5, "schedule": "0 2 * * *"}
    assert pointers(await client.patch("/directories/shop", json=both)) == {"/interval_seconds": "conflict"}
    answer = await client.post("/directories", json=body(roots / "b", name="b", **both))
    assert pointers(answer) == {"/interval_seconds": "conflict"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"accounts": ["office", "nobody"]}, {"/accounts/1": "unknown_account"}),
        ({"accounts": ["office", "office"]}, {"/accounts/1": "twice"}),
        ({"accounts": []}, {"/accounts": "too_short"}),
        ({"accounts": "office"}, {"/accounts": "wrong_type"}),
        ({"accounts": ["O"]}, {"/accounts/0": "wrong_form"}),
        ({"schedule": "0 2 * *"}, {"/schedule": "too_short"}),
        ({"schedule": "0 25 * * *"}, {"/schedule": "wrong_form"}),
        ({"schedule": "a b c d e"}, {"/schedule": "wrong_form"}),
        ({"schedule": "*/0 * * * *"}, {"/schedule": "wrong_form"}),
        ({"schedule": "0 0 31 2 *"}, {"/schedule": "never"}),
        ({"schedule_timezone": "Mars/Olympus"}, {"/schedule_timezone": "unknown_timezone"}),
        ({"schedule_timezone": "../../etc/passwd"}, {"/schedule_timezone": "unknown_timezone"}),
        ({"schedule_timezone": "Europe"}, {"/schedule_timezone": "unknown_timezone"}),
        ({"patterns": ["a/b"]}, {"/patterns/0": "wrong_form"}),
        ({"patterns": ["*.eml", "*.lck"]}, {"/patterns/1": "wrong_form"}),
        ({"patterns": ["*.hold"]}, {"/patterns/0": "wrong_form"}),
        ({"patterns": [".."]}, {"/patterns/0": "wrong_form"}),
        ({"patterns": [""]}, {"/patterns/0": "too_short"}),
        ({"patterns": []}, {"/patterns": "too_short"}),
        ({"interval_seconds": 0}, {"/interval_seconds": "out_of_range"}),
        ({"retry_initial_seconds": 100, "retry_max_seconds": 50}, {"/retry_initial_seconds": "out_of_range"}),
        ({"format": "mbox"}, {"/format": "not_allowed"}),
        ({"unknown_max": 0}, {"/unknown_max": "out_of_range"}),
        ({"max_message_bytes": 1.5}, {"/max_message_bytes": "wrong_type"}),
        ({"path": "relative"}, {"/path": "wrong_form"}),
        ({"path": "/a\u0000b"}, {"/path": "wrong_form"}),
        ({"path": "/etc"}, {"/path": "outside_roots"}),
        ({"path": "/"}, {"/path": "outside_roots"}),
        ({"created_at": "2020-01-01T00:00:00Z"}, {"/created_at": "read_only"}),
    ],
)
async def test_wrong_settings_name_the_field(
    client: httpx.AsyncClient, roots: Path, change: dict[str, Any], expected: dict[str, str]
) -> None:
    assert pointers(await client.post("/directories", json=body(roots / "a", name="shop") | change)) == expected
    assert pointers(await client.put("/directories/shop", json=body(roots / "a") | change)) == expected
    assert (await client.get("/directories")).json()["items"] == []


async def test_where_a_directory_may_lie(
    client: httpx.AsyncClient, roots: Path, tmp_path: Path, settings: Settings
) -> None:
    async def code(path: Path) -> str:
        answer = await client.post("/directories", json=body(path, name="shop"))
        found: str = pointers(answer)["/path"]
        return found

    (tmp_path / "outside").mkdir()
    (roots / "link").symlink_to(tmp_path / "outside")
    (roots / "file").write_text("")
    (tmp_path / "roots2").mkdir()
    assert await code(roots / "missing") == "not_found"
    assert await code(roots / "file") == "not_a_directory"
    assert await code(roots / "link") == "outside_roots"
    assert await code(roots / ".." / "outside") == "outside_roots"
    assert await code(tmp_path / "roots2") == "outside_roots"  # not by a common prefix of letters


async def test_a_symlink_within_the_roots_is_resolved(client: httpx.AsyncClient, roots: Path) -> None:
    (roots / "link").symlink_to(roots / "a")
    made = await client.put("/directories/shop", json=body(roots / "link"))
    assert made.json()["path"] == str(roots / "a")
    again = await client.put("/directories/shop", json=body(roots / "link"))
    assert again.headers["etag"] == made.headers["etag"]


async def test_the_data_directory_is_never_one(client: httpx.AsyncClient, relay: FakeRelay, tmp_path: Path) -> None:
    wider = relay.settings.model_copy(update={"pickup_roots": (tmp_path,)})
    relay.directories._settings = wider
    assert pointers(await client.post("/directories", json=body(relay.settings.data_dir, name="x"))) == {
        "/path": "data_directory"
    }
    assert pointers(await client.post("/directories", json=body(tmp_path, name="x"))) == {"/path": "data_directory"}
    inside = relay.settings.data_dir / "pickup"
    inside.mkdir()
    assert pointers(await client.post("/directories", json=body(inside, name="x"))) == {"/path": "data_directory"}
    relay.directories._settings = wider.model_copy(update={"demo": True})  # `make run` has all in one folder
    assert (await client.post("/directories", json=body(inside, name="x"))).status_code == 201


async def test_without_roots_the_setting_is_named(client: httpx.AsyncClient, relay: FakeRelay, roots: Path) -> None:
    relay.directories._settings = relay.settings.model_copy(update={"pickup_roots": ()})
    answer = await client.post("/directories", json=body(roots / "a", name="shop"))
    assert pointers(answer) == {"/path": "no_pickup_roots"}
    assert "MPU_PICKUP_ROOTS" in answer.json()["errors"][0]["detail"]


async def test_paths_overlap_with_no_other(client: httpx.AsyncClient, roots: Path) -> None:
    (roots / "a" / "deep").mkdir()
    assert (await client.post("/directories", json=body(roots / "a", name="shop"))).status_code == 201
    twice = await client.post("/directories", json=body(roots / "a", name="other"))
    assert twice.status_code == 409
    assert pointers(await client.post("/directories", json=body(roots / "a" / "deep", name="deep"))) == {
        "/path": "overlapping"
    }
    assert pointers(await client.post("/directories", json=body(roots, name="above"))) == {"/path": "overlapping"}
    await client.post("/directories", json=body(roots / "b", name="other"))
    assert (await client.patch("/directories/other", json={"path": str(roots / "a")})).status_code == 409


@pytest.mark.parametrize(
    "where", ["a/.mpu", "a/.mpu/deep", "a/badmail", "b/badmail", "b/badmail/deep", "b/new/../.mpu", "link"]
)
async def test_our_own_folders_are_no_directories(client: httpx.AsyncClient, roots: Path, where: str) -> None:
    await client.post("/directories", json=body(roots / "a", name="shop"))
    for folder in ("a/.mpu/deep", "a/badmail", "b/.mpu", "b/badmail/deep", "b/new"):
        (roots / folder).mkdir(parents=True)
    (roots / "link").symlink_to(roots / "b" / "badmail")
    path = f"{roots}/{where}"
    for answer in (
        await client.patch("/directories/shop", json={"path": path}),
        await client.put("/directories/shop", json=body(path)),
        await client.put("/directories/other", json=body(path)),
        await client.post("/directories", json=body(path, name="other")),
    ):
        assert pointers(answer) == {"/path": "own_folder"}, answer.text
    assert (await client.get("/directories/shop")).json()["path"] == str(roots / "a")


async def test_another_folder_may_be_called_badmail(client: httpx.AsyncClient, roots: Path) -> None:
    (roots / "badmail").mkdir()
    assert (await client.post("/directories", json=body(roots / "badmail", name="shop"))).status_code == 201


async def test_a_directory_moves_neither_above_nor_below_itself(client: httpx.AsyncClient, roots: Path) -> None:
    (roots / "a" / "deep" / "deeper").mkdir(parents=True)
    await client.post("/directories", json=body(roots / "a" / "deep", name="shop"))
    for path in (roots / "a", roots / "a" / "deep" / "deeper"):
        for answer in (
            await client.patch("/directories/shop", json={"path": str(path)}),
            await client.put("/directories/shop", json=body(path)),
        ):
            assert pointers(answer) == {"/path": "overlapping"}, answer.text
    assert (await client.patch("/directories/shop", json={"path": str(roots / "b")})).status_code == 200


async def test_what_cannot_be_done_there_is_refused(client: httpx.AsyncClient, relay: FakeRelay, roots: Path) -> None:
    relay.checks.steps = (
        CheckStepView("create", ok=False, seconds=0, cause="permission denied", remedy="chgrp"),
        CheckStepView("lease", ok=False, seconds=0, required=False),
    )
    refused = await client.post("/directories", json=body(roots / "a", name="shop"))
    assert pointers(refused) == {"/path": "create"}
    assert "chgrp" in refused.text
    relay.checks.steps = relay.checks.steps[1:]
    saved = await client.post("/directories", json=body(roots / "a", name="shop"))
    assert saved.status_code == 201
    assert [step["step"] for step in saved.json()["warnings"]] == ["lease"]
    assert (await client.patch("/directories/shop", json={"enabled": False})).json()["warnings"] == []
    assert (await client.post("/directories/shop/check")).json()["steps"][0]["required"] is False
    assert (await client.post("/directories/none/check")).status_code == 404


async def test_a_directory_that_is_gone_can_still_be_disabled(
    client: httpx.AsyncClient, relay: FakeRelay, roots: Path
) -> None:
    await client.post("/directories", json=body(roots / "a", name="shop"))
    relay.checks.steps = (CheckStepView("list", ok=False, seconds=0),)
    (roots / "a").rmdir()
    assert (await client.patch("/directories/shop", json={"enabled": False})).status_code == 200
    assert pointers(await client.patch("/directories/shop", json={"format": "maildir"})) == {"/path": "list"}


@pytest.mark.parametrize("schedule", ["0 2 * * *", "*/5 8-17 * * mon-fri", "0 0 29 2 *", "59 23 31 12 sun"])
def test_schedules_that_come_around(schedule: str) -> None:
    assert timing_rules(schedule, "Europe/Vienna", START) == []


async def test_savers_that_meet_lose_nothing(client: httpx.AsyncClient, roots: Path) -> None:
    made = await asyncio.gather(*(client.put("/directories/shop", json=body(roots / "a")) for _ in range(4)))
    assert sorted(answer.status_code for answer in made) == [200, 200, 200, 201]
    changes = [{"quiet_seconds": 7}, {"unknown_max": 2}, {"enabled": False}, {"patterns": ["*"]}]
    answers = await asyncio.gather(*(client.patch("/directories/shop", json=change) for change in changes))
    assert [answer.status_code for answer in answers] == [200] * 4
    shown = (await client.get("/directories/shop")).json()
    assert (shown["quiet_seconds"], shown["unknown_max"], shown["enabled"], shown["patterns"]) == (7, 2, False, ["*"])


async def test_what_a_get_shows_and_nobody_sets_is_told_so(client: httpx.AsyncClient, roots: Path) -> None:
    saved = (await client.put("/directories/shop", json=body(roots / "a"))).json()
    expected = {f"/{name}": "read_only" for name in ("created_at", "updated_at", "pause", "warnings")}
    assert pointers(await client.put("/directories/shop", json={**saved, "usage": 1})) == {
        **expected,
        "/usage": "unknown_field",
    }


async def test_put_may_create_only(client: httpx.AsyncClient, roots: Path) -> None:
    absent = {"If-None-Match": "*"}
    made = await client.put("/directories/shop", json=body(roots / "a"), headers=absent)
    assert made.status_code == 201, made.text
    again = await client.put("/directories/shop", json=body(roots / "b"), headers=absent)
    assert (again.status_code, again.json()["type"]) == (412, "urn:mpu:problem:precondition_failed")
    assert (await client.get("/directories/shop")).json()["path"] == str(roots / "a")
    taken = await client.put("/directories/other", json=body(roots / "a"), headers=absent)
    assert taken.status_code == 409
    race = await asyncio.gather(
        *(client.put("/directories/late", json=body(roots / "b"), headers=absent) for _ in range(4))
    )
    assert sorted(answer.status_code for answer in race) == [201, 412, 412, 412]


async def test_names_conditions_and_what_is_not_there(client: httpx.AsyncClient, roots: Path) -> None:
    assert pointers(await client.put("/directories/shop", json=body(roots / "a", name="other"))) == {
        "/name": "read_only"
    }
    absent = await client.put("/directories/shop", json=body(roots / "a"), headers={"If-Match": "*"})
    assert absent.status_code == 412
    made = await client.post("/directories", json=body(roots / "a", name="shop"))
    taken = await client.post("/directories", json=body(roots / "b", name="shop"))
    assert taken.status_code == 409
    changed = await client.patch(
        "/directories/shop", json={"enabled": False}, headers={"If-Match": made.headers["etag"]}
    )
    assert changed.status_code == 200
    for call in (
        client.patch("/directories/shop", json={}, headers={"If-Match": made.headers["etag"]}),
        client.delete("/directories/shop", headers={"If-Match": made.headers["etag"]}),
    ):
        assert (await call).status_code == 412
    assert (await client.patch("/directories/none", json={})).status_code == 404
    assert (await client.delete("/directories/none")).status_code == 404
    rows = (await client.get("/audit")).json()["items"]
    assert rows[0]["action"] == "directory.update"
    assert rows[0]["changes"] == {"enabled": [True, False]}
