"""The mpu command in this process."""

from __future__ import annotations

import pytest

from api.cli import main


def mpu(*arguments: object) -> int:
    """Run it; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)
