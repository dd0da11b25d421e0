"""A whole configuration from a size, a budget and a text: the recipe's settings, scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmkit.recipes import recipe
from llmkit.recipes.devices import Device
from llmkit.recipes.document import Sections, amount, plain
from llmkit.recipes.layout import fitting_layout
from llmkit.recipes.recipe import Setting
from llmkit.recipes.rules import (
    Budget,
    Size,
    best_batch,
    context,
    counted_parameters,
    vocabulary,
    weight_decay,
)

GIVEN = "as the command gave it, or the target of the ladder has it"
ROWS_OF_METRICS, EVALUATIONS, CHECKPOINTS = 200, 10, 10
"""About so many in the course of a run."""


@dataclass(frozen=True)
class Source:
    """What a model reads: one entry of data.sources, and data.tokenizer, whose size may be left open."""

    entry: dict[str, Any]
    tokenizer: dict[str, Any]


def compose(
    name: str, size: Size, trained: Budget, source: Source, device: Device | None, gpus: int
) -> Sections:
    """The sections of a configuration, each value with the reason for it.

    Raises UserError if the model does not fit into the memory of the devices.
    """
    sections = {
        "run": {"name": Setting(name)},
        "model": size.model,
        "data": _data(size, source),
        "train": _train(size, trained),
        "optimizer": _optimizer(size, trained),
        "schedule": _schedule(trained),
        "parallel": {},
        "checkpoint": {"every_steps": Setting(max(1, trained.steps // CHECKPOINTS), "about ten in all")},
        "evaluate": {"every_steps": Setting(max(1, trained.steps // EVALUATIONS), "about ten in all")},
        "monitor": {"log_every": Setting(max(1, trained.steps // ROWS_OF_METRICS), "about 200 in all")},
    }
    if device is not None:
        others = plain({part: settings for part, settings in sections.items() if part != "model"})
        sections["parallel"] = fitting_layout(name, size.shape, others, device, gpus)
    return sections


def _data(size: Size, source: Source) -> dict[str, Setting]:
    tokenizer = {key: Setting(value) for key, value in source.tokenizer.items()}
    if source.tokenizer["type"] == "bpe":
        by_width = size.vocab_size == vocabulary(size.width)
        why = "32 times the width, rounded down to a power of 2, at most 32,768"
        tokenizer["vocab_size"] = Setting(size.vocab_size, why if by_width else GIVEN)
    by_width = size.sequence_length == context(size.width)
    why = "twice the width, rounded down to a power of 2, at most 2,048: attention stays a small share"
    return {
        "sources": Setting([source.entry]),
        "tokenizer": Setting(tokenizer),
        "sequence_length": Setting(size.sequence_length, why if by_width else GIVEN),
    }


def _train(size: Size, trained: Budget) -> dict[str, Setting]:
    counted = counted_parameters(size.shape)
    ratio = trained.tokens / counted
    best = best_batch(trained.tokens)
    return {
        "max_steps": Setting(
            trained.steps,
            f"{amount(trained.tokens)} tokens, {ratio:.3g} for each of {amount(counted)} weights "
            "(matrices of the blocks, head)",
        ),
        "global_batch_size": Setting(
            trained.rows,
            f"rows, {trained.rows * size.sequence_length:,} tokens: a power of 2 near {best:,.0f}, the best "
            f"batch, which grows with the tokens of the run^{recipe.BATCH_EXPONENT} and leaves "
            f"{recipe.LEAST_STEPS:,} steps",
        ),
        **recipe.TRAIN,
    }


def _optimizer(size: Size, trained: Budget) -> dict[str, Setting]:
    rate = recipe.MATRICES.setting(size.width)
    decay = recipe.rounded(weight_decay(rate.value, trained.steps))
    over = f"{recipe.WEIGHT_DECAY:g} over {recipe.STEPS:,} steps at rate {recipe.MATRICES.value:g}"
    groups = [_group(group, size.width) for group in recipe.GROUPS]
    return {
        **recipe.OPTIMIZER,
        "learning_rate": rate,
        "weight_decay": Setting(decay, f"{over}: rate x decay x steps stays the same"),
        **({"groups": Setting(groups, "with rates of their own, nanochat's")} if groups else {}),
    }


def _group(group: recipe.Group, width: int) -> dict[str, Setting]:
    rate = {} if group.rate is None else {"learning_rate": group.rate.setting(width)}
    others = {name: Setting(value) for name, value in group.others.items()}
    return {"params": Setting(list(group.params), group.why), **rate, **others}


def _schedule(trained: Budget) -> dict[str, Setting]:
    warmup = max(1, round(recipe.WARMUP * trained.steps))
    return {**recipe.SCHEDULE, "warmup_steps": Setting(warmup, f"{recipe.WARMUP:.0%} of the steps")}
