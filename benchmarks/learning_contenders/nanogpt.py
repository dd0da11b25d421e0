"""nanoGPT's recipe: GPT-2's blocks without biases, AdamW with one learning rate, a cosine to a tenth.

By its published settings for GPT-2 (github.com/karpathy/nanoGPT, train.py). Of its 600,000 steps 2,000 warm
up; of a run of a thousand that would be three, so that here the share of its small configuration holds, a
fiftieth. Dropout is 0, as there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.learning_contenders import Task
from benchmarks.learning_contenders.plain import Plain, adamw_update, summed_cross_entropy
from benchmarks.learning_sizes import Size

LEARNING_RATE, FINAL_SHARE, WARMUP_SHARE = 6e-4, 0.1, 0.02
BETAS, EPS, WEIGHT_DECAY, CLIPPING = (0.9, 0.95), 1e-8, 0.1, 1.0
INITIAL_STD = 0.02


def settings(name: str, size: Size) -> dict[str, Any]:
    """The recipe."""
    return {
        "shape": [size.layers, size.width, size.heads, size.length],
        "learning_rate": LEARNING_RATE, "final_share": FINAL_SHARE, "warmup_share": WARMUP_SHARE,
        "betas": list(BETAS), "eps": EPS, "weight_decay": WEIGHT_DECAY, "clipping": CLIPPING,
        "initial_std": INITIAL_STD,
    }  # fmt: skip


def build(name: str, task: Task) -> Plain:
    """The model with its optimizer."""
    torch.manual_seed(task.seed)
    model = GPT(task.size, task.text.vocabulary)
    update = adamw_update(
        model,
        rate=lambda number: task.factor * LEARNING_RATE * rate_share(number, task.steps),
        betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, clipping=CLIPPING,
    )  # fmt: skip

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        return summed_cross_entropy(model(tokens), labels)

    return Plain(model, loss, update, compiled=task.compiled, autocast=task.precision == "bf16")


def rate_share(number: int, steps: int) -> float:
    """Share of the learning rate at step `number` (1 = the first): linear warm-up, then half a cosine."""
    warmup = round(WARMUP_SHARE * steps)
    if number <= warmup:
        return number / (warmup + 1)
    done = (number - warmup) / max(1, steps - warmup)
    return FINAL_SHARE + (1.0 - FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * done))


class Block(nn.Module):
    """LayerNorm, attention, LayerNorm, an MLP with GELU of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq, width) -> the same."""
        rows, length, width = x.shape
        parts = self.qkv(self.attention_norm(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """Learned positions, and a head that is the embedding; tokens -> logits."""

    def __init__(self, size: Size, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size.width)
        self.positions = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=INITIAL_STD / math.sqrt(2 * size.layers if last else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, seq) -> (batch, seq, vocabulary)."""
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)
