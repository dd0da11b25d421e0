"""Names and shapes of the full tensors of a GPT, from its sizes alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from llmkit.config.model_section import Mlp

if TYPE_CHECKING:
    from llmkit.config.shape import ModelShape

Named = tuple[str, tuple[int, ...]]

INTO_MLP: dict[Mlp, tuple[str, ...]] = {
    "swiglu": ("gate_proj", "up_proj"),
    "geglu": ("gate_proj", "up_proj"),
    "gelu": ("up_proj",),
    "relu2": ("up_proj",),
}
"""Matrices from the residual stream into the MLP."""

EXPERTS = ".mlp.experts."
"""In the names of all tensors of experts; the expert's number follows."""

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections that are one matrix in memory."""


class FullTensor(NamedTuple):
    """A parameter of the unsharded, unfused model.

    hidden: whether it is a matrix that Muon can update. stored_in: name of the parameter that holds it, which
    is the same for tensors that are one matrix in memory. linear: whether it is the weight of a linear layer
    of a block, which can have an adapter.
    """

    name: str
    shape: tuple[int, ...]
    hidden: bool
    stored_in: str
    linear: bool = False


def count_elements(tensors: Iterable[FullTensor]) -> int:
    """The elements of these tensors together."""
    return sum(prod(tensor.shape) for tensor in tensors)


@lru_cache(maxsize=8)
def full_tensors(shape: ModelShape) -> tuple[FullTensor, ...]:
    """All full tensors of a GPT, in the model's order; the same object for equal shapes asked for in turn."""
    found = named_parameters(shape)
    return tuple(
        FullTensor(name, size, is_hidden(name, size), _stored(name), _is_linear(name)) for name, size in found
    )


def is_hidden(name: str, size: tuple[int, ...]) -> bool:
    """Whether Muon can update it: matrices of blocks, without value embeddings, their gates, and routers."""
    others = ".value_embedding." in name or name.endswith(".router.weight")
    return name.startswith("blocks.") and len(size) == 2 and not others


def _is_linear(name: str) -> bool:
    return name.endswith("_proj.weight") and EXPERTS not in name


def _stored(name: str) -> str:
    """A full tensor's name, with the projections that are fused with it in place of its own.

    All experts of a layer are one matrix in memory, too.
    """
    *path, layer, kind = name.split(".")
    path = path[:-1] if EXPERTS in name else path
    fused = next(("+".join(each) for each in FUSED if layer in each), layer)
    return ".".join((*path, fused, kind))


def named_parameters(shape: ModelShape) -> Iterator[Named]:
    """Name and shape of every full tensor as in a checkpoint, in the model's order; vocabulary unpadded.

    q, k and v, and the matrices into the MLP, are tensors of their own, though a model fuses them.
    """
    vocabulary = (shape.vocab_size, shape.hidden_size)
    yield "embedding.weight", vocabulary
    if shape.position_embedding == "learned":
        yield "positions.weight", (shape.max_position_embeddings, shape.hidden_size)
    if shape.bigram_embedding is not None:
        yield "bigram_embedding.weight", (shape.bigram_embedding, shape.hidden_size)
    if shape.embedding_norm:
        yield from _norm(shape, "embedding_norm")
    for layer in range(shape.num_hidden_layers):
        yield from _block(shape, layer, f"blocks.{layer}")
    yield from _norm(shape, "norm")
    if not shape.tie_word_embeddings:
        yield "head.weight", vocabulary


def _block(shape: ModelShape, layer: int, path: str) -> Iterator[Named]:
    yield from ((f"{path}.residual_scalars.{name}", (1,)) for name in shape.residual_scalar_names)
    before, behind = shape.norm_placement != "post", shape.norm_placement != "pre"
    if before:
        yield from _norm(shape, f"{path}.attention_norm")
    yield from _attention(shape, layer, f"{path}.attention")
    if behind:
        yield from _norm(shape, f"{path}.attention_post_norm")
    if before:
        yield from _norm(shape, f"{path}.mlp_norm")
    if shape.has_experts(layer):
        yield from _experts(shape, f"{path}.mlp")
    else:
        yield from _mlp(shape, shape.intermediate_size, f"{path}.mlp")
    if behind:
        yield from _norm(shape, f"{path}.mlp_post_norm")


def _attention(shape: ModelShape, layer: int, path: str) -> Iterator[Named]:
    query, grouped = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
    into = {"q_proj": query, "k_proj": grouped, "v_proj": grouped}
    yield from _linear(path, into, shape.hidden_size, shape.attention_bias)
    yield from _linear(path, {"o_proj": shape.hidden_size}, query, shape.output_bias)
    if shape.qk_norm and shape.norm_weight:
        full = shape.qk_norm == "full"
        yield f"{path}.q_norm.weight", (query if full else shape.head_dim,)
        yield f"{path}.k_norm.weight", (grouped if full else shape.head_dim,)
    if shape.has_value_embedding(layer):
        yield f"{path}.value_embedding.weight", (shape.vocab_size, grouped)
        yield f"{path}.value_embedding.gate.weight", (shape.num_key_value_heads, shape.gate_channels)


def _mlp(shape: ModelShape, inner: int, path: str) -> Iterator[Named]:
    width = shape.hidden_size
    yield from _linear(path, dict.fromkeys(INTO_MLP[shape.mlp], inner), width, shape.mlp_bias)
    yield from _linear(path, {"down_proj": width}, inner, shape.mlp_bias)


def _experts(shape: ModelShape, path: str) -> Iterator[Named]:
    """The router, what leads into each expert, what leads out of each, the shared expert."""
    moe, width, inner = shape.moe, shape.hidden_size, shape.expert_width
    yield f"{path}.router.weight", (moe.num_experts, width)
    for number in range(moe.num_experts):
        for name in INTO_MLP[shape.mlp]:
            yield f"{path}.experts.{number}.{name}.weight", (inner, width)
    for number in range(moe.num_experts):
        yield f"{path}.experts.{number}.down_proj.weight", (width, inner)
    if moe.shared_expert_intermediate_size is not None:
        yield from _mlp(shape, moe.shared_expert_intermediate_size, f"{path}.shared_expert")


def _linear(path: str, outputs: dict[str, int], inputs: int, bias: bool) -> Iterator[Named]:
    """Projections of one input that a model fuses: all their weights, then all their biases."""
    yield from ((f"{path}.{name}.weight", (width, inputs)) for name, width in outputs.items())
    if bias:
        yield from ((f"{path}.{name}.bias", (width,)) for name, width in outputs.items())


def _norm(shape: ModelShape, path: str) -> Iterator[Named]:
    if not shape.norm_weight:
        return
    yield f"{path}.weight", (shape.hidden_size,)
    if shape.norm == "layernorm":
        yield f"{path}.bias", (shape.hidden_size,)
