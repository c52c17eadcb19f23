"""Who uses a data directory: commands share it, what needs it for itself asks for that, and one service has it.

An flock on `mpu.lock` that goes with the process, however it ends. Rotating the encryption key must not happen under a
running service, which would go on sealing with the key that is about to be forgotten. A service holds `service.lock`
too, alone: pauses and drains are in its memory, so a second one would know nothing of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Self

from core.errors import DatabaseUnavailable, StateConflict


class _Lock:
    """A held flock; close it, or end the process."""

    def __init__(self, data_dir: Path, name: str, operation: int, taken: StateConflict) -> None:
        """Raises `taken` where somebody else's lock forbids ours, DatabaseUnavailable."""
        path = data_dir / name
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DatabaseUnavailable(
                f"{path} can't be opened: {error.strerror}",
                remedy="Run it as the service's user, or name the data directory: --data-dir or MPU_DATA_DIR.",
            ) from None
        try:
            fcntl.flock(self._descriptor, operation | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise DatabaseUnavailable(
                    f"{data_dir} lies on a file system without locks", remedy="Put the data directory on a local disk."
                ) from None
            raise taken from None

    def close(self) -> None:
        """Harmless when called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class DataDirLock(_Lock):
    """Held by whoever works on the data directory, shared or exclusive."""

    def __init__(self, data_dir: Path, *, exclusive: bool = False) -> None:
        """Raises StateConflict where somebody else's lock forbids ours, DatabaseUnavailable."""
        taken = StateConflict(
            f"the data directory {data_dir} is in use",
            state="in_use",
            remedy="Stop the service first." if exclusive else "Wait until the key was changed, then try again.",
        )
        super().__init__(data_dir, "mpu.lock", fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, taken)


class ServiceLock(_Lock):
    """Held by the one service of a data directory, beside its DataDirLock."""

    def __init__(self, data_dir: Path) -> None:
        """Raises StateConflict where another service runs, DatabaseUnavailable."""
        taken = StateConflict(
            f"another service uses the data directory {data_dir}",
            state="in_use",
            remedy="Stop that one first, or give this one its own: --data-dir or MPU_DATA_DIR.",
        )
        super().__init__(data_dir, "service.lock", fcntl.LOCK_EX, taken)
