"""Times in the database."""

from __future__ import annotations

import pytest

from core.store.epoch import from_database, optional_to_database, to_database


@pytest.mark.parametrize("seconds", [0.0, 1.5, 1_800_000_000.123456, -1.0, 253_402_300_799.0])
def test_a_time_comes_back_to_the_microsecond(seconds: float) -> None:
    assert from_database(to_database(seconds)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("seconds", [2.0**45, 2.0**63, 1e300, float("inf"), -1e300, float("-inf")])
def test_a_time_that_only_a_file_system_knows_fits_into_a_row(seconds: float) -> None:
    """tmpfs takes `touch -d @35184372088832`; SQLite's integers have 64 bits."""
    assert abs(to_database(seconds)) < 1 << 63
    assert optional_to_database(seconds) == to_database(seconds)
