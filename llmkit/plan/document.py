"""A configuration and what follows from it, as `llmkit config --json` prints it."""

from __future__ import annotations

from typing import Any

from llmkit.config.load import Loaded
from llmkit.plan.model_alone import model_sizes
from llmkit.plan.plan import Plan
from llmkit.plan.resolve import WITH_TOKENIZER


def document(loaded: Loaded, plan: Plan, *, alone: bool) -> dict[str, Any]:
    """The settings, where each is from, and the plan; what is known only at the start is null.

    alone: the files name a model and no run: then no plan of a run is in it.
    """
    known = plan.pending.get("vocab_size") != WITH_TOKENIZER
    found: dict[str, Any] = {
        "config": loaded.config.model_dump(mode="json"),
        "origins": loaded.origins,
        "model": model_sizes(plan) if known else None,
    }
    if alone:
        return {**found, "plan": None, "pending": {}, "notes": []}
    layout = plan.layout
    return {
        **found,
        "pending": dict(plan.pending),
        "notes": list(loaded.remarks),
        "plan": {
            "world_size": None if "world_size" in plan.pending else layout.world_size,
            "engine": layout.engine,
            "zero_stage": layout.zero_stage,
            "precision": None if "precision" in plan.pending else plan.precision.name,
            "micro_batch_size": None if "micro_batch_size" in plan.pending else plan.micro_batch_size,
            "accumulation_steps": None if "micro_batch_size" in plan.pending else plan.accumulation_steps,
            "tokens_per_step": plan.tokens_per_step,
            "process_bytes": plan.state.parts if known else None,
        },
    }
