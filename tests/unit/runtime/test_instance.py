from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import DatabaseUnavailable, StateConflict
from core.runtime.instance import DataDirLock, ServiceLock


def test_services_share_and_a_rotation_wants_it_alone(tmp_path: Path) -> None:
    with DataDirLock(tmp_path), DataDirLock(tmp_path) as second:
        with pytest.raises(StateConflict, match="in use"):
            DataDirLock(tmp_path, exclusive=True)
        second.close()
    with DataDirLock(tmp_path, exclusive=True), pytest.raises(StateConflict):
        DataDirLock(tmp_path)
    assert (tmp_path / "mpu.lock").stat().st_mode & 0o777 == 0o600


def test_one_service_has_the_data_directory_and_commands_share_it(tmp_path: Path) -> None:
    with ServiceLock(tmp_path), DataDirLock(tmp_path), DataDirLock(tmp_path):
        with pytest.raises(StateConflict, match="another service uses the data directory") as refused:
            ServiceLock(tmp_path)
        assert "--data-dir" in refused.value.remedy
    ServiceLock(tmp_path).close()
    assert (tmp_path / "service.lock").stat().st_mode & 0o777 == 0o600


def test_a_missing_data_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="nowhere"):
        DataDirLock(tmp_path / "nowhere")
