"""Memory of the gradients of activations in the backward pass of one block; counted as `activations` is."""

from __future__ import annotations

from llmkit.config.parameters import INTO_MLP
from llmkit.config.shape import ModelShape
from llmkit.plan.arithmetic import Arithmetic
from llmkit.plan.context_memory import received_width
from llmkit.plan.score_memory import score_bytes


def gradient_bytes(shape: ModelShape, how: Arithmetic, mlp_kept: float) -> float:
    """Returns the bytes for each token beside what a block keeps, at the largest moment of its backward pass.

    That is in the MLP, or in attention, where what the MLP and its norm kept is gone. mlp_kept: bytes a
    token of what the MLP did.
    """
    layout, size = how.layout, how.bytes
    pieces = layout.tensor_parallel_size if layout.sequence_parallel else 1
    stream = size * shape.hidden_size / pieces  # the gradient of the residual stream
    return stream + max(_of_mlp(shape, how), _of_attention(shape, how) - mlp_kept - stream)


def _of_mlp(shape: ModelShape, how: Arithmetic) -> float:
    """Where the activation is differentiated: gradients of its product with the gate, in the place of that
    product, of the gate and of the other factor; of what experts give, a copy for each of them."""
    layout, size, ranks = how.layout, how.bytes, how.layout.tensor_parallel_size
    if how.tiled < 1.0:  # what a tile takes is counted for itself
        return size * shape.hidden_size * (1.0 + layout.sequence_parallel)
    widest = max(map(shape.active_width, range(shape.num_hidden_layers)))
    values = 2.0 if len(INTO_MLP[shape.mlp]) == 2 else 1.0
    if shape.mlp == "relu2" and not how.compiled:  # PyTorch makes a power of it, and a product with 2
        values += 2.0
    found = size * widest * values / ranks
    if shape.expert_layers:
        found += size * shape.moe.num_experts_per_tok * shape.hidden_size
    return found + size * shape.hidden_size * layout.sequence_parallel  # of whole rows, gathered


def _of_attention(shape: ModelShape, how: Arithmetic) -> float:
    """Gradients of what attention gives, of queries, keys and values, and of scores that are in memory."""
    grouped, query = (n * shape.head_dim for n in (shape.num_key_value_heads, shape.num_attention_heads))
    given = received_width(shape, how.layout) if how.layout.in_ulysses else query + 2.0 * grouped
    scores = score_bytes(shape, how, "none")
    return (how.bytes * (query + given) + scores) / how.layout.tensor_parallel_size
