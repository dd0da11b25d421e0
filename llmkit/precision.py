"""The number types of a run: of weights, products, sums of gradients, and masters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

DataType = Literal["fp32", "bf16"]
BYTES: dict[DataType, int] = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Precision:
    """Which number type each part of the training state and of the arithmetic has.

    name: the value of train.precision that stands for it. weights: of the parameters that the forward pass
    reads. compute: of matrix products (statistics, softmax and loss are always fp32), but for those of the
    blocks' linear layers, which are in `linear`; its results are in `compute`. reduction: in which
    gradients are summed over micro-batches and ranks. masters: of the weights that the optimizer updates,
    and of its moments.
    """

    name: str
    weights: DataType
    compute: DataType
    linear: DataType | Literal["fp8"]
    reduction: DataType = "fp32"
    masters: DataType = "fp32"

    @property
    def keeps_masters(self) -> bool:
        """Whether masters are kept beside the weights; else the weights are their own masters."""
        return self.weights != self.masters

    def __str__(self) -> str:
        return self.name


PRECISIONS = {
    "fp32": Precision("fp32", weights="fp32", compute="fp32", linear="fp32"),
    "bf16": Precision("bf16", weights="bf16", compute="bf16", linear="bf16"),
    "fp8": Precision("fp8", weights="bf16", compute="bf16", linear="fp8"),
}
"""By the values of train.precision."""


def torch_dtype(kind: DataType) -> torch.dtype:
    """The PyTorch type of that name."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[kind]


@contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    """Inside, new tensors are of this type unless they are given another one."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
