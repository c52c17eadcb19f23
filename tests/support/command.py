"""The mpu command: in this process, or in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from api.cli import main

ROOT = Path(__file__).parents[2]
_ONE_BY_ONE = """
import json, sys
from tests.support.command import mpu
for arguments in json.loads(sys.argv[1]):
    if code := mpu(*arguments):
        sys.exit(code)
"""


def mpu(*arguments: object) -> int:
    """Run it; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def mpu_apart(*commands: Sequence[object]) -> int:
    """Run these in a process of its own, which may become somebody else; the exit code of the first that fails.

    Let the same go before as root: all is imported then, and the interpreter may lie in root's home.
    """
    told = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", _ONE_BY_ONE, told], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode
