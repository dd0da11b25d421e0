"""Bytes of activations, and what they depend on, beside the sizes of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmkit.config.lora_section import Lora
from llmkit.parallel.layout import Layout
from llmkit.precision import BYTES, Precision

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Activations:
    """Bytes of activations.

    token: for each token of a micro-batch, at their largest. fixed: whatever the micro-batch, but for
    `fixed_token`, if any: no more than so many for each token.
    """

    token: float
    fixed: float = 0.0
    fixed_token: float = 0.0

    def of(self, tokens: int) -> int:
        """Bytes of a micro-batch of so many tokens."""
        fixed = min(self.fixed, self.fixed_token * tokens) if self.fixed_token else self.fixed
        return int(self.token * tokens + fixed)


@dataclass(frozen=True)
class Arithmetic:
    """What the memory of activations depends on, beside the sizes of the model.

    compiled: whether the blocks are; head_compiled: whether head and loss are. forms: operator -> form
    (`llmkit.plan.operators`). lora: of a rank above 0 adapters alone are trained, so that the head's matrix,
    like all others, has no gradient. length: tokens of a row. documents: whether they are masked from each
    other. mlp_tile: positions for which an MLP is computed at a time; 0 = all. fused_ring: whether the device
    has a fused kernel for blocks of a ring without masks.
    """

    precision: Precision
    layout: Layout
    compiled: bool
    head_compiled: bool
    forms: Mapping[str, str]
    lora: Lora = field(default_factory=Lora)
    length: int = 0
    documents: bool = False
    mlp_tile: int = 0
    fused_ring: bool = True

    @property
    def tiled(self) -> float:
        """Share of a rank's positions for which an MLP is computed at a time; 1 = it is not tiled."""
        own = -(-self.length // self.layout.context_parallel_size)
        return self.mlp_tile / own if 0 < self.mlp_tile < own else 1.0

    @property
    def bytes(self) -> int:
        """Bytes of an activation."""
        return BYTES[self.precision.compute]
