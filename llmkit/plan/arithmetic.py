"""What the memory of activations depends on, beside the sizes of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmkit.config.lora_section import Lora
from llmkit.parallel.layout import Layout
from llmkit.precision import BYTES, Precision

Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True)
class Arithmetic:
    """What the memory of activations depends on, beside the sizes of the model.

    compiled: whether the blocks are; head_compiled: whether head and loss are. forms: operator -> form
    (`llmkit.plan.operators`). lora: of a rank above 0 adapters alone are trained, so that the head's matrix,
    like all others, has no gradient. length: tokens of a row. documents: whether they are masked from each
    other.
    """

    precision: Precision
    layout: Layout
    compiled: bool
    head_compiled: bool
    forms: Mapping[str, str]
    lora: Lora = field(default_factory=Lora)
    length: int = 0
    documents: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of an activation."""
        return BYTES[self.precision.compute]
