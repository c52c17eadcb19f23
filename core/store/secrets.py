"""Secrets in the database: sealed with Fernet, each for one purpose, so that none can be put in another's place.

The keys are those of MPU_SECRET_KEY (Fernet keys, comma-separated, the newest first), or of the file `secret.key` in
the data directory (mode 0600, one a line, the newest first), which the first start creates.

Rotation: the new key comes first in the file, all secrets are sealed anew in one transaction, the old keys leave the
file. Whatever a kill leaves behind is a file whose keys open every secret, and the next start finishes the work.

A lost key: the relay starts, and says which passwords must be entered again (`verify`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlmodel import Session, select

from core.errors import FieldError, InvalidSettings, SecretKeyLost, StateConflict
from core.store import settings
from core.store.tables import AccountRow, OutsideTokenRow

KEY_FILE = "secret.key"
MAX_KEY_FILE_CHARACTERS = 65536
_CHECK = "store.secret_check"
_CHECK_PURPOSE = "check"
_CHECK_VALUE = "mail processing unit"
_OUTSIDE = "MPU_SECRET_KEY, or the file or credential that stands for it"
_ENTER_AGAIN = "enter these again: PATCH /accounts/NAME; sending goes on when all of them are there"


class SecretUnreadable(Exception):
    """None of the keys opens it, or it was sealed for something else."""


class Secrets:
    """Seals and opens. `path`: the key file, None where the keys come from the environment."""

    def __init__(self, keys: Sequence[str], path: str | None, *, created: bool = False) -> None:
        self.path = path
        self.created = created  # the file was made just now
        self._keys: tuple[str, ...] = ()
        self._fernet: MultiFernet | None = None
        self._use(keys)

    def _use(self, keys: Sequence[str]) -> None:
        self._keys = tuple(keys)
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None

    @property
    def keys(self) -> tuple[str, ...]:
        """All that are in use, the newest first."""
        return self._keys

    @property
    def old_keys(self) -> bool:
        """Whether there are keys besides the newest: a rotation that isn't finished."""
        return len(self._keys) > 1

    def seal(self, purpose: str, secret: str) -> str:
        """A token for the database. Raises SecretKeyLost where there is no usable key at all."""
        if self._fernet is None:
            raise SecretKeyLost(
                f"the key file {self.path} can't be used", remedy="restore it, or delete it and restart"
            )
        return self._fernet.encrypt(f"{purpose}\0{secret}".encode()).decode()

    def open(self, purpose: str, token: str) -> str:
        """The secret. Raises SecretUnreadable."""
        if self._fernet is None:
            raise SecretUnreadable
        try:
            sealed_for, _, secret = self._fernet.decrypt(token).decode().partition("\0")
        except (InvalidToken, ValueError):  # ValueError: not even ASCII or UTF-8
            raise SecretUnreadable from None
        if sealed_for != purpose:
            raise SecretUnreadable
        return secret

    def add_key(self) -> None:
        """Rotation, first step: a new key in front of the others, in the file and here."""
        if self.path is None:
            raise StateConflict(
                f"the key comes from {_OUTSIDE}",
                state="from_environment",
                remedy="put a new key and a comma in front of it, restart, then take the old one out",
            )
        keys = (Fernet.generate_key().decode(), *self._keys)
        write_keys(self.path, keys)
        self._use(keys)

    def drop_old_keys(self) -> None:
        """Rotation, last step: nothing is sealed with them any more."""
        if self.path is not None:
            write_keys(self.path, self._keys[:1])
            self._use(self._keys[:1])


def load(data_dir: str, secret_key: str | None = None) -> Secrets:
    """The keys of `secret_key` (MPU_SECRET_KEY), else of the file in `data_dir`, which is created if need be.

    Raises InvalidSettings where `secret_key` is none. A file that can't be read gives a Secrets that opens nothing:
    `verify` tells.
    """
    if secret_key is not None and secret_key.strip():
        keys = [key.strip() for key in secret_key.split(",") if key.strip()]
        if not all(_is_key(key) for key in keys):
            raise InvalidSettings(
                [
                    FieldError(
                        "/secret_key", "no_fernet_key", "MPU_SECRET_KEY is no Fernet key (32 octets in base64url)"
                    )
                ],
                remedy="make one with `mpu secret-key`; several are separated by commas, the newest first",
            )
        return Secrets(keys, None)
    path = os.path.join(data_dir, KEY_FILE)
    try:
        return Secrets(read_keys(path), path)
    except FileNotFoundError:
        key = Fernet.generate_key().decode()
        write_keys(path, (key,))
        return Secrets((key,), path, created=True)
    except (OSError, ValueError):
        return Secrets((), path)


