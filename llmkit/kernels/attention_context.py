"""Attention over rows of which several ranks have a piece each (context parallelism).

* Ulysses (Jacobs et al. 2023): an all-to-all gives each rank all positions of some heads; it computes them by
  whatever form of attention is chosen, and a second one gives the results back.
* A ring (Liu et al. 2023): each rank keeps its queries, while keys and values go around.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import RowPiece
from llmkit.config.context import ulysses_heads
from llmkit.kernels.attention_ring import ring
from llmkit.parallel.collectives import all_to_all
from llmkit.parallel.context import ContextParallel


def attend_across_ranks(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: ContextParallel,
    piece: RowPiece,
    **how: Any,
) -> Tensor:
    """`attention` of whole rows, of the queries of this rank's piece. Collective over the context ranks.

    q: (batch, piece, heads, head_dim); k, v: (batch, piece, kv_heads, head_dim), already rotated. how: what
    `llmkit.kernels.attention.sdpa` takes, but for `documents`; `bounds` are those of whole rows. Returns the
    shape of q.
    """
    assert context.own(piece.length) == piece.ranges, "a batch is cut as the model was built for"
    if context.form == "ring":
        return ring(q, k, v, context, piece, **how)
    return ulysses(attention, q, k, v, context, piece, **how)


def ulysses(
    attention: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: ContextParallel,
    piece: RowPiece,
    **how: Any,
) -> Tensor:
    """See `attend_across_ranks`. The ranks must divide the heads.

    Queries, keys and values go in one message. Where the ranks do not divide the key and value heads, these
    are repeated so often that they do: a rank gets the heads that its queries need, and their gradients are
    summed where they came from.
    """
    group, ranks, own = context.group, context.size, q.shape[1]
    assert group is not None
    sizes = context.sizes(piece.length)
    times = ulysses_heads(q.shape[2], k.shape[2], ranks)[1] * ranks // k.shape[2]
    if times > 1:
        k, v = (x.repeat_interleave(times, 2) for x in (k, v))
    parts = [x.unflatten(2, (ranks, -1)) for x in (q, k, v)]  # (batch, own, ranks, heads, head_dim) each
    heads = [part.shape[3] for part in parts]
    # (ranks * own, batch, heads of a rank, head_dim): what goes to a rank lies together, in the row's order.
    sent = torch.cat(parts, 3).permute(2, 1, 0, 3, 4).flatten(0, 1)
    whole = all_to_all(sent, sizes, [own] * ranks, group).transpose(0, 1)  # (batch, length, heads, head_dim)
    mixed = attention(*whole.split(heads, 2), documents=piece.documents, **how)
    back = all_to_all(mixed.transpose(0, 1), [own] * ranks, sizes, group)  # (ranks * own, batch, heads, ...)
    return back.unflatten(0, (ranks, own)).permute(2, 1, 0, 3, 4).flatten(2, 3)
