"""Registered models on several processes; what the tests of the engines launch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F

import llmkit
from llmkit.batch import IGNORE, Batch
from llmkit.config.load import Loaded
from llmkit.config.registered import config_class
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.layers import Embedding, FusedColumnLinear, Head, RMSNorm, RowLinear, reduce_from_group
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parity.state import gather_state
from llmkit.parity.subjects import RandomWeights
from llmkit.plan import DeviceFacts, Known, resolve_plan
from llmkit.plan.buckets import BucketSizes

BUCKETS = BucketSizes(native=2_000, persistent=20)
"""So that there are several; and at stage 3 matrices are partitioned, vectors are not."""
VOCABULARY, ROWS, LENGTH, STEPS = 53, 4, 12, 4
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@llmkit.register("model", "sharded-test-model")
class Sharded(llmkit.Model):
    """Gated layers over the mean of what came before; all parameters in layers that can be sharded."""

    supports = ("sequence_parallel",)

    class Config(llmkit.Section):
        """Its one size."""

        width: int = 12
        """Width of everything."""

    def __init__(self, config: Config, context: llmkit.ModelContext) -> None:
        super().__init__()
        tp, width = context.tp, config.width
        self.tp = tp
        self.embedding = Embedding(context.vocab_size, width, tp)
        self.norm = RMSNorm(width, 1e-5, tp.sequence_group)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "into": FusedColumnLinear(width, {"gate": 2 * width, "up": 2 * width}, True, tp),
                    "out": RowLinear(2 * width, width, True, tp),
                }
            )
            for _ in range(2)
        )
        self.head = Head(context.vocab_size, width, tp)

    def forward(self, batch: Batch) -> llmkit.LossSum:
        x, inner = self.embedding(batch.tokens), batch.tokens.new_zeros((), dtype=torch.float32)
        for block in self.blocks:
            gate, up = block["into"](self.norm(x))
            count = torch.arange(1, gate.shape[1] + 1)[:, None]
            x = x + block["out"](F.silu(gate.cumsum(1) / count) * up)
            inner = inner + reduce_from_group(up.square().sum(), self.tp.group)  # each rank has its columns
        loss = self.head(x, batch.labels)
        sizes = 0.01 * (reduce_from_group(x.square().sum(), self.tp.sequence_group) + inner)
        extras = {"sizes": sizes, "count": loss.targets.sum().float()}  # the first is minimised, too
        return loss._replace(extras=extras)


def example(name: str) -> None:
    """Imports an example, which registers what it brings."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def make(
    mesh: Mesh,
    model: dict[str, Any],
    optimizer: dict[str, Any],
    precision: str = "fp32",
    train: Mapping[str, Any] = MappingProxyType({}),
    **parallel: Any,
) -> Engine:
    """An engine of a registered model with random weights everywhere."""
    content = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": LENGTH},
        "train": {
            "max_steps": 9, "gradient_clipping": 0.5, "global_batch_size": ROWS, "precision": precision,
            **train,
        },
        "optimizer": {"eps": 1e-5, "learning_rate": 0.01, **optimizer},
        "parallel": {"world_size": mesh.world_size, "tensor_parallel_size": mesh["tensor"].size, **parallel},
        "kernels": {"compile": False},
        "model": model,
    }  # fmt: skip
    config = config_class(content).model_validate(content)
    known = Known(mesh.world_size, tokenizer_size=VOCABULARY, device=DeviceFacts())
    plan = resolve_plan(Loaded.of(config), known)
    engine = build_engine(plan, mesh, device=torch.device("cpu"), buckets=BUCKETS)
    engine.write_pieces(Weights(engine), 0)
    return engine


class Weights(RandomWeights):
    """Random values of every tensor, biases and norms too, whatever the layout."""

    def __init__(self, engine: Engine) -> None:
        shapes = {p.name: p.shape for each in engine.model.parameter_slices().values() for p in each}
        self.tensors = {
            name: torch.randn(shape, generator=torch.Generator().manual_seed(len(name) * 97 + sum(shape)))
            * 0.2
            for name, shape in shapes.items()
        }


def train(engine: Engine, mesh: Mesh) -> list[float]:
    """The loss of each step, and the model's further sums, as means over targets."""
    losses: list[float] = []
    for step in range(STEPS):
        tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
        labels = tokens.roll(-1, 1)
        for row in range(ROWS):
            labels[row, : 2 * row] = IGNORE
        targets = int((labels != IGNORE).sum())
        mine = slice(mesh["data"].rank, None, mesh["data"].size)
        result = engine.train_step([Batch(tokens[mine], labels[mine])], targets)
        losses += [float(total) / targets for total in (result.loss_sum, *result.extras.values())]
    return losses


def compare(cases: Sequence[dict[str, Any]], tensor_size: int) -> list[dict[str, Any]]:
    """Each case beside one process: losses of both, and the worst error of a tensor of the state."""
    of_transformers = ["hf_model"] if any(case["model"]["type"] == "hf" for case in cases) else []
    for name in ["own_model", "own_optimizer", *of_transformers]:
        example(name)
    mesh, found = make_mesh(tensor_size), []
    for case in cases:
        alone = make(Mesh(), case["model"], case["optimizer"])
        parallel = {"zero_stage": case["stage"]} | case.get("parallel", {})
        spread = make(mesh, case["model"], case["optimizer"], **parallel)
        losses = [train(alone, Mesh()), train(spread, mesh)]
        kinds = {piece.kind for piece in alone.read_pieces()}
        wanted, have = gather_state(alone, Mesh(), kinds), gather_state(spread, mesh, kinds)
        errors = {
            f"{kind} {name}": float((have[kind][name] - tensor).norm() / tensor.norm())
            for kind, tensors in wanted.items()
            for name, tensor in tensors.items()
        }
        worst = max(errors, key=errors.__getitem__)
        found.append({"losses": losses, "worst": [worst, errors[worst]], "kinds": sorted(kinds)})
        spread.close()
    return found
