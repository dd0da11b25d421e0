"""Layers that tensor parallelism can shard, for your own models.

Each takes `tp`, the ranks that share it (`ModelContext.tp`); it works on a single rank, too. A
model all of whose parameters lie in them trains under any `parallel.tensor_parallel_size` that divides its
sizes. Between a column layer, whose outputs are sharded, and the row layer that follows it, work on each
output alone: activations, gates, heads. A sum over such outputs is complete after `reduce_from_group`.
"""

from llmkit.kernels.attention import sdpa as attention
from llmkit.model.layers import FusedColumnLinear as FusedColumnLinear
from llmkit.model.layers import Layer as Layer
from llmkit.model.layers import RowLinear as RowLinear
from llmkit.model.norm import LayerNorm as LayerNorm
from llmkit.model.norm import RMSNorm as RMSNorm
from llmkit.model.vocabulary import Embedding as Embedding
from llmkit.model.vocabulary import Head as Head
from llmkit.parallel.collectives import reduce_from_group as reduce_from_group

__all__ = [
    "Embedding",
    "FusedColumnLinear",
    "Head",
    "Layer",
    "LayerNorm",
    "RMSNorm",
    "RowLinear",
    "attention",
    "reduce_from_group",
]
