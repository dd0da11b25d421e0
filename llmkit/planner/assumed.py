"""A configuration to plan with, also where a file names a model and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llmkit.config.derive import known_vocab_size, resolved_model
from llmkit.config.load import ASSUMED, Loaded
from llmkit.config.model_section import Model
from llmkit.errors import UserError
from llmkit.recipes.rules import best_batch

TOKENS_PER_PARAMETER = 20
"""Of a run whose length is left open: about what the laws of `llmkit.estimate.scaling_laws` call best."""
LONGEST_ROW = 8192
"""Tokens of a row where a file names a model alone: Llama 3's, as far as the model's positions reach."""
TEXT = [{"type": "text", "path": "DATA"}]
TOKENIZER = {"type": "file", "path": "TOKENIZER"}
"""What stands in the place of text, and of a tokenizer with the model's vocabulary; names to be replaced."""


class Load(Protocol):
    """`llmkit.api.load`."""

    def __call__(
        self, path: str, overrides: Sequence[str] = (), *, assumed: Mapping[str, Any] | None = None
    ) -> Loaded: ...


@dataclass(frozen=True)
class Subject:
    """What is planned. assumed: settings that were not given, with the values that stand for them."""

    loaded: Loaded
    assumed: Mapping[str, Any]

    @property
    def vocab_size(self) -> int | None:
        """Tokens of the model, or of its tokenizer, as far as the settings say them."""
        return known_vocab_size(self.loaded.config)


def open_subject(load: Load, path: str, overrides: Sequence[str], tokens: float | None) -> Subject:
    """Reads a configuration, and assumes what a run must have where it is left open: text, rows, a length.

    tokens: of the run, where they are asked for. Raises UserError as `load` does, and where the vocabulary is
    known only once a tokenizer is loaded.
    """
    first = load(path, overrides, assumed={"data.sources": TEXT, "train.max_steps": 1})
    config, alone = first.config, first.origins["data.sources.0.type"] == ASSUMED
    if known_vocab_size(config) is None:
        kind = config.data.tokenizer.type
        raise UserError(
            f"plan: {path}: the vocabulary is known once the tokenizer ({kind}) is loaded; say how many "
            "tokens it has, as in model.vocab_size=50257"
        )
    assumed: dict[str, Any] = {}
    if alone:
        assumed["data.sources"] = TEXT
        if config.model.vocab_size != "auto" and first.origins["data.tokenizer.type"] == "default":
            assumed["data.tokenizer"] = TOKENIZER
        if first.origins["data.sequence_length"] == "default":
            assumed["data.sequence_length"] = _row(config.model)
    if first.origins["train.max_steps"] == ASSUMED and config.train.max_minutes is None:
        second = load(path, overrides, assumed={**assumed, "train.max_steps": 1})
        assumed |= _length(second, tokens, alone)
    return Subject(load(path, overrides, assumed=assumed), assumed)


def _row(model: Any) -> int:
    """Tokens of a row."""
    if not isinstance(model, Model):
        return LONGEST_ROW
    known = model.max_position_embeddings or LONGEST_ROW
    return min(known, model.rope_scaling.original_max_position_embeddings or known, LONGEST_ROW)


def _length(loaded: Loaded, tokens: float | None, alone: bool) -> dict[str, int]:
    """Steps of the run, and for a model alone rows of a step: a power of 2 near the best batch."""
    config, found = loaded.config, dict[str, int]()
    if tokens is None:
        tokens = TOKENS_PER_PARAMETER * resolved_model(config).num_parameters
    rows = config.train.global_batch_size
    if alone and loaded.origins["train.global_batch_size"] == "default":
        rows = 2 ** max(0, round(math.log2(best_batch(tokens) / config.data.sequence_length)))
        found["train.global_batch_size"] = rows
    return {"train.max_steps": max(1, math.ceil(tokens / (rows * config.data.row_length)))} | found
