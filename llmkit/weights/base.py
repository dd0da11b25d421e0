"""What every format of trained weights gives."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from llmkit.config.custom_model import AnyModel, stored_model
from llmkit.config.stored import require_plugins
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.parallel.slices import Box, Shape


class Weights(Protocol):
    """The full tensors of a trained model, read region by region; nothing is kept in memory.

    Names are those of checkpoints (`llmkit.config.parameters`).
    """

    @property
    def path(self) -> Path:
        """The folder that holds them."""
        ...

    @property
    def origin(self) -> str:
        """The folder, and what wrote it if that is known, for messages."""
        ...

    @property
    def model(self) -> Mapping[str, Any]:
        """The stored model: what `ModelShape.to_dict` or `CustomModel.to_dict` gave."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run that made them, as stored; empty where no run of ours did."""
        ...

    def names(self) -> Collection[str]:
        """The full tensors."""
        ...

    def shape(self, name: str) -> Shape:
        """The shape of a full tensor."""
        ...

    def read(self, name: str, region: Box) -> Tensor:
        """A region of a full tensor: a new CPU tensor of the region's shape, of the type that is stored."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model. Raises UserError where there is none, or it has more ids than the
        model knows."""
        ...

    def digest(self) -> str:
        """A hash: equal for equal content, wherever the folder lies."""
        ...


def model_of(weights: Weights) -> AnyModel:
    """The model that the weights are of, with the plugins imported that it needs.

    Raises UserError where a plugin cannot be imported, or the stored model is not valid.
    """
    require_plugins(weights.config, weights.origin)
    return stored_model(weights.model, weights.origin)


def check_vocabulary(weights: Weights, tokenizer: Tokenizer) -> None:
    """Raises UserError where the tokenizer has ids that the model does not know."""
    known = model_of(weights).vocab_size
    if tokenizer.vocab_size > known:
        raise UserError(
            f"{weights.path}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model knows "
            f"only {known} tokens"
        )
