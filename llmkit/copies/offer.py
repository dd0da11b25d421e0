"""What the trainer wants copied: the newest checkpoint, with the rule for older copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmkit.checkpoint.rule import is_kept
from llmkit.copies.outgoing import FilesOfCheckpoint
from llmkit.errors import RunFault
from llmkit.files import write_json

_PLACE = "copies/next.json"


class Rule(BaseModel):
    """Which copies are kept: the rule of the run's own checkpoints.

    keep_last: so many of the newest. keep_every: those whose step it divides; 0 = none of them. best: step of
    the best one, None where there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    keep_last: Annotated[int, Field(ge=1)]
    keep_every: Annotated[int, Field(ge=0)] = 0
    best: Annotated[int, Field(ge=0)] | None = None

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Those of the steps, in ascending order, that are kept."""
        for_good = {step for step in steps if is_kept(step, self.keep_every, self.best)}
        return {*steps[-self.keep_last :], *for_good}


class Listed(BaseModel):
    """A checkpoint. name: of its folder. files: all of it, the manifest too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^step-\d{8}$")]
    files: FilesOfCheckpoint

    @property
    def step(self) -> int:
        """How many steps had been taken."""
        return int(self.name.removeprefix("step-"))


class Offer(Listed):
    """A checkpoint that is to be copied. best: the best one, if that is another one, which is copied then, if
    that was not done: it may have been passed over."""

    rule: Rule
    best: Listed | None = None

    @classmethod
    def read(cls, folder: Path) -> Offer | None:
        """The newest offer in a run folder; None where there is none."""
        try:
            return cls.model_validate_json((folder / _PLACE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Takes the place of the offer before. Raises RunFault."""
        try:
            (folder / _PLACE).parent.mkdir(exist_ok=True)
            write_json(folder / _PLACE, json.loads(self.model_dump_json()))
        except OSError as error:
            raise RunFault(f"cannot write {folder / _PLACE}: {error.strerror}") from error
