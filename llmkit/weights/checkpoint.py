"""The weights of a checkpoint of a run, or of an import."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from xxhash import xxh64_hexdigest

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.pieces import EMA
from llmkit.checkpoint.read import Checkpoint
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.parallel.slices import Box, Shape
from llmkit.weights.base import check_vocabulary


@dataclass(frozen=True)
class CheckpointWeights:
    """The weights of a checkpoint: its fp32 masters, or what an import kept.

    ema: take the moving average (`train.ema`) of the weights that were trained instead.
    """

    checkpoint: Checkpoint
    ema: bool = field(default=False, kw_only=True)

    @property
    def path(self) -> Path:
        """See `Weights.path`."""
        return self.checkpoint.path

    @property
    def origin(self) -> str:
        """See `Weights.origin`."""
        return f"{self.checkpoint.origin}{', moving average of the weights' * self.ema}"

    @property
    def model(self) -> Mapping[str, Any]:
        """See `Weights.model`."""
        return self.checkpoint.model

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Weights.config`."""
        return self.checkpoint.config

    def names(self) -> Collection[str]:
        """See `Weights.names`."""
        return self.checkpoint.names("master")

    def shape(self, name: str) -> Shape:
        """See `Weights.shape`."""
        return self.checkpoint.shape(name, "master")

    def read(self, name: str, region: Box) -> Tensor:
        """See `Weights.read`. Raises Damaged where the bytes are not what was written."""
        return self.checkpoint.read(name, EMA if name in self._averaged else "master", region)

    @cached_property
    def _averaged(self) -> frozenset[str]:
        """The tensors of which the moving average is taken."""
        return frozenset(self.checkpoint.names(EMA) if self.ema else ())

    def tokenizer(self) -> Tokenizer:
        """See `Weights.tokenizer`."""
        content = self.checkpoint.tokenizer_json()
        config = json.loads(self.checkpoint.extra_file("tokenizer_config.json"))
        tokenizer = Tokenizer.from_config(content, config, str(self.path))
        check_vocabulary(self, tokenizer)
        return tokenizer if self.config else tokenizer.open_as_published()

    def digest(self) -> str:
        """See `Weights.digest`. The manifest has the checksums of all files, and a base's digest."""
        manifest = fmt.canonical(self.checkpoint.manifest.model_dump(mode="json"))
        return xxh64_hexdigest(manifest + EMA.encode() * self.ema)
