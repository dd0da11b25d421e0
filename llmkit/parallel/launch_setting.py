"""A value that a launcher's configuration gives, with its place."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmkit.errors import UserError


class LaunchSetting(NamedTuple):
    """A value of accelerate's configuration: its name there, and where it stands."""

    name: str
    value: Any
    place: str

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.name} {value} ({self.place})"


def number(said: LaunchSetting) -> float:
    """The number that is said. Raises UserError if it is none."""
    try:
        return float(said.value)
    except (TypeError, ValueError) as error:
        raise UserError(f"accelerate's configuration says {said}, which is no number") from error
