"""Memory of the gradients of activations in the backward pass of one block; counted as `activations` is."""

from __future__ import annotations

from collections.abc import Mapping

from llmkit.config.parameters import INTO_MLP
from llmkit.config.shape import ModelShape
from llmkit.plan.arithmetic import Arithmetic
from llmkit.plan.context_memory import received_width
from llmkit.plan.score_memory import score_bytes


def gradient_bytes(shape: ModelShape, how: Arithmetic, kept: Mapping[str, float]) -> float:
    """Returns the bytes for each token beside what a block keeps, at the largest moment of its backward pass.

    That is in the MLP, or in attention, where what the MLP and its norm kept is gone. kept: bytes a token of
    what the block keeps, by kind (`llmkit.plan.activations.block_parts`).
    """
    layout, size = how.layout, how.bytes
    pieces = layout.tensor_parallel_size if layout.sequence_parallel else 1
    stream = size * shape.hidden_size / pieces  # the gradient of the residual stream
    gone = kept["mlp"] + kept["copies of tokens for experts"] + stream
    return stream + max(_of_mlp(shape, how, kept["mlp"]), _of_attention(shape, how) - gone)


def _of_mlp(shape: ModelShape, how: Arithmetic, kept: float) -> float:
    """Where the activation is differentiated: gradients of its product with the gate, in the place of that
    product, of the gate and of the other factor. kept: bytes a token of what the MLP keeps."""
    layout, size, ranks = how.layout, how.bytes, how.layout.tensor_parallel_size
    if how.tiled < 1.0:  # what a tile takes is counted for itself
        return size * shape.hidden_size * (1.0 + layout.sequence_parallel)
    values = 2.0 if len(INTO_MLP[shape.mlp]) == 2 else 1.0
    if shape.mlp == "relu2" and not how.compiled:  # PyTorch makes a power of it, and a product with 2
        values += 2.0
    found = 0.0
    if shape.expert_layers < shape.num_hidden_layers:
        found = size * shape.intermediate_size * values / ranks
    if shape.expert_layers:
        found = max(found, _of_experts(shape, how, kept, values))
    return found + size * shape.hidden_size * layout.sequence_parallel  # of whole rows, gathered


def _of_experts(shape: ModelShape, how: Arithmetic, kept: float, values: float) -> float:
    """The largest of four moments, of which each follows the other.

    What experts give is brought into the order of the tokens, once more before the backward pass, while what
    attention gave is there still; its gradient has come through the last matrix, and it itself is gone; that
    gradient is gone, too, and the activation is differentiated; a shared expert follows when all is gone but
    the gradient of the copies that went in.

    kept: bytes a token of what the MLP keeps. values: of `_of_mlp`, that are beside it.
    """
    moe, ranks = shape.moe, how.layout.tensor_parallel_size
    copies = float(how.bytes * moe.num_experts_per_tok * shape.hidden_size)
    shared = how.bytes * (moe.shared_expert_intermediate_size or 0) / ranks
    experts = how.bytes * moe.num_experts_per_tok * shape.expert_width / ranks
    after = shared * values - kept * experts / (experts + shared) - copies
    ordered = copies + how.bytes * shape.hidden_size
    return max(ordered, experts, experts * values - copies, after)


def _of_attention(shape: ModelShape, how: Arithmetic) -> float:
    """Gradients of what attention gives, of queries, keys and values, and of scores that are in memory."""
    grouped, query = (n * shape.head_dim for n in (shape.num_key_value_heads, shape.num_attention_heads))
    given = received_width(shape, how.layout) if how.layout.in_ulysses else query + 2.0 * grouped
    scores = score_bytes(shape, how, "none")
    return (how.bytes * (query + given) + scores) / how.layout.tensor_parallel_size
