"""Weights with low-rank adapters merged into them, as they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from xxhash import xxh64_hexdigest

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.adapters import CheckpointAdapters, quantised_region
from llmkit.checkpoint.pieces import EMA
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.hf.folder import HFFolder
from llmkit.hf.peft_adapters import PeftAdapters
from llmkit.hf.tokenizer_files import read_tokenizer
from llmkit.parallel.slices import Box, Shape
from llmkit.weights.base import Weights, model_of
from llmkit.weights.checkpoint import CheckpointWeights


class Adapters(Protocol):
    """What low-rank adapters add to the weights of their layers."""

    @property
    def layers(self) -> frozenset[str]:
        """Full names of the adapted layers, as in "blocks.0.attention.q_proj"."""
        ...

    def change(self, layer: str, region: Box) -> Tensor:
        """What is added to a region of the layer's weight, fp32."""
        ...


def merged(read: Callable[[str, Box], Tensor], adapters: Adapters, name: str, region: Box) -> Tensor:
    """A region of a tensor with what adapters add to it: in fp32, if it is of an adapted layer.

    read: gives a region of the base.
    """
    weight, layer = read(name, region), name.removesuffix(".weight")
    if layer == name or layer not in adapters.layers:
        return weight
    return adapters.change(layer, region).add_(weight)


@dataclass(frozen=True)
class AdaptedCheckpoint(CheckpointWeights):
    """The weights of a checkpoint that holds adapters alone: those of their base, with what they add.

    rounded: whether the base is taken as it was kept in training (`train.lora.quantize_base`), so that these
    are the weights that were trained; else as it is stored.
    """

    base: Weights
    rounded: bool = True

    @cached_property
    def adapters(self) -> CheckpointAdapters:
        """The adapters."""
        return CheckpointAdapters(self.checkpoint, EMA if self.ema else "master")

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self.base.names()

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self.base.shape(name)

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read` and `merged`."""
        return merged(self._read_base, self.adapters, name, region)

    def _read_base(self, name: str, region: Box) -> Tensor:
        form = self.adapters.settings.base_form if self.rounded else None
        if form is None or name not in self._linear:
            return self.base.read(name, region)
        return quantised_region(partial(self.base.read, name), self.shape(name), region, form)

    @cached_property
    def _linear(self) -> frozenset[str]:
        """The weights that `quantize_base` is for."""
        return frozenset(tensor.name for tensor in model_of(self.base).tensors if tensor.linear)


@dataclass(frozen=True)
class AdaptedFolder:
    """The weights of a folder of PEFT: those of its base, with what the adapters add."""

    path: Path
    base: HFFolder
    adapters: PeftAdapters

    @property
    def origin(self) -> str:
        """See `Weights.origin`."""
        return str(self.path)

    @property
    def model(self) -> Mapping[str, Any]:
        """See `Weights.model`."""
        return self.base.model

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Weights.config`."""
        return self.base.config

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self.base.names()

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self.base.shape(name)

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read` and `merged`."""
        return merged(self.base.read, self.adapters, name, region)

    def tokenizer(self) -> Tokenizer:
        """See `Weights.tokenizer`. The adapter's folder may have its own, with a chat template."""
        if not (self.path / fmt.TOKENIZER).is_file():
            return self.base.tokenizer()
        config, size = self.base.hf_config, self.base.model_shape.vocab_size
        return read_tokenizer(self.path, config, size, self.base.end_ids)

    def digest(self) -> str:
        """See `Weights.digest`."""
        return xxh64_hexdigest(f"{self.base.digest()} {self.adapters.digest()}".encode())
