"""What all shapes share: strictness of what comes in, the form of what goes out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from core.domain.address import quoted_end
from core.domain.message import NAME
from core.runtime.views import Page

T = TypeVar("T")
V = TypeVar("V")

NAME_PATTERN = f"^{NAME}$"
MAX_TIME = 253_402_300_799.0  # end of the year 9999
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)")
_DIGITS = re.compile(r"[1-9][0-9]{0,18}")


class In(BaseModel):
    """What a client sends: unknown fields are errors, types are not guessed, values never shown back."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True)
    shown_as: ClassVar[tuple[type[BaseModel], ...]] = ()  # what of these it has not itself can be read, not set


def read_only_of(shape: Any) -> frozenset[tuple[str, ...]]:
    """The ways to all fields that are shown and can't be set by a body of this shape."""
    ways: set[tuple[str, ...]] = set()
    for part in (shape, *get_args(shape)):
        if isinstance(part, type) and issubclass(part, In):
            shown = {name for kind in part.shown_as for name in kind.model_fields}
            ways |= {(name,) for name in shown - part.model_fields.keys()}
            for name, field in part.model_fields.items():
                ways |= {(name, *way) for way in read_only_of(field.annotation)}
    return frozenset(ways)


class Out(BaseModel):
    """What goes out, read from the relay's frozen views. Every field is always there."""

    model_config = ConfigDict(
        extra="ignore", from_attributes=True, json_schema_serialization_defaults_required=True, frozen=True
    )


def show_time(seconds: float) -> str:
    """RFC 3339, UTC, milliseconds: 2026-03-01T02:03:04.567Z."""
    whole, micro = divmod(round(min(max(seconds, 0.0), MAX_TIME) * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{micro // 1000:03d}Z"


@lru_cache(64)  # rows of one page often have theirs in common
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).isoformat().removesuffix("+00:00")


def read_time(text: object) -> float:
    """Seconds since the epoch of an RFC 3339 time with its offset. Raises ValueError."""
    if not isinstance(text, str) or not _RFC3339.fullmatch(text):
        raise ValueError("must be an RFC 3339 time with its offset, as 2026-03-01T02:00:00Z")
    try:
        seconds = datetime.fromisoformat(text.upper()).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("is no time of the calendar") from None
    if not 0 <= seconds <= MAX_TIME:
        raise ValueError("must lie after 1970 and before the year 10000")
    return seconds


def read_future(text: object) -> float:
    """As `read_time`, later than now. The wall clock is the one that the time is meant for."""
    seconds = read_time(text)
    if seconds <= datetime.now(UTC).timestamp():
        raise ValueError("must lie in the future")
    return seconds


_TIME_SCHEMA = {"type": "string", "format": "date-time"}
Time = Annotated[float, PlainSerializer(show_time, return_type=str), WithJsonSchema(_TIME_SCHEMA)]
TimeIn = Annotated[float, BeforeValidator(read_time), WithJsonSchema(_TIME_SCHEMA)]
FutureTimeIn = Annotated[float, BeforeValidator(read_future), WithJsonSchema(_TIME_SCHEMA)]


def _short(seconds: float) -> float:
    return round(seconds, 3) if math.isfinite(seconds) else 0.0


Seconds = Annotated[float, PlainSerializer(_short, return_type=float)]


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number


Number = Annotated[float, PlainSerializer(_plain), WithJsonSchema({"type": "number"})]  # 60, not 60.0


def _digits(text: object) -> object:
    if not isinstance(text, str) or not _DIGITS.fullmatch(text):  # int() takes " 2" and "1_0" too
        raise ValueError("is no whole number")
    return text


Digits = BeforeValidator(_digits)  # a number in a path, as we write it and in no other way

Name = Annotated[
    str,
    Field(
        pattern=NAME_PATTERN,
        description="Lower-case letters, digits and hyphens, at most 63, chosen by you and unchangeable.",
    ),
]


class ListOut(BaseModel, Generic[T]):
    """One page. `next` is the cursor to ask for the page behind it, null on the last."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    items: list[T]
    next: str | None = Field(
        default=None, description="Give it as `cursor` to get the page behind this one; null: the last."
    )


def page_out(page: Page[V], show: Callable[[V], T]) -> dict[str, Any]:
    """A page of views as a page of shapes."""
    return {"items": [show(item) for item in page.items], "next": page.next}


def _printable(text: str) -> str:
    if any(char < " " or char == "\x7f" for char in text):
        raise ValueError("must not hold control characters")
    if any("\ud800" <= char <= "\udfff" for char in text):  # JSON can escape them, UTF-8 can't carry them
        raise ValueError("must not hold halves of surrogate pairs")
    return text


def _word(text: str) -> str:
    if " " in _printable(text):
        raise ValueError("must not hold blanks")
    return text


def _mailbox(text: str) -> str:
    _word(text[quoted_end(text) :])
    return _printable(text)


# rules instead of patterns: `[^...]` over all of Unicode helps no reader of the document
Printable = AfterValidator(_printable)
Word = AfterValidator(_word)
MailboxText = AfterValidator(_mailbox)  # blanks may stand in a quoted local part; what else is wrong the core finds


class Pause(Out):
    """Why it stands still."""

    by: str = Field(description="operator: an act; service: MPU itself.")
    code: str = Field(description="Stable word for the reason: operator, login_refused, quota, ...")
    reason: str
    since: Time
    until: Time | None = Field(description="When it ends by itself; null: not before somebody resumes or edits it.")
    remedy: str


class PauseIn(In):
    """How to pause. All optional; an empty body will do."""

    reason: Annotated[str, Printable] = Field(default="", max_length=500, description="Shown wherever the pause is.")
    until: FutureTimeIn | None = Field(default=None, description="Ends by itself then; null: not before it is resumed.")


class PauseState(Out):
    """Whether it stands still now."""

    pause: Pause | None
