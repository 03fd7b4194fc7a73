"""What a section of the configuration is."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where they would count as 1 and 0, and text with surrogate code points."""
        parts = value if isinstance(value, list) else [value]
        if any("\ud800" <= character <= "\udfff" for part in parts if isinstance(part, str) for character in part):
            raise PydanticCustomError("text", "input should be text without surrogate code points")
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if not switch and any(isinstance(part, bool) for part in parts):
            raise PydanticCustomError("switch", "input should not be true or false")
        return value
