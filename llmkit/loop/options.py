"""How the command that trains was called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmkit.command_line import wrong_branch
from llmkit.errors import UserError

DataPosition = Literal["keep", "new"]


@dataclass(frozen=True)
class Options:
    """How the command was called. fresh: refuse a run folder that has checkpoints. allow_data_change: go
    on with other data, or other weights of the sources, than the checkpoint was made with. quiet:
    show errors and the end, and nothing else. take_over: ask another process that has the run to stop.
    anyway: start though memory cannot hold a step by what is counted.

    branch: begin with this checkpoint of another run (RUN, RUN@best, RUN@1000). data_position: of a branch:
    "keep" (the default) = read on where the other run stood; "new" = read the data from their beginning.

    Raises UserError for options that contradict each other.
    """

    fresh: bool = False
    allow_data_change: bool = False
    quiet: bool = False
    take_over: bool = False
    branch: str | None = None
    data_position: DataPosition | None = None
    anyway: bool = False

    def __post_init__(self) -> None:
        if (wrong := wrong_branch(self.branch, self.data_position)) is not None:
            raise UserError(wrong)
        if self.data_position == "new" and self.allow_data_change:
            raise UserError(
                "--data-position new reads any data from their beginning, so --allow-data-change has nothing "
                "to allow; leave one of them out"
            )

    @property
    def begins_data_anew(self) -> bool:
        """Whether a branch reads the data from their beginning."""
        return self.data_position == "new"
