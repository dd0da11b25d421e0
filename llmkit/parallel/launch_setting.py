"""A setting of the launcher's configuration."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmkit.config.mistakes import Mistake


class LaunchSetting(NamedTuple):
    """A value of accelerate's configuration, with its name there and its location (file:line or variable)."""

    name: str
    value: Any
    location: str

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.name} {value} ({self.location})"

    @property
    def number(self) -> float | None:
        """The value as a number; None if it is none."""
        try:
            return float(self.value)
        except (TypeError, ValueError):
            return None

    def mistake(self, reason: str) -> Mistake:
        """The mistake that this value cannot be followed."""
        return Mistake(self.location, f"accelerate's configuration says {self}; {reason}")
