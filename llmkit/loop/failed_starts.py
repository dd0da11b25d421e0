"""Ends a loop of starts that all fail: each costs time of a queue, and none gets anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.errors import UserError
from llmkit.monitor.jsonlines import Row

MOST = 3
"""Starts in a row that a fault has ended, without a new checkpoint."""
BREAKS = ("save", "refused", "stop", "done", "data_change")
"""Events after which it is not the same any more: progress, a change, or a message to the user."""
COUNTED = "MAX_STARTS"
"""A variable that is set by a batch script which counts starts itself: it knows which of them a dead node has
ended, and how many its user allows (llmkit/cluster/starts.py)."""


def check_progress(events: Sequence[Row]) -> None:
    """Raises UserError, once, where the last starts of a run have all failed. events: all so far."""
    faults: list[Row] = []
    for event in reversed(events):
        if event.get("event") in BREAKS:
            break
        if event.get("event") == "fault":
            faults.append(event)
    if len(faults) >= MOST:
        raise UserError(
            f"the last {len(faults)} starts of this run have failed without a new checkpoint, the last one "
            f"by: {faults[0].get('reason', '?')}. So that they do not go on for ever, this one does nothing; "
            "mend the cause (bad data can be left out: data.errors), and start again: the next one tries"
        )
