"""Presets of providers over the wire."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from api.schemas.base import Number, Out
from core.domain.account import Account
from core.domain.presets import Preset


class PresetPort(Out):
    """A port that the provider answers on."""

    port: int
    security: str


class PresetSettings(Out):
    """What the settings of an account are with the preset, where they are not named."""

    host: str | None = Field(description="null: each customer has another, see `host_hint`.")
    port: int
    security: str
    auth: str
    max_connections: int
    recipients_per_message: int
    messages_per_second: Number | None
    messages_per_minute: int | None
    messages_per_hour: int | None
    messages_per_day: int | None
    recipients_per_day: int | None


class PresetPublic(Out):
    """A provider and what it asks for."""

    name: str = Field(description="For `preset` of an account.")
    title: str
    host_hint: str | None = Field(description="How the host is made up.")
    ports: list[PresetPort] = Field(description="The usual one first. Naming one of them takes its security along.")
    settings: PresetSettings
    note: str = Field(description="What is needed at the provider, and where.")

    @classmethod
    def of(cls, preset: Preset) -> PresetPublic:
        settings: dict[str, Any] = {"host": "", **preset.defaults()}
        resolved = Account(name=preset.name, **settings)
        shown = PresetSettings.model_validate(resolved)
        return cls(
            name=preset.name,
            title=preset.title,
            host_hint=preset.host_hint,
            ports=[PresetPort(port=port, security=security) for port, security in preset.ports],
            settings=shown.model_copy(update={"host": preset.host}),
            note=preset.note,
        )
