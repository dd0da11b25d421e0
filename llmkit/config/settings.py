"""The input of checks: settings with their origins, and what launch, tokenizer and data add."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.config.mistakes import Mistake, display
from llmkit.config.schema import Config


@dataclass(frozen=True)
class Facts:
    """What checks know beside the settings; None = not yet.

    world_size: processes of the run. zero_stage, offload, engine: resolved with accelerate's configuration.
    launcher_stage: whether accelerate's configuration names a ZeRO stage, and so DeepSpeed.
    tokenizer_size: tokens of the tokenizer. holds_out: whether the data have held-out documents.
    """

    world_size: int | None = None
    zero_stage: int | None = None
    offload: str | None = None
    tokenizer_size: int | None = None
    holds_out: bool | None = None
    engine: str | None = None
    launcher_stage: bool = False


@dataclass(frozen=True)
class Settings:
    """A config with the origin of each value.

    origins: dotted path -> where the value came from, as in Loaded.origins.
    """

    config: Config
    origins: Mapping[str, str]
    facts: Facts = Facts()

    def value(self, path: str) -> Any:
        """The value of a dotted path."""
        found: Any = self.config
        for part in path.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
        return found

    def describe(self, path: str) -> str:
        """As in "model.hidden_size 770 (demo.yaml:4)"."""
        return f"{path} {display(self.value(path))} ({self.origins.get(path, 'default')})"

    def mistake(self, what: str, *paths: str, note: str = "") -> Mistake:
        """Returns a mistake about `paths`; in `what`, {0}, {1} stand for these with value and origin."""
        shown = {f"{{{index}}}": self.describe(path) for index, path in enumerate(paths)}
        # Not str.format: names that users chose may hold braces.
        what = re.sub(r"\{[0-9]\}", lambda found: shown.get(found[0], found[0]), what)
        return Mistake("", what, note, paths)

    @property
    def data_parallel_size(self) -> int | None:
        """Data-parallel ranks; None without a number of processes that the ranks which share rows divide."""
        parallel = self.config.parallel
        world = self.facts.world_size or parallel.world_size
        if world is None or world % parallel.ranks_of_a_row:
            return None
        return world // parallel.ranks_of_a_row
