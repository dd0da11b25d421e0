"""The low-rank adapters in a checkpoint of a run with `train.lora`, which holds nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from llmkit.checkpoint.read import Checkpoint
from llmkit.config.adapters import LORA_A, LORA_B
from llmkit.config.lora_section import Lora
from llmkit.config.operators import QUANTISED_BLOCK
from llmkit.kernels.quantised import prepare, rounded
from llmkit.parallel.slices import Box, Shape


def has_adapters(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint holds adapters, and not the weights that they are for."""
    return bool(checkpoint.config.get("train", {}).get("lora", {}).get("rank"))


@dataclass(frozen=True)
class CheckpointAdapters:
    """The adapters of a checkpoint that has some. kind: of state, "master" or their moving average."""

    checkpoint: Checkpoint
    kind: str = "master"

    @cached_property
    def settings(self) -> Lora:
        """Those that they were trained with."""
        return Lora.model_validate(self.checkpoint.config["train"]["lora"])

    @cached_property
    def layers(self) -> frozenset[str]:
        """Full names of the adapted layers, as in "blocks.0.attention.q_proj"."""
        end = f".{LORA_A}"
        names = self.checkpoint.names("master")
        return frozenset(name.removesuffix(end) for name in names if name.endswith(end))

    def matrices(self, layer: str, region: Box | None = None) -> tuple[Tensor, Tensor]:
        """A (rank, inputs) and B (outputs, rank) of a layer, fp32; of the region of its weight alone."""
        rank = (0, self.settings.rank)
        a, b = f"{layer}.{LORA_A}", f"{layer}.{LORA_B}"
        rows, columns = region or (None, None)
        return (
            self.checkpoint.read(a, self.kind, None if columns is None else (rank, columns)),
            self.checkpoint.read(b, self.kind, None if rows is None else (rows, rank)),
        )

    def change(self, layer: str, region: Box) -> Tensor:
        """What the adapter adds to a region of the layer's weight: alpha / rank B A, fp32."""
        a, b = self.matrices(layer, region)
        return (b @ a).mul_(self.settings.alpha / self.settings.rank)


def quantised_region(read: Callable[[Box], Tensor], shape: Shape, region: Box, form: str) -> Tensor:
    """A region of a weight as it is once it has been kept in the form, fp32.

    read: gives a region of the weight, of this shape. Raises UserError where the form's package is missing.
    """
    rows, (first, last) = region
    low, high = first - first % QUANTISED_BLOCK, last + -last % QUANTISED_BLOCK  # whole blocks
    prepare(form)
    values = rounded(read((rows, (low, min(high, shape[1])))), form)
    return values[:, first - low : last - low]
