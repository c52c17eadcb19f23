"""Directories over the wire: Create, Put, Update and Public."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from api.schemas.accounts import CheckStepPublic
from api.schemas.base import NAME_PATTERN, In, Name, Number, Out, Pause, Printable, Time
from core.domain.account import Directory, DotStuffing, MessageFormat, OnUnknown, Strategy
from core.runtime.facade import Saved
from core.runtime.views import DirectoryView
from core.spool.names import unmatchable

DAY = 86_400


def _file_name(pattern: str) -> str:
    if "/" in pattern:
        raise ValueError("matches names, which hold no /")
    if why := unmatchable(pattern):
        raise ValueError(why)
    return pattern


Path = Annotated[
    str,
    Printable,
    Field(
        min_length=1,
        max_length=4096,
        pattern=r"^/",
        description="Absolute path of the directory that applications write into. It must exist, lie under one of "
        "MPU_PICKUP_ROOTS (symlinks resolved), neither contain nor lie in another directory or the data directory, and "
        "be no `.mpu` or `badmail` that MPU made in one. It can't move above or below where it is.",
    ),
]
AccountName = Annotated[str, Field(pattern=NAME_PATTERN)]
AccountNames = Annotated[
    list[AccountName],
    Field(min_length=1, max_length=20, description="Accounts to send through, in order: the next one helps out."),
]
StrategyWord = Annotated[
    Literal["failover", "balance", "by_sender"],
    Field(
        description="Which account takes a message. failover: the first in order that may be used now; balance: by "
        "`weights`; by_sender: those whose `senders` name the sender come first. Default failover."
    ),
]
Weights = Annotated[
    list[Annotated[int, Field(ge=0, le=1000)]],
    Field(
        max_length=20,
        description="With balance: the share of each account, in the order of `accounts`; 0: only if no other may. "
        "Default []: all alike.",
    ),
]
Enabled = Annotated[bool, Field(description="false: nothing is sent from it. Default true.")]
Pattern = Annotated[str, AfterValidator(_file_name), Printable, Field(min_length=1, max_length=255)]
Patterns = Annotated[
    list[Pattern],
    Field(
        min_length=1,
        max_length=20,
        description="Which file names are mails, case-insensitive; * and ? as in a shell, never names that end in .lck "
        'or .hold. Default ["*.eml"].',
    ),
]
FormatWord = Annotated[
    Literal["eml", "maildir"],
    Field(description="eml: one file a mail; maildir: claimed in `new/`, patterns are not looked at. Default eml."),
]
DotWord = Annotated[
    Literal["auto", "stuffed", "plain"],
    Field(description="Whether writers double leading dots. auto: told by the files themselves. Default auto."),
]
Interval = Annotated[
    float,
    Field(
        ge=1,
        le=DAY,
        description="Seconds between scans, the safety net of `watch`. Default 60, null with a `schedule`.",
    ),
]
Schedule = Annotated[
    str,
    Field(
        min_length=9,
        max_length=200,
        description="Cron line of five fields instead of the interval, as `0 2 * * *`. Default null.",
    ),
]
Timezone = Annotated[
    str, Field(min_length=1, max_length=64, description="IANA time zone of the schedule. Default UTC.")
]
Watch = Annotated[
    bool,
    Field(
        description="Send as soon as a file is there. false with a schedule: mail goes only at scheduled runs and "
        "drains. Default true."
    ),
]
Quiet = Annotated[
    float,
    Field(
        ge=0,
        le=3600,
        description="Seconds a file must rest before it is taken, where the system can't tell that its writer is "
        "done. Default 2.",
    ),
]
RetryInitial = Annotated[
    float, Field(ge=1, le=DAY, description="Seconds to the second attempt; doubles from there. Default 60.")
]
RetryMax = Annotated[
    float, Field(ge=1, le=7 * DAY, description="Longest wait between attempts, in seconds. Default 3600.")
]
Expire = Annotated[
    float,
    Field(
        ge=60,
        le=365 * DAY,
        description="Seconds after the first attempt when a mail is given up, once 5 attempts were made. "
        "Default 432000 (5 days).",
    ),
]
UnknownWord = Annotated[
    Literal["retry", "hold"],
    Field(
        description="When no reply came after the final dot: retry (marked as possible duplicate) or hold. "
        "Default retry."
    ),
]
UnknownMax = Annotated[int, Field(ge=1, le=100, description="Such retries before the mail is held. Default 3.")]
MaxBytes = Annotated[
    int, Field(ge=1024, le=1 << 33, description="Largest mail in octets; larger goes to badmail. Default 52428800.")
]
MaxRecipients = Annotated[int, Field(ge=1, le=100_000, description="Most recipients of one mail. Default 10000.")]
OldestAlert = Annotated[
    float,
    Field(ge=1, le=365 * DAY, description="Alert when a mail has waited this many seconds. Default 900."),
]


class DirectorySettings(In):
    """The settings of a directory. What is omitted takes its default."""

    path: Path
    accounts: AccountNames
    strategy: StrategyWord = "failover"
    weights: Weights = Field(default_factory=list, json_schema_extra={"default": []})
    enabled: Enabled = True
    patterns: Patterns = Field(default_factory=lambda: ["*.eml"], json_schema_extra={"default": ["*.eml"]})
    format: FormatWord = "eml"
    dot_stuffing: DotWord = "auto"
    interval_seconds: Interval | None = 60
    schedule: Schedule | None = None
    schedule_timezone: Timezone = "UTC"
    watch: Watch = True
    quiet_seconds: Quiet = 2
    retry_initial_seconds: RetryInitial = 60
    retry_max_seconds: RetryMax = 3600
    expire_after_seconds: Expire = 432_000
    on_unknown: UnknownWord = "retry"
    unknown_max: UnknownMax = 3
    max_message_bytes: MaxBytes = 52_428_800
    max_recipients: MaxRecipients = 10_000
    oldest_alert_seconds: OldestAlert = 900

    def value(self, name: str) -> Directory:
        """As the relay's value. A schedule takes the place of an interval that wasn't named; without both: 60 s."""
        settings = _typed(self.model_dump())
        if settings["schedule"] is not None and "interval_seconds" not in self.model_fields_set:
            settings["interval_seconds"] = None
        if settings["interval_seconds"] is None and settings["schedule"] is None:
            settings["interval_seconds"] = 60
        return Directory(name=name, **settings)


class DirectoryCreate(DirectorySettings):
    """A new directory."""

    name: Name

    def directory(self) -> Directory:
        return self.value(self.name)


class DirectoryPut(DirectorySettings):
    """The whole of a directory."""

    name: Name | None = Field(default=None, description="Only the name in the path, if at all.")


class DirectoryUpdate(In):
    """A merge patch (RFC 7396): what is named changes, null puts the default back.

    A `schedule` takes the place of the interval, an `interval_seconds` that of the schedule.
    """

    path: Path | None = None
    accounts: AccountNames | None = None
    strategy: StrategyWord | None = None
    weights: Weights | None = None
    enabled: Enabled | None = None
    patterns: Patterns | None = None
    format: FormatWord | None = None
    dot_stuffing: DotWord | None = None
    interval_seconds: Interval | None = None
    schedule: Schedule | None = None
    schedule_timezone: Timezone | None = None
    watch: Watch | None = None
    quiet_seconds: Quiet | None = None
    retry_initial_seconds: RetryInitial | None = None
    retry_max_seconds: RetryMax | None = None
    expire_after_seconds: Expire | None = None
    on_unknown: UnknownWord | None = None
    unknown_max: UnknownMax | None = None
    max_message_bytes: MaxBytes | None = None
    max_recipients: MaxRecipients | None = None
    oldest_alert_seconds: OldestAlert | None = None

    def changes(self) -> dict[str, Any]:
        """What was named, in the relay's types."""
        return _typed(self.model_dump(exclude_unset=True))


