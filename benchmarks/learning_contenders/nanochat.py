"""nanochat's recipe (github.com/karpathy/nanochat, summer of 2026), written anew from what it publishes.

RMSNorm without weights, rotary positions, normed queries and keys, ReLU^2, no biases, an untied head with
capped logits. Beside that: tables of value embeddings on every second layer, added through a gate; learned
scalars for the residual stream and for the first embedding on each layer; a gate that mixes the embedding of
the token before into each token's; a share of the middle layer's stream taken off before the head. Muon for
the blocks' matrices, AdamW for the rest, with rates, betas and decay for each kind of parameter.

Differences: attention sees all of a row, which its text recommends where there is no kernel for windows;
embeddings are kept in fp32. Its rule for batches other than 2^19 tokens (rates by the root of the ratio)
would make all rates of the demo a sixteenth; the sweep of the rates' factor decides instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.learning_contenders import Task
from benchmarks.learning_contenders.normuon import NorMuon
from benchmarks.learning_contenders.plain import Plain, set_rates, summed_cross_entropy
from benchmarks.learning_sizes import Size

ROPE_THETA, QK_SCALE, LOGIT_CAP = 100_000.0, 1.2, 15.0
GATE_INPUTS, GATE_SCALE, SMEAR_INPUTS = 12, 3.0, 24
EMBEDDING_STD, HEAD_STD, UP_SCALE, GATE_RANGE = 0.8, 0.001, 0.4, 0.02
RESIDUAL, FIRST, BACKOUT = (1.15, 1.05), (0.20, 0.05), 0.2
"""Initial scalars: of the first and the last layer, linear between them; and of the middle layer's share."""

RATES = {"matrix": 0.02, "head": 0.008, "embedding": 0.3, "value": 0.15, "residual": 0.005, "first": 0.5,
         "gate": 0.2}  # fmt: skip
ADAMW = {
    # betas and weight decay
    "head": ((0.8, 0.96), 0.01),
    "embedding": ((0.8, 0.995), 0.001),
    "value": ((0.8, 0.995), 0.01),
    "residual": ((0.8, 0.95), 0.05),
    "first": ((0.96, 0.95), 0.0),
    "gate": ((0.8, 0.95), 0.0),
}
BY_WIDTH = ("head", "embedding", "value")
"""Kinds whose rates go with the width to the power of -1/2, and hold at 768."""
EPS, WEIGHT_DECAY = 1e-10, 0.28
WARMUP_STEPS, WARMDOWN_SHARE, FINAL_SHARE = 40, 0.65, 0.05
MOMENTUM, MOMENTUM_STEPS = (0.85, 0.97, 0.90), 400
"""At the start, after its ramp of so many steps, and at the end."""
REFERENCE_DEPTH, REFERENCE_WIDTH, REFERENCE_BATCH = 12, 768, 2**19


def kv_heads(name: str, size: Size) -> int:
    """nanochat has as many heads of keys and values as of queries; by its own name it has the size's here."""
    return size.heads if name.endswith("-mha") else size.kv_heads


def settings(name: str, size: Size) -> dict[str, Any]:
    """The recipe."""
    return {
        "shape": [size.layers, size.width, size.heads, kv_heads(name, size)],
        "model": [ROPE_THETA, QK_SCALE, LOGIT_CAP, GATE_INPUTS, GATE_SCALE, SMEAR_INPUTS],
        "initial": [EMBEDDING_STD, HEAD_STD, UP_SCALE, GATE_RANGE, list(RESIDUAL), list(FIRST), BACKOUT],
        "rates": RATES,
        "adamw": {kind: [list(betas), decay, EPS] for kind, (betas, decay) in ADAMW.items()},
        "weight_decay": WEIGHT_DECAY,
        "schedule": [WARMUP_STEPS, WARMDOWN_SHARE, FINAL_SHARE, list(MOMENTUM), MOMENTUM_STEPS],
    }


