"""Texts of the model at each evaluation: how it continues the prompts of `monitor.samples`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llmkit.engine.complete import complete_model
from llmkit.errors import UserError
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import complete, stream_batch
from llmkit.loop.finish import SAMPLED_PARAMETERS, prompt_of
from llmkit.model.base import Model
from llmkit.monitor.media import table

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

SAMPLE_TOKENS = 64
"""Of each text, at most."""
WAYS = {"likeliest": Sampling(temperature=0.0), "drawn": Sampling(temperature=1.0, seed=0)}
"""Column -> how tokens are chosen: always the likeliest, and by the model's own probabilities."""


def write_samples(t: Trainer) -> None:
    """Records the table "samples" of the weights of now, if there are prompts. All ranks call it.

    Changes nothing that training depends on: the texts have random numbers of their own. What cannot be
    sampled from is noted once.
    """
    prompts = t.config.monitor.samples
    if not prompts:
        return
    partitioned = t.plan.layout.zero_stage == 3 or t.plan.layout.expert_parallel_size > 1
    if partitioned and t.plan.model.num_parameters > SAMPLED_PARAMETERS:
        t.note_once("no samples at evaluations: a model of this size is on no rank as a whole")
        return
    try:
        with _ready(complete_model(t.engine, t.plan, t.mesh)) as model:
            if t.mesh["data", "context"].rank == 0:  # tensor-parallel ranks generate together
                t.write_media(table("samples", ["prompt", *WAYS], _rows(t, model, prompts)))
    except (RuntimeError, MemoryError, UserError) as error:
        t.note_once(f"no samples at evaluations: {str(error).partition(chr(10))[0]}")


def _rows(t: Trainer, model: Model, prompts: list[str]) -> list[list[str]]:
    """Of each prompt, what stands before the answer, and the answers."""
    asked = [prompt_of(t, text) for text in prompts]
    each = [prompt for prompt in asked for _ in WAYS]
    samplings = [way for _ in asked for way in WAYS.values()]
    pieces = stream_batch(model, t.data.tokenizer, each, SAMPLE_TOKENS, samplings)
    texts = iter(complete(pieces, len(each)))
    return [[prompt.shown, *(next(texts).text for _ in WAYS)] for prompt in asked]


@contextmanager
def _ready(model: Model) -> Iterator[Model]:
    """The model without dropout; nothing of it is compiled for the shapes of generation."""
    training = model.training
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield model
    finally:
        model.train(training)
