"""Sealing, key files and what is refused."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest

from core.errors import InvalidSettings, SecretKeyLost, StateConflict
from core.store.secrets import KEY_FILE, Secrets, SecretUnreadable, load

KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
OTHER = base64.urlsafe_b64encode(bytes(range(32, 64))).decode()


def test_a_secret_opens_for_its_purpose_only() -> None:
    secrets = Secrets((KEY,), None)
    token = secrets.seal("account:a", "s3cret\0with NUL, ü")
    assert secrets.open("account:a", token) == "s3cret\0with NUL, ü"
    with pytest.raises(SecretUnreadable):
        secrets.open("account:b", token)


@pytest.mark.parametrize("token", ["", "not a token", "gAAAAA", "ü"])
def test_what_is_no_token_is_unreadable(token: str) -> None:
    with pytest.raises(SecretUnreadable):
        Secrets((KEY,), None).open("account:a", token)


def test_another_key_opens_nothing_and_an_old_one_besides_the_new_does() -> None:
    token = Secrets((KEY,), None).seal("p", "x")
    with pytest.raises(SecretUnreadable):
        Secrets((OTHER,), None).open("p", token)
    assert Secrets((OTHER, KEY), None).open("p", token) == "x"


def test_the_first_start_makes_a_key_file_for_the_owner_alone(tmp_path: Path) -> None:
    first = load(str(tmp_path))
    path = tmp_path / KEY_FILE
    assert first.created
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = load(str(tmp_path))
    assert not again.created
    assert again.open("p", first.seal("p", "x")) == "x"


def test_a_key_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    load(str(tmp_path))
    (tmp_path / KEY_FILE).chmod(0o644)
    load(str(tmp_path))
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "# only a comment\n", "garbage\n", f"{KEY}\ngarbage\n", "\xff"])
def test_a_damaged_key_file_is_neither_used_nor_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / KEY_FILE
    path.write_bytes(content.encode("latin-1"))
    secrets = load(str(tmp_path))
    with pytest.raises(SecretUnreadable):
        secrets.open("p", Secrets((KEY,), None).seal("p", "x"))
    with pytest.raises(SecretKeyLost):
        secrets.seal("p", "x")
    assert path.read_bytes() == content.encode("latin-1")


def test_a_symlink_is_no_key_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(f"{KEY}\n")
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SecretKeyLost):
        load(str(tmp_path)).seal("p", "x")


def test_keys_of_the_environment_win_and_leave_no_file(tmp_path: Path) -> None:
    secrets = load(str(tmp_path), f" {OTHER} , {KEY} ")
    assert secrets.open("p", Secrets((KEY,), None).seal("p", "x")) == "x"
    assert secrets.open("p", Secrets((OTHER,), None).seal("p", "x")) == "x"
    assert os.listdir(tmp_path) == []
    with pytest.raises(StateConflict):
        secrets.add_key()


@pytest.mark.parametrize("text", ["passphrase", "abc,def", f"{KEY},x"], ids=["word", "two words", "a key and a word"])
def test_an_environment_key_that_is_none_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load(str(tmp_path), text)
    assert "MPU_SECRET_KEY" in caught.value.detail
    assert KEY not in caught.value.detail


def test_a_leftover_of_a_killed_start_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f"{KEY_FILE}.new").write_text("half")
    load(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [KEY_FILE]
