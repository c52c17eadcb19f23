"""Secrets of accounts that lie outside the database: environment variables, mounted files, systemd credentials.

`env:NAME`, `file:/path`, `credential:NAME` ($CREDENTIALS_DIRECTORY/NAME). An account could send what it names to any
server, so whoever may change accounts must not be able to name what he likes. What may be named:
- files that lie directly in one of MPU_SECRET_FILES (default /run/secrets) or in $CREDENTIALS_DIRECTORY. Not below:
  Kubernetes keeps the pod's own token in /run/secrets/kubernetes.io/serviceaccount. Links are followed (Kubernetes
  makes every mounted secret one) as long as they end under the same directory;
- variables whose name begins with MPU_SECRET_ENV_PREFIX (default MPU_SECRET_), but no setting of the service;
- never the service's own keys, wherever they come from and wherever a copy of them lies (core/runtime/own_keys.py),
  and nothing that lies in its data directory.

Read at each login, or for each token that is fetched, as the service's user, so that a changed file counts at once. No
message here holds a value.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Mapping

from core.domain.account import Account
from core.errors import RelayError
from core.runtime.own_keys import OwnKeys
from core.settings import CLIENT_VARIABLES, PREFIX, SECRETS, Settings
from core.store.store import Store

MAX_SECRET_BYTES = 65_536
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LINES = frozenset("\n\r\t")
_OWN_KEY = "is a key of the service itself, which goes to no server"

OWN_VARIABLES = frozenset(
    {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    | {f"{PREFIX}{name.upper()}_FILE" for name in SECRETS}
    | CLIENT_VARIABLES
)


class SecretMissing(RelayError):
    """It is not there, can't be read, is no text of the form that is needed, or may not be named."""

    code = "secret_missing"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, remedy="Mount the file or credential, or set the variable and restart.")


