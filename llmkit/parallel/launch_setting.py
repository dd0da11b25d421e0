"""A setting of the launcher's configuration."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmkit.config.mistakes import Mistake


class LaunchSetting(NamedTuple):
    """A value of accelerate's configuration, with its name there and its place (file:line or variable)."""

    name: str
    value: Any
    place: str

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.name} {value} ({self.place})"

    @property
    def number(self) -> float | None:
        """The value as a number; None if it is none."""
        try:
            return float(self.value)
        except (TypeError, ValueError):
            return None

    def mistake(self, reason: str) -> Mistake:
        """The mistake that this value cannot be followed."""
        return Mistake(self.place, f"accelerate's configuration says {self}; {reason}")