def build(name: str, task: Task) -> Plain:
    """The model with its optimizers."""
    torch.manual_seed(task.seed)
    dtype = torch.bfloat16 if task.precision == "bf16" else torch.float32
    model = GPT(task.size, kv_heads(name, task.size), task.text.vocabulary, dtype)
    kinds = model.kinds()
    by_width = (task.size.width / REFERENCE_WIDTH) ** -0.5
    rates = {
        kind: task.factor * rate * (by_width if kind in BY_WIDTH else 1.0) for kind, rate in RATES.items()
    }
    groups = [
        {"params": kinds[kind], "betas": betas, "weight_decay": decay, "eps": EPS}
        for kind, (betas, decay) in ADAMW.items()
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, fused=True)
    muon = NorMuon(kinds["matrix"], dtype=dtype, compiled=task.compiled)
    decay = weight_decay(sum(p.numel() for p in [*kinds["matrix"], *kinds["head"]]), task)

    def update(number: int) -> None:
        share = rate_share(number, task.steps)
        set_rates(adamw.param_groups, [share * rates[kind] for kind in ADAMW])
        adamw.step()
        muon.step(
            rate=share * rates["matrix"],
            momentum=momentum(number, task.steps),
            weight_decay=decay * 0.5 * (1.0 + math.cos(math.pi * (number - 1) / task.steps)),
        )

    def loss(tokens: Tensor, labels: Tensor) -> Tensor:
        return summed_cross_entropy(model(tokens), labels)

    return Plain(model, loss, update, compiled=task.compiled, autocast=False)


def rate_share(number: int, steps: int) -> float:
    """Share of the rates at step `number` (1 = the first): linear up, constant, linear to a twentieth."""
    warmdown, done = round(WARMDOWN_SHARE * steps), number - 1
    if done < WARMUP_STEPS:
        return number / WARMUP_STEPS
    if done <= steps - warmdown:
        return 1.0
    left = (steps - done) / warmdown
    return left + (1.0 - left) * FINAL_SHARE


def momentum(number: int, steps: int) -> float:
    """Muon's momentum at step `number`: up in 400 steps, down again while the rates fall."""
    warmdown, done = round(WARMDOWN_SHARE * steps), number - 1
    start, middle, end = MOMENTUM
    if done < MOMENTUM_STEPS:
        return start + (middle - start) * done / MOMENTUM_STEPS
    fallen = max(0.0, (done - (steps - warmdown)) / warmdown)
    return middle + (end - middle) * fallen


def weight_decay(parameters: int, task: Task) -> float:
    """Muon's weight decay: that of 12 layers of 768, by the batch and by the tokens that such a model gets.

    parameters: of the matrices and the head; the recipe takes tokens in proportion to them.
    """
    reference = 12 * REFERENCE_DEPTH * REFERENCE_WIDTH**2 + task.text.vocabulary * REFERENCE_WIDTH
    batch = math.sqrt(task.size.step_tokens / REFERENCE_BATCH)
    return WEIGHT_DECAY * batch * reference / parameters


