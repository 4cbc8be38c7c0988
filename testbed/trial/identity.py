"""What of a trial's configuration makes up its id, as JSON has it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from testbed import settings
from testbed.training.settings import Training


def identified(model: Any, **wanted: bool) -> dict[str, Any]:
    """The settings that are part of the identity, without later ones that are at their default."""
    found: dict[str, Any] = {}
    for field in settings.fields(type(model)):
        value, setting = getattr(model, field.name), field.setting
        excluded = any(getattr(setting, key) is not state for key, state in wanted.items())
        if excluded or not setting.identity or (setting.since and value == field.default):
            continue
        found[field.name] = identified(value) if settings.fields(type(value)) else plain(value)
    return found


def plain(value: Any) -> Any:
    """A value of a setting as JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Training):
        return asdict(value)
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    return value
