"""What the outcome log makes last before a group is committed: a power cut after the commit repeats nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.domain.sidecar import Sidecar
from core.spool.directory import Delete, DirectorySpool, ToBadmail, Verdict
from tests.support.spool import claim, claims_allowed, raises_errno, sent, spool_at, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


@pytest.fixture
def spool(path: Path) -> Iterator[DirectorySpool]:
    spool = spool_at(path)
    yield spool
    spool.close()


class Synced:
    """Names of what was synced, in order; directories with a slash."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._hook(getattr(os, name)))

    def _hook(self, sync: object) -> object:
        def hooked(fd: int) -> None:
            found = os.readlink(f"/proc/self/fd/{fd}")
            self.names.append(os.path.basename(found) + ("/" if os.path.isdir(found) else ""))
            sync(fd)  # type: ignore[operator]  # the real one

        return hooked

    def take(self) -> list[str]:
        names, self.names = self.names, []
        return names


def segments(path: Path) -> list[str]:
    return sorted(n for n in os.listdir(path / ".mpu") if ".log." in n)


def test_outcomes_their_segment_and_its_name_are_synced_before_the_commit(
    path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = claim(spool, write(path))
    synced = Synced(monkeypatch)
    claimed.begin(["a@b"])
    claimed.outcome(sent("a@b"))
    assert synced.take() == [], "an append waits for no disk"
    spool.before_commit([Delete(claimed)])
    assert synced.take() == [*segments(path), ".mpu/", "in/"]


def test_what_is_synced_already_is_not_synced_again(
    path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = claim(spool, write(path, "1.eml")), claim(spool, write(path, "2.eml"))
    first.begin(["a@b"])
    first.outcome(sent("a@b"))
    spool.before_commit([Delete(first)])
    synced = Synced(monkeypatch)
    spool.before_commit([Delete(first)])
    assert synced.take() == []
    second.begin(["a@b"])
    second.outcome(sent("a@b"))
    spool.before_commit([Delete(second)])
    assert synced.take() == segments(path), "its name was synced with the first group"


def test_an_error_of_the_disk_ends_claims(path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = claim(spool, write(path))
    claimed.begin(["a@b"])
    monkeypatch.setattr(os, "fdatasync", raises_errno(errno.EIO))
    spool.before_commit([Delete(claimed)])
    assert not claims_allowed(spool)


def test_a_file_system_that_cannot_sync_is_lived_with(
    path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = claim(spool, write(path))
    claimed.begin(["a@b"])
    monkeypatch.setattr(os, "fdatasync", raises_errno(errno.EINVAL))
    spool.before_commit([Delete(claimed)])
    assert claims_allowed(spool)


def test_logs_of_the_dead_are_synced_before_they_are_acted_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = spool_at(path)
    claimed = claim(dead, write(path))
    claimed.begin(["a@b"])
    claimed.outcome(sent("a@b"))
    dead.close()
    synced = Synced(monkeypatch)
    log = segments(path)
    heir = spool_at(path)
    synced.take()
    (recovered,) = heir.recover()
    assert recovered.verdict is Verdict.SETTLED
    assert synced.take() == [*log, ".mpu/", "in/"]
    heir.dispose([Delete(recovered.claim)])
    heir.close()


def test_a_new_badmail_is_synced_before_mail_is_moved_into_it(
    path: Path, spool: DirectorySpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = claim(spool, write(path))
    synced = Synced(monkeypatch)
    spool.dispose([ToBadmail(claimed, Sidecar(reason="no"), "no")])
    names = synced.take()
    assert (path / "badmail" / "x.eml").exists()
    assert names.index("in/") < names.index("x.eml.reason.txt"), "the first thing in it comes after its own name"
