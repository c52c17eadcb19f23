"""What only the start can set: defaults, then a TOML file, then MPU_... variables, then options; the later wins.

Accounts, directories and what can be changed while running live in the database, not here. `load_settings` is the only
way in; it reads the environment once and raises SettingsError, which names each wrong variable, option or key of the
file. Secrets (`api_key`, `secret_key`) are SecretStr: in no repr and no log. Each can come from a file instead
(`MPU_API_KEY_FILE`, `MPU_SECRET_KEY_FILE`, as container secrets do), or from a systemd credential of the name
`mpu_api_key` or `mpu_secret_key`, which is found by itself.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from core.errors import RelayError

PREFIX = "MPU_"
DEFAULT_DATA_DIR = Path("/var/lib/mpu")
DEMO_DATA_DIR = Path("var")
SYSTEM_CONFIG = Path("/etc/mpu/mpu.toml")
SECRETS = ("api_key", "secret_key")
# of the command line, not of the service
CLIENT_VARIABLES = frozenset(
    {"MPU_CONFIG", "MPU_URL", "MPU_OAUTH_CLIENT_SECRET"}
    | {f"MPU_SMTP_{word}" for word in ("HOST", "PORT", "SECURITY", "USERNAME", "PASSWORD")}
)
MAX_FILE_BYTES = 1 << 20  # of a settings or secret file
MAX_KEY_CHARACTERS = 500
KEY_RULE = f"one line of visible ASCII, at most {MAX_KEY_CHARACTERS} characters"
_KEY = re.compile(f"[!-~]{{1,{MAX_KEY_CHARACTERS}}}")


def is_key(text: str) -> bool:
    """Whether it can be an API key at all: it must fit a header as it is (RFC 9110 section 5.5)."""
    return _KEY.fullmatch(text) is not None


class SettingsError(RelayError):
    """One or more settings of the start are wrong; `problems` names each and where it came from."""

    code = "invalid_settings"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems), remedy="Correct what is named and start again.")
        self.problems = tuple(problems)


class Settings(BaseModel):
    """The settings of one process. Sizes in octets, durations in seconds, as the names say."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # --- where things lie ---
    data_dir: Path = Field(default=DEFAULT_DATA_DIR, description="Database, keys and demo data (0700). Demo: ./var")
    pickup_roots: tuple[Path, ...] = Field(
        default=(), description="Pickup directories must lie under one of these. None: none can be made"
    )
    new_database: bool = Field(default=False, description="Start with an empty database although there was one before")
    demo: bool = Field(default=False, description="Sandbox account and a demo directory, for trying things out")

    # --- HTTP ---
    host: str = Field(default="127.0.0.1", min_length=1, max_length=255, description="Address that HTTP listens on")
    port: int = Field(default=8025, ge=0, le=65535, description="Port that HTTP listens on; 0: any free one")
    root_path: str = Field(
        default="", max_length=255, description="Path under which a reverse proxy shows MPU, as /mpu"
    )
    forwarded_allow_ips: str = Field(
        default="127.0.0.1", description="Proxies whose X-Forwarded-* is believed, comma-separated"
    )
    tls_certificate_file: Path | None = Field(default=None, description="PEM chain for HTTPS; needs tls_key_file")
    tls_key_file: Path | None = Field(default=None, description="PEM private key for HTTPS; needs tls_certificate_file")
    max_http_connections: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="HTTP connections at once, and never more than a quarter of the open files that the system allows",
    )
    request_header_timeout_seconds: float = Field(
        default=10, gt=0, le=3600, description="Until the header of a request is whole, the TLS handshake likewise"
    )
    request_body_timeout_seconds: float = Field(
        default=30, gt=0, le=3600, description="Until the next octets of a request's body"
    )
    request_deadline_seconds: float = Field(
        default=1800, gt=0, le=86_400, description="For the whole body of a request, however slowly it comes"
    )
    answer_timeout_seconds: float = Field(
        default=60, gt=0, le=3600, description="An answer of which the client takes nothing for so long is cut off"
    )
    max_request_header_bytes: int = Field(
        default=64 << 10, ge=4 << 10, le=1 << 20, description="Largest header of a request: its line and all fields"
    )
    max_request_bytes: int = Field(
        default=1 << 20, ge=1 << 10, le=1 << 28, description="Largest request body but for mails"
    )
    max_submit_bytes: int = Field(
        default=52_428_800, ge=1 << 10, le=1 << 33, description="Largest mail taken over HTTP"
    )
    api_key: SecretStr | None = Field(
        default=None, description="A first admin key given from outside (at least 16 characters)"
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="Key of the secrets in the database instead of data_dir/secret.key; several: newest first",
    )

    # --- secrets of accounts that lie outside the database (password_from, and oauth's client_secret_from, ...) ---
    secret_files: tuple[Path, ...] = Field(
        default=(Path("/run/secrets"),),
        description="Accounts may name files directly in these directories as secrets; and systemd's credentials",
    )
    secret_env_prefix: str = Field(
        default="MPU_SECRET_",
        max_length=255,
        pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?$",
        description="Accounts may name variables that begin so as secrets; empty (in the file): none",
    )

    # --- log ---
    log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="auto: console on a terminal, else JSON"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level that is logged"
    )

    # --- stop and watchdog ---
    grace_seconds: float = Field(default=25, ge=0, le=600, description="What is in flight at a stop may take this long")

    # --- messages ---
    max_header_bytes: int = Field(
        default=16 << 20, ge=1 << 10, le=1 << 28, description="Largest header block of a message"
    )
    look_ahead: int = Field(
        default=64, ge=1, le=10_000, description="Messages of a directory that wait for their turn or are being sent"
    )
    scan_batch: int = Field(default=1000, ge=1, le=100_000, description="Names handed over at once by a scan")
    max_open_messages: int = Field(
        default=512, ge=8, le=100_000, description="Message files open at once in the whole process"
    )

    # --- SMTP (RFC 5321 section 4.5.3.2); the connect time-out is the account's ---
    smtp_banner_timeout_seconds: float = Field(default=300, gt=0, le=3600, description="Until the 220 greeting")
    smtp_command_timeout_seconds: float = Field(default=300, gt=0, le=3600, description="EHLO, AUTH, MAIL, RSET, NOOP")
    smtp_rcpt_timeout_seconds: float = Field(default=300, gt=0, le=3600, description="Each RCPT")
    smtp_data_timeout_seconds: float = Field(default=120, gt=0, le=3600, description="DATA until 354")
    smtp_block_timeout_seconds: float = Field(default=180, gt=0, le=3600, description="Each block of the body")
    smtp_dot_timeout_seconds: float = Field(
        default=600, gt=0, le=7200, description="Reply to the final dot or BDAT LAST"
    )
    smtp_deadline_seconds: float = Field(
        default=3600, gt=0, le=86_400, description="From MAIL to the final dot, however slowly the server takes it"
    )
    smtp_quit_timeout_seconds: float = Field(
        default=2, gt=0, le=60, description="Reply to QUIT; then it is just closed"
    )
    oauth_timeout_seconds: float = Field(
        default=30, gt=0, le=600, description="Answer of a token endpoint, for accounts with XOAUTH2"
    )
    allowed_smtp_ports: tuple[int, ...] = Field(
        default=(25, 465, 587, 588, 2465, 2525, 2526, 2587), description="Ports that accounts may name; 0: every port"
    )
    allow_private_targets: bool = Field(
        default=True, description="Accounts may point to loopback and private networks. Link-local and metadata: never"
    )

    # --- drains and operations kept after their end, so that GET /drains/{id} answers ---
    finished_kept: int = Field(default=1000, ge=1, le=100_000, description="Finished drains and operations kept")
    finished_kept_seconds: float = Field(default=86_400, ge=60, le=2_592_000, description="How long they are kept")
    open_drains_max: int = Field(default=100, ge=1, le=10_000, description="Drains and operations open at once")

    # --- mails handed over by HTTP ---
    uploads_max: int = Field(
        default=16, ge=1, le=1000, description="Uploads written at once; one whose client sends nothing is none of them"
    )

    # --- sandbox of the demo ---
    sandbox_port: int = Field(
        default=0, ge=0, le=65535, description="Port of the sandbox's SMTP server; 0: any free one"
    )
    sandbox_kept_messages: int = Field(default=1000, ge=1, le=100_000, description="Newest mails the sandbox keeps")
    sandbox_kept_bytes: int = Field(default=100 << 20, ge=1 << 10, le=1 << 34, description="Their size in all")

    @field_validator("pickup_roots", "secret_files", "allowed_smtp_ports", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Lists in the environment: a JSON list, or items parted by commas or the system's path separator."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError("looks like a JSON list but is none") from None
        return [part.strip() for part in re.split(f"[,{re.escape(os.pathsep)}]", value) if part.strip()]

    @field_validator("data_dir", "tls_certificate_file", "tls_key_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else Path(os.path.abspath(_expanded(value)))

    @field_validator("pickup_roots", "secret_files")
    @classmethod
    def _roots(cls, value: tuple[Path, ...], info: ValidationInfo) -> tuple[Path, ...]:
        roots = tuple(dict.fromkeys(Path(os.path.abspath(_expanded(root))) for root in value))
        if Path(os.path.abspath(os.sep)) in roots:
            what = "no pickup root" if info.field_name == "pickup_roots" else "no place for secrets"
            raise ValueError(f"the root of the file system is {what}")
        return roots

    @field_validator("allowed_smtp_ports")
    @classmethod
    def _ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= port <= 65535 for port in value):
            raise ValueError("ports are numbers from 0 to 65535")
        return value

    @field_validator("root_path")
    @classmethod
    def _prefix(cls, value: str) -> str:
        if value and (not value.startswith("/") or value.endswith("/")):
            raise ValueError("starts with / and ends without")
        return value

    @field_validator("api_key")
    @classmethod
    def _long_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("is shorter than 16 characters; `openssl rand -hex 32` makes one")
        if value is not None and not is_key(value.get_secret_value()):
            raise ValueError(f"is not {KEY_RULE}")
        return value

    @model_validator(mode="after")
    def _pairs(self) -> Settings:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        return self

    @property
    def database_file(self) -> Path:
        return self.data_dir / "mpu.sqlite3"

    @property
    def may_create_database(self) -> bool:
        """Traces without a database: it was lost, and an empty one is made only when that is asked for."""
        traces = (self.database_mark_file, self.secret_key_file, self.api_key_file)
        return self.new_database or not any(file.exists() for file in traces)

    @property
    def api_key_file(self) -> Path:
        """The first admin key, written once (0600) when an empty database is started without `api_key`."""
        return self.data_dir / "api-key"

    @property
    def database_mark_file(self) -> Path:
        """Says that there was a database, where both keys come from outside and so leave no file."""
        return self.data_dir / "database-made"

    @property
    def secret_key_file(self) -> Path:
        return self.data_dir / "secret.key"


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, the file they came from, and MPU_ variables nobody knows (a typing error, most likely)."""

    settings: Settings
    config_file: Path | None
    unknown_variables: tuple[str, ...]


def load_settings(
    options: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> LoadedSettings:
    """Merge all sources. `options` holds only what was given (None: not given); `config` is --config.

    With `demo` the defaults of data_dir and pickup_roots are ./var, and a data_dir given is the pickup root too.
    Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in (options or {}).items() if value is not None}
    variables, unknown = _from_environment(environ)
    early: dict[str, Any] = {**variables, **given}
    # only an option or variable says "demo" early enough to move the place where the file is looked for
    demo = str(early.get("demo", "")).lower() in ("1", "true", "yes", "on", "t", "y")
    data_dir = Path(early.get("data_dir", DEMO_DATA_DIR if demo else DEFAULT_DATA_DIR))
    with contextlib.suppress(ValueError):  # which is told with the other problems
        data_dir = _expanded(data_dir)
    defaults: dict[str, Any] = {"data_dir": data_dir, "pickup_roots": (data_dir,)} if demo else {}
    file = config or (Path(os.path.expanduser(environ["MPU_CONFIG"])) if environ.get("MPU_CONFIG") else None)
    if file is None:
        file = next((path for path in (data_dir / "mpu.toml", SYSTEM_CONFIG) if path.is_file()), None)
    stored = _from_file(file) if file is not None else {}
    merged = {**defaults, **_from_credentials(environ), **stored, **early}
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise SettingsError([_problem(item, given, variables, stored, file) for item in error.errors()]) from None
    prefix = settings.secret_env_prefix
    if prefix:  # passwords of accounts are no misspelt settings
        unknown = tuple(name for name in unknown if not name.startswith(prefix))
    return LoadedSettings(settings, file, unknown)