class DirectoryPublic(Out):
    """A directory as it is shown."""

    name: str
    path: str
    accounts: list[str]
    strategy: str
    weights: list[int]
    enabled: bool
    patterns: list[str]
    format: str
    dot_stuffing: str
    interval_seconds: Number | None
    schedule: str | None
    schedule_timezone: str
    watch: bool
    quiet_seconds: Number
    retry_initial_seconds: Number
    retry_max_seconds: Number
    expire_after_seconds: Number
    on_unknown: str
    unknown_max: int
    max_message_bytes: int
    max_recipients: int
    oldest_alert_seconds: Number
    created_at: Time
    updated_at: Time
    pause: Pause | None = Field(description="Why it stands still; null: it doesn't.")

    @classmethod
    def of(cls, view: DirectoryView) -> DirectoryPublic:
        directory = view.directory
        settings = {name: getattr(directory, name) for name in cls.model_fields if hasattr(directory, name)}
        return cls(
            **settings,
            created_at=view.created_at,
            updated_at=view.updated_at,
            pause=None if view.pause is None else Pause.model_validate(view.pause),
        )


class DirectorySaved(DirectoryPublic):
    """A directory as it was just saved, and what could not be done there."""

    warnings: list[CheckStepPublic] = Field(
        description="Tries that failed and cost speed or comfort, not mail. Tried for a new path or format only."
    )

    @classmethod
    def after(cls, saved: Saved[DirectoryView]) -> DirectorySaved:
        steps = () if saved.check is None else saved.check.steps
        return cls(
            **dict(DirectoryPublic.of(saved.view)),
            warnings=[CheckStepPublic.model_validate(step) for step in steps if not step.ok],
        )


DirectorySettings.shown_as = DirectoryUpdate.shown_as = (DirectorySaved,)


_WORDS: dict[str, Callable[[Any], Any]] = {
    "format": MessageFormat,
    "dot_stuffing": DotStuffing,
    "on_unknown": OnUnknown,
    "accounts": tuple,
    "strategy": Strategy,
    "weights": tuple,
    "patterns": tuple,
}


def _typed(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _WORDS[name](value) if name in _WORDS and value is not None else value
        for name, value in settings.items()
        if name != "name"
    }
