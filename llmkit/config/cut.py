"""Whether a model can be cut over a tensor-parallel group, found out before any process starts."""

from __future__ import annotations

from llmkit.config.shape import ModelShape
from llmkit.errors import UserError


def check_cut(shape: ModelShape, tensor_size: int, sequence_length: int, sequence_parallel: bool) -> None:
    """Raises UserError naming the setting that `tensor_size` ranks cannot share evenly.

    A vocabulary needs no check: it is padded for the layout.
    """
    size = f"parallel.tensor_parallel_size {tensor_size}"
    for name in ("num_attention_heads", "intermediate_size"):
        if getattr(shape, name) % tensor_size:
            raise UserError(f"model.{name} {getattr(shape, name)} is not divisible by {size}")
    heads = shape.num_key_value_heads
    if heads % tensor_size and tensor_size % heads:
        raise UserError(
            f"model.num_key_value_heads {heads} and {size}: one of them must be a multiple of the other"
        )
    sharing = max(1, tensor_size // heads)
    if shape.head_dim % sharing:
        raise UserError(
            f"model.head_dim {shape.head_dim} is not divisible by the {sharing} ranks that share each of the "
            f"{heads} key and value heads ({size})"
        )
    if sequence_parallel and sequence_length % tensor_size:
        raise UserError(
            f"data.sequence_length {sequence_length} is not divisible by {size}, over which "
            "parallel.sequence_parallel cuts it"
        )