def _expanded(path: Path) -> Path:
    """With ~ as a shell reads it. Raises ValueError."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path.parts[0]} has no home directory") from None


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable[len(PREFIX) :].lower()
        if name in Settings.model_fields:
            values[name] = value
        elif name.removesuffix("_file") in SECRETS and name.endswith("_file"):
            values.setdefault(name.removesuffix("_file"), _secret_file(variable, value, name.removesuffix("_file")))
        elif variable not in CLIENT_VARIABLES:
            unknown.append(variable)
    for name in SECRETS:  # given both ways: the value itself counts
        if environ.get(f"{PREFIX}{name.upper()}"):
            values[name] = environ[f"{PREFIX}{name.upper()}"]
    return {name: value for name, value in values.items() if value != ""}, tuple(sorted(unknown))


def _from_credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """What LoadCredential=mpu_api_key:... and mpu_secret_key:... of the unit give; any other source counts more."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return {}
    paths = {name: os.path.join(directory, f"mpu_{name}") for name in SECRETS}
    source = "CREDENTIALS_DIRECTORY"
    return {name: _secret_file(source, path, name) for name, path in paths.items() if os.path.exists(path)}


def _secret_file(variable: str, path: str, name: str) -> str:
    """What it holds; of a key file as MPU writes it the keys alone, parted by commas."""
    try:
        text = _read(Path(path)).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{variable}: {path} can't be read: {_why(error)}"]) from None
    if name != "secret_key" or not text:
        return text
    lines = (line.strip() for line in text.splitlines())
    keys = [key.strip() for line in lines if not line.startswith("#") for key in line.split(",") if key.strip()]
    if not keys or not all(map(_is_fernet_key, keys)):
        raise SettingsError([f"{variable}: {path} holds no Fernet key (32 octets in base64url, one a line)"])
    return ",".join(keys)


def _is_fernet_key(text: str) -> bool:
    try:
        return len(base64.urlsafe_b64decode(text)) == 32
    except ValueError:
        return False


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path} can't be read: {_why(error)}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path} is no TOML: {error}"]) from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise OSError("larger than 1 MiB")
    return data


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _problem(
    item: Any, given: Mapping[str, Any], variables: Mapping[str, Any], stored: Mapping[str, Any], file: Path | None
) -> str:
    """One line for one wrong setting; never the value, which may be a secret."""
    location = item["loc"]
    message = re.sub(r"^Value error, ", "", item["msg"])
    if not location:
        return message
    name = str(location[0])
    if name in given:
        source = "--" + name.replace("_", "-")
    elif name in variables:
        source = PREFIX + name.upper()
    elif name in stored:
        source = f"{name} in {file}"
    else:
        source = name
    if item["type"] == "extra_forbidden":
        message = "there is no such setting"
    return f"{source}: {message[0].lower()}{message[1:]}"
