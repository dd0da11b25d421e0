"""Where the copies of a run lie."""

from __future__ import annotations

from llmkit.config.schema import Config


def url_of(config: Config) -> str | None:
    """The URL beneath which a run's copies lie, `checkpoint.copy_to` with the run's name; None where it has
    none."""
    base = config.checkpoint.copy_to
    return None if base is None else f"{base.rstrip('/')}/{config.run.name}"