def _is_key(text: str) -> bool:
    try:
        Fernet(text)
    except (ValueError, TypeError):
        return False
    return True


def read_keys(path: str) -> list[str]:
    """The keys in a file, the newest first. Raises OSError, ValueError where it is no key file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, encoding="ascii") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            os.fchmod(descriptor, 0o600)
        return parse_keys(file.read(MAX_KEY_FILE_CHARACTERS))


def parse_keys(text: str) -> list[str]:
    """What a key file holds. Raises ValueError where it is none."""
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not all(_is_key(key) for key in keys):
        raise ValueError("not a key file")
    return keys


def write_keys(path: str, keys: Sequence[str]) -> None:
    """Replace the file so that after a kill or a power cut it is the old or the new one, whole."""
    folder = os.path.dirname(os.path.abspath(path))  # of a bare file name too
    temporary = f"{path}.new"
    if os.path.lexists(temporary):  # of a start that was killed
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write("# Opens the passwords in the database beside it. Keep a copy elsewhere; show it to nobody.\n")
        file.writelines(f"{key}\n" for key in keys)
        file.flush()
        os.fsync(descriptor)
    os.rename(temporary, path)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def purpose_of(account: str) -> str:
    """What an account's password is sealed for."""
    return f"account:{account}"


def oauth_purpose_of(account: str) -> str:
    """What the secrets of an account's OAuth settings are sealed for: a JSON object."""
    return f"oauth:{account}"


def outside_purpose_of(digest: str) -> str:
    """What the token that follows an outside one is sealed for."""
    return f"outside:{digest}"


def _sealed(row: AccountRow) -> dict[str, tuple[str, str]]:
    """Column -> purpose and token of what an account keeps sealed."""
    columns = {"password": purpose_of(row.name), "oauth_secrets": oauth_purpose_of(row.name)}
    tokens = {column: getattr(row, column) for column in columns}
    return {column: (columns[column], token) for column, token in tokens.items() if token is not None}


def lost(session: Session, secrets: Secrets) -> list[str]:
    """Names of the accounts with a secret that doesn't open."""
    names = []
    for row in session.exec(select(AccountRow).order_by(AccountRow.name)):
        try:
            for purpose, token in _sealed(row).values():
                secrets.open(purpose, token)
        except SecretUnreadable:
            names.append(row.name)
    return names


def verify(session: Session, secrets: Secrets) -> SecretKeyLost | None:
    """What is wrong with the keys; None: they open everything.

    Needs a transaction that writes, for the value in the database by which the right keys are known.
    """
    check = settings.get(session, _CHECK)
    right = False
    if isinstance(check, str):
        with suppress(SecretUnreadable):
            right = secrets.open(_CHECK_PURPOSE, check) == _CHECK_VALUE
    names = lost(session, secrets)
    if not names:
        if not right:
            try:
                settings.put(session, _CHECK, secrets.seal(_CHECK_PURPOSE, _CHECK_VALUE))
            except SecretKeyLost as error:
                return error
        return None
    which = "passwords or tokens of " + ", ".join(names)
    if right:
        return SecretKeyLost(f"damaged in the database: the {which}", remedy=_ENTER_AGAIN, accounts=names)
    source = secrets.path or _OUTSIDE
    return SecretKeyLost(
        f"the key in {source} is not the one that the database was written with; closed are the {which}",
        remedy=f"restore {source} and restart, or {_ENTER_AGAIN}",
        accounts=names,
    )


def reseal(session: Session, secrets: Secrets) -> None:
    """Rotation, second step: seal everything with the newest key, in the caller's transaction."""
    for row in session.exec(select(AccountRow)):
        for column, (purpose, token) in _sealed(row).items():
            setattr(row, column, secrets.seal(purpose, secrets.open(purpose, token)))
        session.add(row)
    for follower in session.exec(select(OutsideTokenRow)):
        purpose = outside_purpose_of(follower.digest)
        with suppress(SecretUnreadable):  # of a key that was lost: a new token outside takes its place
            follower.token = secrets.seal(purpose, secrets.open(purpose, follower.token))
            session.add(follower)
    settings.put(session, _CHECK, secrets.seal(_CHECK_PURPOSE, _CHECK_VALUE))


Step = Callable[[str], None]


def no_step(_name: str) -> None:
    """Where nobody wants to know how far a rotation is."""
