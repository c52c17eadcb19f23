from __future__ import annotations

from pathlib import Path

import pytest

from api.cli.client import Failed, base_url, find_key, segment


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        (None, {}, "http://127.0.0.1:8025"),
        (None, {"MPU_HOST": "0.0.0.0", "MPU_PORT": "9000"}, "http://127.0.0.1:9000"),
        (None, {"MPU_HOST": "::"}, "http://[::1]:8025"),
        (None, {"MPU_TLS_CERTIFICATE_FILE": "/c", "MPU_ROOT_PATH": "/mpu"}, "https://127.0.0.1:8025/mpu"),
        ("relay.example.org:8025", {"MPU_PORT": "1"}, "http://relay.example.org:8025"),
        ("https://relay.example.org/mpu/", {}, "https://relay.example.org/mpu"),
    ],
)
def test_where_the_service_is(url: str | None, environ: dict[str, str], expected: str) -> None:
    assert base_url(url, environ) == expected


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named").write_text("named\n")
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "api-key").write_text("demo\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "api-key").write_text("data\n")
    assert find_key(None, {}) == "demo"
    assert find_key(None, {"MPU_DATA_DIR": str(tmp_path / "data")}) == "data"
    assert find_key(None, {"MPU_API_KEY": "given", "MPU_DATA_DIR": "data"}) == "given"
    assert find_key(tmp_path / "named", {"MPU_API_KEY": "given"}) == "named"


@pytest.mark.parametrize("url", ["http://[::", "http://example.org:port", "http://\u00e9%%/"])
def test_what_is_no_url_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed):
        base_url(url, {})
    assert "is no URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", ["root:x:0:0::/root\nsecond:x", "sécret-sécret-sécret", "two words", "secret\x00", "s" * 501, "s" * 10_000]
)
def test_what_is_no_key_is_never_shown(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text(wrong)
    (tmp_path / "octets").write_bytes(b"\xff\xfe" + wrong.encode())
    with pytest.raises(Failed):
        find_key(None, {"MPU_API_KEY": wrong})
    for file in ("file", "octets"):
        with pytest.raises(Failed):
            find_key(tmp_path / file, {})
    shown = capsys.readouterr().err
    assert shown.count("one line of visible ASCII, at most 500 characters") == 3
    for part in ("root:", "second:", "cret-", "two ", "sss"):
        assert part not in shown


def test_the_longest_key_is_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("!" * 250 + "~" * 250 + "\r\n")
    assert find_key(tmp_path / "file", {}) == "!" * 250 + "~" * 250


def test_a_missing_key_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "api-key").write_text(" \n")
    with pytest.raises(Failed):
        find_key(None, {"MPU_DATA_DIR": str(tmp_path)})
    shown = capsys.readouterr().err
    assert "api-key: empty" in shown
    assert "MPU_API_KEY" in shown


def test_a_name_is_one_part_of_a_path_and_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert [segment(name) for name in ("main", "a?b#c", "pickup.a-b.01", "..pp")] == [
        "main",
        "a%3Fb%23c",
        "pickup.a-b.01",
        "..pp",
    ]
    for name in ("../pp?x", "a/b", "..", ".", ""):
        with pytest.raises(Failed):
            segment(name)
        assert f"{name!r} is neither a name nor an id" in capsys.readouterr().err
