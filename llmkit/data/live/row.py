"""What a lane gives: rows, and where it stands after each of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from llmkit.errors import UserError


class Cursor(NamedTuple):
    """Where a lane stands between two rows; all that it needs to go on.

    epoch: how often the lane was read to its end, for good where that is `max_epochs`. place: of the unit at
    hand in the lane's order of this epoch. first: number of the first candidate of the window at hand. hint:
    what the reader gave with it. begun: documents of the window that are behind, in its shuffled order.
    token: tokens of the next one that are behind, too; the last of them, or end-of-text where it is 0, begins
    the next row.
    """

    epoch: int = 0
    place: int = 0
    first: int = 0
    hint: int = 0
    begun: int = 0
    token: int = 0

    @classmethod
    def of(cls, value: JsonValue, where: str) -> Cursor:
        """A cursor from JSON, a list of six integers; raises UserError, which names `where`, for others."""
        if (
            not isinstance(value, (list, tuple))
            or len(value) != len(cls._fields)
            or not all(isinstance(part, int) and not isinstance(part, bool) and part >= 0 for part in value)
        ):
            raise UserError(f"{where}: the checkpoint's cursor is not usable: {str(value)[:80]}")
        return cls(*(int(str(part)) for part in value))


class Row(NamedTuple):
    """A row of a lane, for a sequence length of T.

    tokens: (T+1,) int32, T inputs and the label of the last; it may not be written to. Empty for a row that
    was not wanted. targets: (T,) bool, which labels are targets of the loss; None = all of them. cursor:
    where the lane stands after the row, JSON. left_out: documents that were left out or mended on the way
    from the row before, by reason. notes: what the user should know, mostly nothing.
    """

    tokens: np.ndarray
    targets: np.ndarray | None
    cursor: list[int]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()
