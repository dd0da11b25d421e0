"""A model whose parameters are not all trained, or not by every batch; what `test_used.py` launches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llmkit
from llmkit.batch import IGNORE, Batch
from llmkit.config.load import Loaded
from llmkit.config.registered import config_class
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.errors import UserError
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parity.state import gather_state
from llmkit.plan import DeviceFacts, Known, resolve_plan
from llmkit.plan.buckets import BucketSizes
from tests.engine.custom_models import Weights

VOCABULARY, ROWS, LENGTH, STEPS = 53, 6, 12, 4
RARE = 50
"""Tokens from here on come in two rows of the global batch, the first and the last."""


@llmkit.register("model", "irregular-test-model")
class Irregular(llmkit.Model):
    """Blocks of odd sizes, learned positions, an output head tied to the embedding."""

    class Config(llmkit.Section):
        """What is irregular."""

        frozen: bool = False
        """Whether the embedding and the first block's matrix are not trained."""
        unused: bool = False
        """Whether there are parameters that nothing uses."""
        strided: bool = False
        """Whether parameters do not lie row by row in memory."""
        rare: bool = False
        """Whether an expert is used only by rows with rare tokens."""
        counted: bool = False
        """Whether uses of the expert are an extra sum."""

    def __init__(self, config: Config, context: llmkit.ModelContext) -> None:
        super().__init__()
        self.config = config
        self.aside = nn.Linear(5, 7) if config.unused else None
        self.embedding = nn.Embedding(context.vocab_size, 13)
        self.positions = nn.Parameter(torch.empty(LENGTH, 13))
        self.scale = nn.Parameter(torch.empty(1))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(13, 29), "down": nn.Linear(29, 13)}) for _ in range(2)
        )
        self.expert = nn.ModuleList([nn.Linear(13, 13), nn.Linear(13, 13)])
        if config.strided:
            self.positions = nn.Parameter(torch.empty(13, LENGTH).mT)
            self.blocks[1]["up"].weight = nn.Parameter(torch.empty(13, 29).mT)
        self.norm = nn.LayerNorm(13)
        if config.frozen:
            self.embedding.requires_grad_(False)
            self.blocks[0]["up"].weight.requires_grad_(False)
            self.norm.bias.requires_grad_(False)

    def forward(self, batch: Batch) -> llmkit.LossSum:
        x = self.embedding(batch.tokens) * self.scale + self.positions
        for block in self.blocks:
            x = x + block["down"](F.gelu(block["up"](self.norm(x.cumsum(1) / 3))))
        extras = {}
        if not self.config.rare or bool((batch.tokens >= RARE).any()):  # batches are single rows
            x = x + self.expert[1](torch.tanh(self.expert[0](x)))
            extras = {"rare rows": torch.ones(())} if self.config.counted else {}
        loss = llmkit.LossSum.of_logits(self.norm(x) @ self.embedding.weight.mT, batch.labels)
        return loss._replace(extras=extras)


def make(mesh: Mesh, model: dict[str, Any], optimizer: str, **parallel: Any) -> Engine:
    """An engine of this model with micro-batches of one row, small buckets and random weights."""
    content = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": LENGTH},
        "train": {
            "max_steps": 9,
            "gradient_clipping": 0.5,
            "global_batch_size": ROWS,
            "micro_batch_size": 1,
            "precision": "fp32",
        },
        "optimizer": {
            "eps": 1e-5, "learning_rate": 0.01, "name": optimizer,
            "groups": [{"params": ["scale"], "learning_rate": 0.03, "weight_decay": 0.1}],  # one element
        },
        "parallel": {"world_size": mesh.world_size, **parallel},
        "kernels": {"compile": False},
        "model": {"type": "irregular-test-model", **model},
    }  # fmt: skip
    config = config_class(content).model_validate(content)
    known = Known(mesh.world_size, tokenizer_size=VOCABULARY, device=DeviceFacts())
    buckets = BucketSizes(native=1500, deepspeed=512, persistent=20)
    plan = resolve_plan(Loaded.of(config), known)
    engine = build_engine(plan, mesh, device=torch.device("cpu"), buckets=buckets)
    engine.write_pieces(Weights(engine), 0)
    return engine


def global_batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens and labels; rows have different numbers of targets, those of the second of 3 ranks none."""
    tokens = torch.randint(RARE, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
    if step != 1:
        tokens[0, 3] = tokens[-1, 5] = RARE + 1
    labels = tokens.roll(-1, 1)
    for row in range(ROWS):
        labels[row, : 2 * row] = IGNORE
    labels[1::3] = IGNORE
    return tokens, labels


def train(engine: Engine, mesh: Mesh) -> list[list[float]]:
    """(loss, gradient norm, skipped) of each step."""
    rows = []
    for step in range(STEPS):
        tokens, labels = global_batch(step)
        targets = int((labels != IGNORE).sum())
        mine = slice(mesh["data"].rank, None, mesh["data"].size)
        batches = [Batch(t[None], y[None]) for t, y in zip(tokens[mine], labels[mine], strict=True)]
        result = engine.train_step(batches, targets)
        rows.append([float(result.loss_sum) / targets, float(result.grad_norm), float(result.skipped)])
    return rows


def compare(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case beside one process: the steps of both, and the worst error of a tensor of the state."""
    mesh, found = make_mesh(1), []
    for case in cases:
        alone = make(Mesh(), case["model"], "muon")
        spread = make(mesh, case["model"], "muon", **case["parallel"])
        rows = [train(alone, Mesh()), train(spread, mesh)]
        kinds = {piece.kind for piece in alone.read_pieces()}
        wanted, have = gather_state(alone, Mesh(), kinds), gather_state(spread, mesh, kinds)
        errors = {
            f"{kind} {name}": float((have[kind][name] - tensor).norm() / (tensor.norm() + 1e-12))
            for kind, tensors in wanted.items()
            for name, tensor in tensors.items()
        }
        worst = max(errors, key=errors.__getitem__)
        updates = [alone.optimizer_steps, spread.optimizer_steps]
        found.append({"rows": rows, "worst": [worst, errors[worst]], "updates": updates})
        spread.close()
    return found


def refused(cases: Sequence[dict[str, Any]]) -> list[str]:
    """The message of each case."""
    mesh, messages = make_mesh(1), []
    for case in cases:
        with pytest.raises(UserError) as error:
            train(make(mesh, case["model"], "adamw", **case["parallel"]), mesh)
        messages.append(str(error.value))
    return messages
