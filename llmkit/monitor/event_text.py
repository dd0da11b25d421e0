"""An event of events.jsonl in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.config.mistakes import printable

TEXTS = {
    "start": "started",
    "resume": "resumed from step {step}",
    "data_change": "went on with other data",
    "save": "saved step {step}",
    "best": "the best one so far is that of step {step}",
    "save_failed": "NOT SAVED at step {step}: {reason}",
    "copied": "copied step {step}",
    "copy_failed": "NOT COPIED at step {step}: {reason}",
    "fetched": "fetched step {step} from {source}",
    "max_steps": "max_steps is {max_steps}",
    "tasks_left_out": "no time for the evaluation by tasks at the end",
    "loss_spike": "spike of {of} at step {step}",
    "dead_experts": "experts without tokens at step {step}: {where}",
    "router_collapsed": "routers that use few experts at step {step}: {where}",
    "nonfinite_gradient": "gradient not finite at step {step}: ranks {ranks}",
    "gradient_outlier": "huge gradient at step {step}: ranks {ranks}",
    "replicas_differ": "COPIES DIFFER at step {step}: ranks {ranks}",
    "computation_differs": "COMPUTED OTHERWISE at step {step}: ranks {ranks}",
    "rollback": "went back from step {from_step} to step {to_step}",
    "early_stopping": "stopped early at step {step}",
    "done": "done at step {step}",
    "stop": "stopped: {reason}",
    "take_over": "took the run from {before}",
    "predicted": "steps take {measured} s, {predicted} s were predicted",
    "profile": "profiled: {verdict}",
    "profile_failed": "no profile: {reason}",
    "refused": "did not start: {reason}",
    "fault": "FAULT: {reason}",
    "dead_rank": "DEAD: {reason}",
    "hung_rank": "HUNG: {reason}",
    "stalled": "DATA STALLED: {reason}",
    "straggler": "rank {rank} ({host}) is slower than the others",
}
"""Words of each event. Others are called by their name."""


MOST = 300
"""Characters of it."""


class _Fields(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"


def event_text(event: Mapping[str, Any]) -> str:
    """What happened, on one line: "saved step 500"."""
    name = str(event.get("event", "?"))
    if (form := TEXTS.get(name)) is not None:
        fields = {key: f"{value:,}" if type(value) is int else value for key, value in event.items()}
        text = form.format_map(_Fields({key: value for key, value in fields.items() if value is not None}))
    else:
        step = event.get("step")
        text = name.replace("_", " ") + ("" if step is None else f" at step {step}")
    return printable(" ".join(text.split()), MOST)