class SecretSources:
    """What references lead to, by the settings of the start. All methods may be called from any thread.

    `store`: whose keys go nowhere; None where there is no database.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str] | None = None, *, store: Store | None = None
    ) -> None:
        self._environ = os.environ if environ is None else environ
        self._prefix = settings.secret_env_prefix
        self._directories = tuple(map(str, settings.secret_files))
        self._data_dir = str(settings.data_dir)
        self._tls_key = None if settings.tls_key_file is None else str(settings.tls_key_file)
        self._own = OwnKeys(settings, store)

    def refusal(self, reference: str) -> str | None:
        """Why it may not be named; None: it may. Says nothing of what is there."""
        kind, _, name = reference.partition(":")
        if kind == "env":
            return self._env_refusal(name)
        if kind == "file":
            return self._file_refusal(name)
        if kind == "credential":
            wrong = not name or "/" in name or "\0" in name or name in (".", "..")
            return "names no credential of systemd" if wrong else None
        return "must be env:NAME, file:/path or credential:NAME"

    def resolve(self, reference: str, *, lines: bool = False) -> str:
        """The secret. With `lines` it may have several (a key file). Blocks: reads a file. Raises SecretMissing."""
        value = self._text(reference).removesuffix("\n").removesuffix("\r")
        try:
            own = self._own.any_in(value)
        except RelayError as error:
            raise SecretMissing(f"{reference} can't be told from the service's own keys: {error.detail}") from None
        if own:
            raise SecretMissing(f"{reference} {_OWN_KEY}")
        if not value:
            raise SecretMissing(f"{reference} is empty")
        if any(not lines or found not in _LINES for found in _CONTROLS.findall(value)):
            raise SecretMissing(f"{reference} has {'control characters' if lines else 'more than one line'}")
        return value

    def own_key(self, reference: str) -> str | None:
        """Why it may not be named by what is there now: a key of the service. Blocks. Raises DatabaseUnavailable."""
        try:
            text = self._text(reference)
        except SecretMissing:
            return None
        return _OWN_KEY if self._own.any_in(text) else None

    def _text(self, reference: str) -> str:
        refusal = self.refusal(reference)
        if refusal is not None:
            raise SecretMissing(f"{reference} {refusal}")
        kind, _, name = reference.partition(":")
        if kind != "env":
            return _read(reference, name if kind == "file" else self._credential(reference, name))
        value = self._environ.get(name)
        if value is None:
            raise SecretMissing(f"{reference}: the service was started without this variable")
        return value

    def readable(self, reference: str, *, lines: bool = False) -> bool:
        """Whether it can be had now. Blocks."""
        try:
            self.resolve(reference, lines=lines)
        except SecretMissing:
            return False
        return True

    def password_of(self, account: Account) -> OutsidePassword | None:
        """Where the account's password comes from at each login; None: from the database, if it has one."""
        return None if account.password_from is None else OutsidePassword(self, account.password_from)

    def _env_refusal(self, name: str) -> str | None:
        if _NAME.fullmatch(name) is None:
            return "names no variable"
        if not self._prefix:
            return "may not be named: MPU_SECRET_ENV_PREFIX allows no variable"
        if not name.startswith(self._prefix):
            return f"must begin with {self._prefix} (MPU_SECRET_ENV_PREFIX)"
        if name == self._prefix:
            return f"must have a name behind {self._prefix} (MPU_SECRET_ENV_PREFIX)"
        return "is a setting of the service, no secret of an account" if name.upper() in OWN_VARIABLES else None

    def _file_refusal(self, path: str) -> str | None:
        allowed = ", ".join(self._directories) or "no directory"
        reason = f"must lie directly in one of: {allowed} (MPU_SECRET_FILES)"
        if "\0" in path or not path.startswith("/") or os.path.basename(path) in ("", ".", ".."):
            return reason
        parent = os.path.realpath(os.path.dirname(path))
        inside = next((place for place in self._places() if place == parent), None)
        if inside is None:
            return reason
        end = os.path.realpath(path)
        if os.path.commonpath((inside, end)) != inside:
            return reason
        if os.path.dirname(end) == os.path.realpath(self._data_dir):
            return "lies in the data directory, which goes to no server"
        if self._tls_key is not None and end == os.path.realpath(self._tls_key):
            return "is the key of the service's certificate, which goes to no server"
        return None

    def _places(self) -> list[str]:
        credentials = self._environ.get("CREDENTIALS_DIRECTORY")
        return [os.path.realpath(place) for place in (*self._directories, *([credentials] if credentials else []))]

    def _credential(self, reference: str, name: str) -> str:
        directory = self._environ.get("CREDENTIALS_DIRECTORY")
        if not directory:
            raise SecretMissing(f"{reference}: the service was started without credentials (LoadCredential=)")
        path = os.path.join(directory, name)
        refusal = self._file_refusal(path)
        if refusal is not None:
            raise SecretMissing(f"{reference} {refusal}")
        return path


def _read(reference: str, path: str) -> str:
    """A regular file's text. Raises SecretMissing."""
    try:
        descriptor = os.open(os.path.realpath(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SecretMissing(f"{reference} is no regular file")
            octets = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise SecretMissing(f"{reference} can't be read: {error.strerror}") from None
    if len(octets) > MAX_SECRET_BYTES:
        raise SecretMissing(f"{reference} is larger than {MAX_SECRET_BYTES} octets")
    try:
        return octets.decode()
    except UnicodeDecodeError:
        raise SecretMissing(f"{reference} is no UTF-8 text") from None


class OutsidePassword:
    """One account's, for its logins (core/smtp/dialogue.py, AccessTokens)."""

    def __init__(self, sources: SecretSources, reference: str) -> None:
        self._sources = sources
        self._reference = reference

    async def __call__(self) -> str:
        """As it is now. Raises SecretMissing."""
        return await asyncio.to_thread(self._sources.resolve, self._reference)

    async def refused(self, token: str) -> bool:
        """The server answered 535 to it. True: it is another one now, or gone."""
        try:
            return await self() != token
        except SecretMissing:
            return True

    def accepted(self, token: str) -> None:
        """Nothing is kept."""
