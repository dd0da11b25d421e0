"""Which parameters a rank stores, and how many elements each has: from sizes alone, without a model.

The layers that make them: `llmkit.model.layers`, `llmkit.model.vocabulary`, `llmkit.model.lora`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from llmkit.config.adapters import LORA_A, trained_tensors
from llmkit.config.custom_model import AnyModel
from llmkit.config.lora_section import Lora
from llmkit.config.parameters import EXPERTS, FullTensor
from llmkit.config.shape import ModelShape

COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Projections of which each tensor-parallel rank computes some outputs."""
ROW = ("o_proj", "down_proj")
"""Of which each rank reads some inputs; all ranks have the bias."""


class Stored(NamedTuple):
    """A parameter of a rank. name: `FullTensor.stored_in`. elements: of this rank, padding included.

    tensors: names of the full tensors that it holds (a part of). linear: whether it is the weight of a linear
    layer of a block. expert: whether it is of experts.
    """

    name: str
    elements: int
    tensors: tuple[str, ...]
    trained: bool
    linear: bool = False
    expert: bool = False


def stored_parameters(
    model: AnyModel, lora: Lora, tensor_parallel_size: int = 1, expert_parallel_size: int = 1
) -> tuple[Stored, ...]:
    """The parameters of a rank in the model's order, adapters behind all others.

    Every rank has as many elements of each; `tensors` names those of all experts, on whatever rank they are.
    Of a registered model all are taken to be shared evenly, which is a lower bound.
    """
    ranks = (tensor_parallel_size, expert_parallel_size)
    if not lora.rank:
        if isinstance(model, ModelShape):
            return _of_shape(model, ranks)
        return _stored(model, model.tensors, ranks, trained=True)
    adapters = trained_tensors(model.tensors, lora)
    return (
        *_stored(model, model.tensors, ranks, trained=False),
        *_stored(model, adapters, ranks, trained=True),
    )


@lru_cache(maxsize=16)
def _of_shape(model: ModelShape, ranks: tuple[int, int]) -> tuple[Stored, ...]:
    """Kept: a search asks for it under thousands of layouts, with few different numbers of ranks."""
    return _stored(model, model.tensors, ranks, trained=True)


def _stored(
    model: AnyModel, tensors: Sequence[FullTensor], ranks: tuple[int, int], *, trained: bool
) -> tuple[Stored, ...]:
    together: dict[str, list[FullTensor]] = {}
    for tensor in tensors:
        together.setdefault(tensor.stored_in, []).append(tensor)
    return tuple(
        Stored(
            name, sum(_elements(model, each, ranks[0]) for each in held) // (ranks[1] if expert else 1),
            tuple(each.name for each in held), trained, held[0].linear, expert,
        )
        for name, held in together.items()
        for expert in [EXPERTS in held[0].name]
    )  # fmt: skip


def _elements(model: AnyModel, tensor: FullTensor, ranks: int) -> int:
    """Of a full tensor, the elements that a rank stores."""
    if not isinstance(model, ModelShape):
        return prod(tensor.shape) // ranks
    if tensor.name in ("embedding.weight", "head.weight"):
        return -(-model.padded_vocab_size // ranks) * tensor.shape[1]
    if tensor.name == "bigram_embedding.weight":
        return -(-tensor.shape[0] // ranks) * tensor.shape[1]
    return prod(tensor.shape) // (ranks if _is_sharded(model, tensor.name) else 1)


def _is_sharded(model: ModelShape, name: str) -> bool:
    *_, layer, kind = name.split(".")
    if layer in COLUMN:
        return kind != LORA_A
    if layer in ROW:
        return kind in ("weight", LORA_A)
    if layer in ("q_norm", "k_norm"):
        return model.qk_norm == "full"
    return layer == "value_embedding"
