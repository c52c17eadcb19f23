"""`mpu backup` and `mpu restore`: what the library's tests can't see, options, owners and locks."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest

from core.runtime.instance import DataDirLock
from tests.support.command import mpu, mpu_apart


def _keys(data: Path) -> int:
    connection = sqlite3.connect(data / "mpu.sqlite3")
    try:
        return int(connection.execute("SELECT count(*) FROM api_key").fetchone()[0])
    finally:
        connection.close()


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy.sqlite3"
    assert mpu("migrate") == mpu("key", "create", "one") == 0
    with DataDirLock(data):  # as a running service holds it
        assert mpu("backup", copy, "--with-key") == 0
        assert mpu("backup", copy) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert mpu("backup", copy, "--overwrite") == 0
        assert "secret.key elsewhere" in capsys.readouterr().out
        assert mpu("key", "create", "two") == 0
        before = _keys(data)
        assert mpu("restore", copy) == 1
        assert "Stop the service first" in capsys.readouterr().err
        assert _keys(data) == before
    assert mpu("restore", copy) == 0
    shown = capsys.readouterr().out
    (kept,) = data.glob("before-restore-*")
    assert str(kept) in shown
    assert (_keys(data), _keys(kept)) == (before - 1, before)
    assert mpu("restore", tmp_path / "missing") == 1
    copy.write_text("spoilt")
    assert mpu("restore", copy) == 1
    assert _keys(data) == before - 1
    assert mpu("migrate") == 0


def test_a_bare_file_name_is_one_in_the_folder_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mpu("migrate") == mpu("key", "create", "one") == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert mpu("backup", "copy", "--with-key", "--data-dir", tmp_path / "data") == 0
    assert mpu("backup", "copy", "--with-key", "--overwrite", "--data-dir", tmp_path / "data") == 0
    assert sorted(os.listdir(elsewhere)) == ["copy", "copy.key"]
    assert mpu("restore", "copy", "--data-dir", tmp_path / "data") == 0


def test_restore_makes_the_data_directory(tmp_path: Path) -> None:
    assert mpu("migrate") == mpu("key", "create", "one") == 0
    assert mpu("backup", tmp_path / "copy", "--with-key") == 0
    assert mpu("restore", tmp_path / "copy", "--data-dir", tmp_path / "new") == 0
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert _keys(tmp_path / "new") == _keys(tmp_path / "data")


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("file/x", "Not a directory"),
        ("file", "File exists"),
        ("link", "link is a link to /not/there, which is not there"),
        ("link/x", "link is a link to /not/there, which is not there"),
    ],
)
def test_restore_says_why_the_data_directory_can_not_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, why: str
) -> None:
    assert mpu("migrate") == 0
    assert mpu("backup", tmp_path / "copy") == 0
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/not/there")
    assert mpu("restore", tmp_path / "copy", "--data-dir", tmp_path / where) == 1
    told = capsys.readouterr().err
    assert f"the data directory {tmp_path / where} can't be used: " in told
    assert why in told
    assert "--data-dir" in told


def test_a_key_of_the_environment_is_not_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mpu("secret-key") == 0
    monkeypatch.setenv("MPU_SECRET_KEY", capsys.readouterr().out.strip())
    assert mpu("migrate") == mpu("key", "create", "one") == 0
    assert mpu("backup", tmp_path / "copy", "--with-key") == 1
    assert "MPU_SECRET_KEY" in capsys.readouterr().err
    assert mpu("backup", tmp_path / "copy") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_leaves_the_services_user_his_files() -> None:
    with tempfile.TemporaryDirectory(prefix="mpu-owner-") as folder:  # pytest's own folders are closed to others
        data, elsewhere = Path(folder) / "data", Path(folder) / "elsewhere"
        data.mkdir()
        elsewhere.mkdir(0o700)
        assert mpu("migrate", "--data-dir", data) == mpu("key", "create", "one", "--data-dir", data) == 0
        (data / "mpu.lock").unlink()
        for path in (data, *data.iterdir()):
            os.chown(path, 12345, 12345)
        connection = sqlite3.connect(data / "mpu.sqlite3")  # as the service: there are -wal and -shm
        connection.execute("SELECT count(*) FROM api_key").fetchone()
        os.chmod(folder, 0o755)
        assert mpu("backup", elsewhere / "copy", "--with-key", "--data-dir", data) == 0
        connection.close()
        assert {path.stat().st_uid for path in data.iterdir()} == {12345}
        assert {path.stat().st_uid for path in elsewhere.iterdir()} == {0}
        restore = ("restore", elsewhere / "copy", "--data-dir")  # which only root can read
        assert mpu_apart((*restore, elsewhere / "other-data"), (*restore, data)) == 0
        (kept,) = data.glob("before-restore-*")
        assert {path.stat().st_uid for path in (*data.iterdir(), *kept.iterdir())} == {12345}
        (data / "mpu.sqlite3").unlink()
        (data / "mpu.sqlite3").symlink_to(elsewhere / "copy")
        assert mpu("backup", elsewhere / "other", "--data-dir", data) == 1
        assert not (elsewhere / "other").exists()
