"""What the trainer wants copied: the newest checkpoint, with the rule for older copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmkit.copies.outgoing import Stored
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
        every = [step for step in steps if self.keep_every and step % self.keep_every == 0]
        return {*steps[-self.keep_last :], *every, *(step for step in steps if step == self.best)}


class Offer(BaseModel):
    """A checkpoint that is to be copied. name: of its folder. files: all of it, the manifest too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^step-\d{8}$")]
    files: list[Stored]
    rule: Rule

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
