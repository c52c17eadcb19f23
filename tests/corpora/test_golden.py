"""The share of the corpora that needs no download: the files of tests/golden against the slow reference."""

from __future__ import annotations

import json
from pathlib import Path

from tests.corpora.through import intact, through

_GOLDEN = Path(__file__).parent.parent / "golden"
_NOT_AS_THEY_ARE = {
    "bcc-only": "its To is added: undisclosed-recipients",
    "raw-8bit-headers": "raw octets of the header are encoded",
    "dotnet-framework": "stuffed dots are taken off",
    "iis-lower-case": "stuffed dots are taken off",
    "cr-only": "the mark in front of it ends in LF",
}


async def test_golden_files_arrive_as_the_reference_expects(tmp_path: Path) -> None:
    files = {}
    for folder in sorted(_GOLDEN.iterdir()):
        told = json.loads((folder / "expected.json").read_text())
        if "refused" not in told and "setting" not in told and folder.name not in _NOT_AS_THEY_ARE:
            files[folder.name] = (folder / "message.eml").read_bytes()
    assert len(files) >= 8
    came = await through(tmp_path, files)
    wrong = [name for number, name in enumerate(files) if not intact(files[name], came[name], number, envelope=False)]
    assert wrong == []
