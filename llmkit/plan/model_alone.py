"""A file that names a model and nothing to train it on: what `llmkit config` says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmkit.config.load import ASSUMED, Loaded
from llmkit.config.memory import checkpoint_bytes, parameter_bytes, show_bytes
from llmkit.config.mistakes import COMMAND_LINE
from llmkit.plan.plan import Plan
from llmkit.plan.text import Row, model_values, show_rows
from llmkit.precision import BYTES, PRECISIONS

STAND_INS: dict[str, Any] = {
    "data.sources": [{"type": "text", "path": "DATA"}],
    "data.tokenizer": {"type": "file", "path": "TOKENIZER"},
    "train.max_steps": 1,
}
"""Settings that a run needs and such a file lacks."""
_OF_A_MODEL = ("model.", "data.tokenizer.", "optimizer.")


def names_a_model_alone(loaded: Loaded) -> bool:
    """Whether the files of a configuration, read with `STAND_INS`, speak of a model and its update alone."""
    origins = loaded.origins
    given = [key for key, origin in origins.items() if origin not in ("default", ASSUMED, COMMAND_LINE)]
    assumed = origins["data.sources.0.type"] == origins["train.max_steps"] == ASSUMED
    return assumed and bool(given) and all(key.startswith(_OF_A_MODEL) for key in given)


def show_model(plan: Plan) -> str:
    """Sizes of a model and of what is kept to train it, as YAML comments."""
    note = (
        "# note: weights, training and checkpoint are of all processes together; activations come on top\n"
        "# note: these files name a model alone: a run needs data.sources and train.max_steps, too\n"
    )
    return show_rows("derived", [*model_values(plan), *_sizes(plan)]) + note


def model_sizes(plan: Plan) -> dict[str, Any]:
    """Of all processes together: parameters, and bytes by precision, for programs."""
    found = {"parameters": plan.model.num_parameters, "trained_parameters": plan.num_trained}
    kept = plan.kept_tensors
    training = {
        name: dict(zip(("weights", "gradients", "optimizer"), _whole(plan, name))) for name in PRECISIONS
    }
    saved = int(checkpoint_bytes(kept) * plan.num_trained)
    return {**found, "training_bytes": training, "checkpoint_bytes": saved}


def _sizes(plan: Plan) -> Iterator[Row]:
    for name in ("bf16", "fp32"):
        size = BYTES[PRECISIONS[name].weights] * plan.model.num_parameters
        yield f"weights_{name}", show_bytes(size), "to generate with"
    for name in ("bf16", "fp32"):
        weights, gradients, optimizer = _whole(plan, name)
        how = f"weights {show_bytes(weights)} + gradients {show_bytes(gradients)} + "
        how += f"optimizer {show_bytes(optimizer)}"
        yield f"training_{name}", show_bytes(weights + gradients + optimizer), how
    kept = f"fp32 values and {plan.kept_tensors:.3g} more of each ({plan.config.optimizer.name})"
    yield "checkpoint", show_bytes(plan.checkpoint_bytes), kept


def _whole(plan: Plan, precision: str) -> tuple[int, int, int]:
    """Bytes of weights, gradients and optimizer state, each kept once."""
    weight, gradient, kept = parameter_bytes(PRECISIONS[precision], plan.kept_tensors)
    trained = plan.num_trained
    return weight * plan.model.num_parameters, gradient * trained, int(kept * trained)
