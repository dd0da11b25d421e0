"""Attention over ranks that share rows, against attention on one; see test_attention_context.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from llmkit.batch import Batch
from llmkit.kernels.attention import sdpa
from llmkit.kernels.attention_context import attend_across_ranks
from llmkit.model.activation_checkpointing import recomputed
from llmkit.parallel.context import ContextParallel, context_parallel
from llmkit.parallel.mesh import make_mesh
from tests.kernels.dense_attention import dense, documents_of, tensors

LENGTH = 23
DOCUMENTS = documents_of([[5, 1, 12, 5], [LENGTH]])
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"documents": DOCUMENTS, "window": 9, "softcap": 1.5},
    "fewer key heads": {"heads": (6, 2), "documents": DOCUMENTS},
    "one key head": {"heads": (3, 1), "window": 4},
    "heads that ranks do not divide": {"heads": (4, 2), "forms": ("ring",)},
    "shorter than pieces of 64": {"length": 6},
    "bf16": {"dtype": torch.bfloat16, "tolerance": 2e-2},
    "compiled": {"documents": DOCUMENTS, "compiled": True},
    "recomputed": {"documents": DOCUMENTS, "recompute": "full"},
    "recomputed in part": {"recompute": "selective"},
}


def largest_errors() -> dict[str, float]:
    """Case and form -> the largest error of this rank, as a share of what is allowed."""
    mesh = make_mesh(1, context_size=dist.get_world_size())
    return {
        f"{name}, {form}": _error(context_parallel(mesh, form), **case)
        for name, case in CASES.items()
        for form in case.pop("forms", ("ulysses", "ring"))
    }


def _error(
    context: ContextParallel,
    *,
    heads: tuple[int, int] = (6, 6),
    length: int = LENGTH,
    dtype: torch.dtype = torch.float64,
    tolerance: float = 1e-11,
    compiled: bool = False,
    recompute: str = "none",
    documents: torch.Tensor | None = None,
    **how: Any,
) -> float:
    q, k, v = (x.detach() for x in tensors((2, length, length), heads, 8, dtype))
    labels = torch.zeros((2, length), dtype=torch.int64)
    batch = Batch(labels, labels, documents).cut(context.own(length))
    assert batch.piece is not None
    place = [at for start, stop in batch.piece.ranges for at in range(start, stop)]
    above = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    wide = [x.double().requires_grad_() for x in (q, k, v)]
    expected = dense(*wide, documents=documents, **how)
    gradients = torch.autograd.grad(expected, wide, above.double())

    def attend(*mine: torch.Tensor) -> torch.Tensor:
        def inner(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return attend_across_ranks(sdpa, q, k, v, context, batch.piece, **how)

        return recomputed(recompute, inner, *mine, random=False)

    if compiled:
        attend = torch.compile(attend, backend="aot_eager", fullgraph=True)
    mine = [x[:, place].clone().requires_grad_() for x in (q, k, v)]
    out = attend(*mine)
    found = [out, *torch.autograd.grad(out, mine, above[:, place])]
    wanted = [x[:, place] for x in (expected, *gradients)]
    errors = [(a.double() - b).norm() / b.norm() for a, b in zip(found, wanted, strict=True)]
    return float(torch.stack(errors).max()) / tolerance
