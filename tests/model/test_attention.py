"""Attention against its formula head by head, in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.kernels.operators import Operators
from llmkit.model.attention import Attention
from llmkit.model.norm import RMSNorm
from llmkit.model.positions import BlockInputs, RopeTables
from llmkit.model.rope import rope_tables
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import LLAMA_STYLE, randomise

LENGTH = 9
SHAPES = {
    "grouped": LLAMA_STYLE,
    "norms and biases": replace(LLAMA_STYLE, attention_bias=True, qk_norm=True, sliding_window=4),
    "soft cap": replace(LLAMA_STYLE, attn_logit_softcapping=0.5),
}


def turned(x: torch.Tensor, norm: RMSNorm | None, rope: RopeTables) -> torch.Tensor:
    """(batch, seq, head_dim) of one head, normed and rotated."""
    if norm is not None:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight
    first, second = x.chunk(2, -1)
    cos, sin = (table.double() for table in rope)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def by_head(layer: Attention, x: torch.Tensor, documents: torch.Tensor, rope: RopeTables) -> torch.Tensor:
    """The same in fp64, a head at a time."""
    heads, kv_heads, width = 6, 2, LLAMA_STYLE.head_dim
    layer, x = layer.double(), x.double()
    q, k, v = layer.qkv(x)
    out = torch.zeros(*x.shape[:2], heads * width, dtype=torch.float64)
    for head in range(heads):
        group = head * kv_heads // heads
        query = q[..., head * width : (head + 1) * width]
        key, value = (each[..., group * width : (group + 1) * width] for each in (k, v))
        query, key = turned(query, layer.q_norm, rope), turned(key, layer.k_norm, rope)
        for row in range(x.shape[0]):
            for at in range(LENGTH):
                seen = [
                    j for j in range(at + 1)
                    if documents[row, j] == documents[row, at] and at - j < (layer.window or LENGTH)
                ]  # fmt: skip
                scores = key[row, seen] @ query[row, at] / width**0.5
                if layer.softcap is not None:
                    scores = layer.softcap * (scores / layer.softcap).tanh()
                weights = scores.softmax(0)
                out[row, at, head * width : (head + 1) * width] = weights @ value[row, seen]
    return layer.o_proj(out)


@pytest.mark.parametrize("attention", ["sdpa", "varlen", "blocks", "matmul"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_every_head_by_its_formula(shape, attention):
    layer = randomise(Attention(shape, 0, TensorParallel(), Operators.of({"attention": attention})))
    x = torch.randn(2, LENGTH, shape.hidden_size)
    documents = torch.tensor([[0] * 4 + [1] * 5, [0] * 9], dtype=torch.int32)
    rope = rope_tables(LENGTH, shape.head_dim, 1e3)
    found = layer(x, BlockInputs(rope, documents))
    wanted = by_head(layer, x, documents, rope)
    assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-6
