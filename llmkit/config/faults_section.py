"""The settings of what is looked for in a run that may be going wrong, and what is done about it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.section import NonNegative, Positive, Section


class Faults(Section):
    """What is looked for in a run that may be going wrong, and what follows (docs/faults.md)."""

    on_spike: Literal["record", "rollback"] = "record"
    """What follows a spike of the loss or the gradient norm (monitor.spike_threshold): record = an event;
    rollback = the run goes back to a checkpoint from before it, and leaves out the rows of that time."""
    rollback_margin: NonNegative = 10
    """Steps before the spike whose rows a rollback leaves out, too; the checkpoint that it goes back to is
    older than those, where there is one."""
    max_rollbacks: Positive = 3
    """So many rollbacks without a new checkpoint after them; the next spike ends the run."""
    check_replicas_every: NonNegative = 100
    """Steps between comparisons of what several processes hold copies of, such as weights; they are compared
    before each checkpoint, too. 0 = never."""
    repeat_every: NonNegative = 0
    """Steps between checks in which each process computes a micro-batch twice and compares; 0 = only when
    something is suspicious: a spike, a skipped update."""
    watchdog: bool = True
    """A process beside each rank notices when it dies, hangs or falls behind (docs/watchdog.md)."""
    max_step_seconds: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds after which a step that is not over counts as hung; default: learned from the steps of the run,
    three times their 99th percentile, and 15 s at least."""