class Linear(nn.Module):
    """A product with fp32 weights in the type of its input, without a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    """RMSNorm without weights."""
    return F.rms_norm(x, (x.shape[-1],))


class Attention(nn.Module):
    """Causal attention whose values may get an embedding of their own."""

    def __init__(self, size: Size, kv_heads: int, has_value_embedding: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = size.heads, kv_heads, size.width // size.heads
        self.q = Linear(size.width, size.heads * self.head_size)
        self.k = Linear(size.width, kv_heads * self.head_size)
        self.v = Linear(size.width, kv_heads * self.head_size)
        self.out = Linear(size.heads * self.head_size, size.width)
        self.gate = Linear(GATE_INPUTS, kv_heads) if has_value_embedding else None

    def forward(self, x: Tensor, value_embedding: Tensor | None, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """x: (batch, seq, width); value_embedding: (batch, seq, width of the values)."""
        rows, length, _ = x.shape
        q = self.q(x).view(rows, length, self.heads, self.head_size)
        k = self.k(x).view(rows, length, self.kv_heads, self.head_size)
        v = self.v(x).view(rows, length, self.kv_heads, self.head_size)
        if self.gate is not None and value_embedding is not None:
            gate = GATE_SCALE * torch.sigmoid(self.gate(x[..., :GATE_INPUTS]))
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v)
        q, k = (QK_SCALE * norm(rotate(each, *rotation)) for each in (q, k))
        shared = self.heads // self.kv_heads
        q, k, v = q.transpose(1, 2), *(each.transpose(1, 2).repeat_interleave(shared, 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(rows, length, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, pairs half a head apart. x: (batch, seq, heads, size); others: (seq, 1, size / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


class Block(nn.Module):
    """Attention and an MLP with ReLU^2."""

    def __init__(self, size: Size, kv_heads: int, has_value_embedding: bool) -> None:
        super().__init__()
        self.attention = Attention(size, kv_heads, has_value_embedding)
        self.up = Linear(size.width, 4 * size.width)
        self.down = Linear(4 * size.width, size.width)

    def forward(self, x: Tensor, value_embedding: Tensor | None, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """(batch, seq, width) -> the same."""
        x = x + self.attention(norm(x), value_embedding, rotation)
        return x + self.down(F.relu(self.up(norm(x))).square())


class GPT(nn.Module):
    """Tokens -> capped logits in fp32."""

    def __init__(self, size: Size, kv_heads: int, vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        head_size = size.width // size.heads
        with_values = [layer for layer in range(size.layers) if layer % 2 == (size.layers - 1) % 2]
        self.dtype = dtype
        self.embedding = nn.Parameter(torch.empty(vocabulary, size.width))
        self.head = Linear(size.width, vocabulary)
        self.blocks = nn.ModuleList(Block(size, kv_heads, i in with_values) for i in range(size.layers))
        tables = {str(i): nn.Parameter(torch.empty(vocabulary, kv_heads * head_size)) for i in with_values}
        self.value_embeddings = nn.ParameterDict(tables)
        self.tables = {i: str(i) for i in with_values}
        self.residual = nn.Parameter(torch.linspace(*RESIDUAL, size.layers))
        self.first = nn.Parameter(torch.linspace(*FIRST, size.layers))
        self.smear_gate = Linear(SMEAR_INPUTS, 1)
        self.smear = nn.Parameter(torch.zeros(()))
        self.backout = nn.Parameter(torch.tensor(BACKOUT))
        frequencies = ROPE_THETA ** (-torch.arange(0, head_size, 2) / head_size)
        angles = torch.arange(size.length)[:, None, None] * frequencies
        self.register_buffer("cos", angles.cos().to(dtype))
        self.register_buffer("sin", angles.sin().to(dtype))
        self._draw(size.width)

    @torch.no_grad()
    def _draw(self, width: int) -> None:
        """Initial weights: what ends a branch is zero, other matrices are uniform with std width^-1/2."""
        bound = math.sqrt(3.0 / width)
        nn.init.normal_(self.embedding, std=EMBEDDING_STD)
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        for block in self.blocks:
            for matrix in (block.attention.q, block.attention.k, block.attention.v):
                nn.init.uniform_(matrix.weight, -bound, bound)
            nn.init.uniform_(block.up.weight, -UP_SCALE * bound, UP_SCALE * bound)
            nn.init.zeros_(block.attention.out.weight)
            nn.init.zeros_(block.down.weight)
            if block.attention.gate is not None:
                nn.init.uniform_(block.attention.gate.weight, 0.0, GATE_RANGE)
        for table in self.value_embeddings.values():
            nn.init.uniform_(table, -bound, bound)
        nn.init.uniform_(self.smear_gate.weight, 0.0, GATE_RANGE)

    def kinds(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by what updates them: the names of RATES."""
        return {
            "matrix": list(self.blocks.parameters()),
            "head": [self.head.weight],
            "embedding": [self.embedding],
            "value": list(self.value_embeddings.values()),
            "residual": [self.residual],
            "first": [self.first],
            "gate": [self.smear_gate.weight, self.smear, self.backout],
        }

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, seq) -> (batch, seq, vocabulary)."""
        x = norm(F.embedding(tokens, self.embedding).to(self.dtype))
        gate = self.smear * torch.sigmoid(self.smear_gate(x[:, 1:, :SMEAR_INPUTS]))
        x = first = torch.cat((x[:, :1], x[:, 1:] + gate * x[:, :-1]), dim=1)
        rotation = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        middle = x
        for layer, block in enumerate(self.blocks):
            x = self.residual[layer] * x + self.first[layer] * first
            values = None
            if layer in self.tables:
                values = F.embedding(tokens, self.value_embeddings[self.tables[layer]]).to(x.dtype)
            x = block(x, values, rotation)
            if layer == len(self.blocks) // 2:
                middle = x
        logits = self.head(norm(x - self.backout * middle)).float()
        return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)
