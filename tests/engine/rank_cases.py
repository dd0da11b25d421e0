"""What the processes of the engine tests run; each returns figures, the tests judge them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import IGNORE, Batch, LossSum
from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.engine.native import NativeEngine
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parity.subjects import MODELS, RandomWeights
from llmkit.plan import DeviceFacts, plan_for_shape
from llmkit.plan.buckets import BucketSizes
from llmkit.precision import PRECISIONS
from tests.limits import HANG
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

EXPERTS = replace(
    MODELS["two-experts"], moe=MODELS["two-experts"].moe.model_copy(update={"bias_update_rate": 0.02})
)
SHAPES = {"gpt2": GPT2_STYLE, "llama": LLAMA_STYLE, "experts": EXPERTS}
ROWS, LENGTH = 4, 24
CPU = torch.device("cpu")
BUCKETS = BucketSizes(native=8_000, persistent=60)
"""So that small models have several of them; at stage 3 matrices are partitioned, some vectors are not."""
ENGINES: dict[str, dict[str, Any]] = {
    "native 0": {"zero_stage": 0, "engine": "native"},
    "native 1": {"zero_stage": 1, "engine": "native"},
    "native 2": {"zero_stage": 2, "engine": "native"},
    "deepspeed 1": {"zero_stage": 1, "engine": "deepspeed"},
    "deepspeed 2": {"zero_stage": 2},
    "deepspeed 3": {"zero_stage": 3},
}
CONFIG: dict[str, Any] = {
    "data": {"sources": [{"type": "stdlib"}], "sequence_length": LENGTH},
    "train": {"max_steps": 10, "gradient_clipping": 0.5, "global_batch_size": ROWS},
    "optimizer": {"eps": 1e-5, "learning_rate": 1e-2},
    "kernels": {"compile": False, "operators": {"attention": "sdpa"}},
}


class Weights(RandomWeights):
    """The values of a whole model as a source of state."""

    def __init__(self, model: GPT) -> None:
        stored = dict(model.named_parameters())
        self.tensors = {
            part.name: stored[name][part.start : part.stop].detach().clone()
            for name, parts in model.parameter_slices().items()
            for part in parts
        }
        self.reads = 0

    def read(self, *arguments: Any, **options: Any) -> Tensor:
        self.reads += 1
        return super().read(*arguments, **options)


def step_batches(shape: ModelShape, step: int, mesh: Mesh, accumulation: int) -> tuple[list[Batch], int]:
    """This rank's micro-batches of a global batch whose rows have different numbers of targets.

    Ranks along the context dimension, too, take rows: sums of loss and gradient do not know the difference.
    """
    generator = torch.Generator().manual_seed(100 + step)
    tokens, labels = torch.randint(shape.vocab_size, (2, ROWS, LENGTH), generator=generator).unbind()
    labels = labels.clone()
    for row in range(ROWS):
        labels[row, : 4 * row] = IGNORE
    targets = int((labels != IGNORE).sum())
    shares = mesh["data", "context"]
    mine = slice(shares.rank, None, shares.size)
    pairs = zip(tokens[mine].chunk(accumulation), labels[mine].chunk(accumulation), strict=True)
    return [Batch(t, y) for t, y in pairs], targets


def train(engine: Engine, shape: ModelShape, mesh: Mesh, accumulation: int, steps: Sequence[int]) -> list:
    """(loss, gradient norm, skipped) of each step."""
    rows = []
    for step in steps:
        micro_batches, targets = step_batches(shape, step, mesh, accumulation)
        device = next(iter(engine.model.parameters())).device
        result = engine.train_step([batch.to(device) for batch in micro_batches], targets)
        rows.append([float(result.loss_sum) / targets, float(result.grad_norm), float(result.skipped)])
    return rows


def configured(optimizer: str) -> Config:
    """The configuration with this optimizer."""
    return Config.model_validate({**CONFIG, "optimizer": {**CONFIG["optimizer"], "name": optimizer}})


def reference(
    style: str, precision: str, accumulation: int, steps: int, optimizer: str
) -> tuple[NativeEngine, list]:
    """The same steps on one process."""
    shape = SHAPES[style]
    config = configured(optimizer)
    engine = NativeEngine(
        GPT(shape), config.optimizer, precision=PRECISIONS[precision], gradient_clipping=0.5
    )
    engine.write_pieces(Weights(random_model(shape)), 0)
    return engine, train(engine, shape, Mesh(), accumulation, range(steps))


def make(
    style: str,
    stage: str,
    mesh: Mesh,
    precision: str,
    accumulation: int,
    device: torch.device = CPU,
    optimizer: str = "adamw",
    **options: Any,
) -> tuple[Engine, ModelShape]:
    """An engine on this mesh with the random weights of `tests.shapes`; only DeepSpeed's offload anything."""
    if stage.startswith("native"):
        options = {**options, "offload": "none"}
    shape = SHAPES[style]
    micro_batch = ROWS // mesh["data", "context"].size // accumulation
    settings = {
        **CONFIG,
        "optimizer": {**CONFIG["optimizer"], "name": optimizer},
        "train": {**CONFIG["train"], "precision": precision, "micro_batch_size": micro_batch},
        "parallel": {
            "world_size": mesh.world_size, "tensor_parallel_size": mesh["tensor"].size, **ENGINES[stage],
            **options,
        },
    }  # fmt: skip
    engine = build_engine(
        plan_for_shape(shape, settings, DeviceFacts()), mesh, device=device, buckets=BUCKETS
    )
    source = Weights(random_model(shape))
    engine.write_pieces(source, 0)
    if stage == "native 0" and mesh["expert"].size == 1:
        assert (source.reads > 0) == (mesh["data", "context"].rank == 0), "one rank reads for all"
    return engine, shape


def compare(
    style: str,
    precision: str,
    stages: list[str],
    accumulation: int,
    tensor_size: int,
    optimizer: str = "adamw",
    context_size: int = 1,
    **options: Any,
) -> dict:
    """Each stage beside one process: rows, the worst tensor of the state, an evaluation, coverage."""
    steps = 5
    mesh = make_mesh(tensor_size, context_size=context_size)
    whole_engine, rows = reference(style, precision, accumulation, steps, optimizer)
    expected = {(p.kind, p.name): p.data.view(p.shape) for p in whole_engine.read_pieces()}
    unseen = [step_batches(SHAPES[style], 99, Mesh(), 1)[0][0]]
    found: dict[str, Any] = {
        "reference": rows,
        "evaluation": whole_engine.evaluate(unseen).nats.double().sum().item(),
        "elements": sum(tensor.numel() for tensor in expected.values()),
    }
    for stage in stages:
        engine, shape = make(style, stage, mesh, precision, accumulation, optimizer=optimizer, **options)
        rows = train(engine, shape, mesh, accumulation, range(steps))
        elements, worst = 0, {kind: [0.0, ""] for kind in sorted({kind for kind, _ in expected})}
        for piece in engine.read_pieces():
            wanted = expected[piece.kind, piece.name]
            mine = wanted[tuple(slice(lo, hi) for lo, hi in piece.box)].reshape(-1)[slice(*piece.range)]
            error = (piece.data.cpu() - mine).norm() / wanted.norm()
            if "k_proj.bias" not in piece.name:  # its true gradient is 0: AdamW turns rounding into steps
                worst[piece.kind] = max(worst[piece.kind], [error.item(), piece.name])
            elements += piece.data.numel()
        nats = engine.evaluate(step_batches(shape, 99, mesh, 1)[0]).nats.double().sum()
        found[stage] = {
            "rows": rows,
            "worst": worst,
            "elements": elements,
            "evaluation": mesh["data", "context"].sum(nats).item(),
            "updates": engine.optimizer_steps,
        }
        engine.write_pieces(Weights(random_model(shape)), 0)
        found[stage]["again"] = train(engine, shape, mesh, accumulation, [0])[0]
        engine.close()
    return found


def void_steps(
    precision: str, stages: list[str], offload: str = "none", style: str = "llama", expert_size: int = 1
) -> dict:
    """One step has no target, in the next one rank's loss is not finite, or, where there are experts, what it
    makes of its tokens: what they did, and what followed."""
    mesh = make_mesh(1, expert_size=expert_size)
    found = {}
    for stage in stages:
        options = {"offload": offload, "expert_parallel_size": expert_size}
        engine, shape = make(style, stage, mesh, precision, 2, **options)
        poisoned = False

        def poison(module: object, inputs: object, output: Any) -> Any:
            if not poisoned or mesh.rank < mesh.world_size - 1:  # noqa: B023
                return output
            return replace_nats(output, math.nan) if isinstance(output, LossSum) else output * math.nan

        (engine.model.embedding if style == "experts" else engine.model).register_forward_hook(poison)
        train(engine, shape, mesh, 2, range(2))
        before = state_of(engine)
        micro_batches = step_batches(shape, 2, mesh, 2)[0]
        empty = [b._replace(labels=torch.full_like(b.labels, IGNORE)) for b in micro_batches]
        engine.train_step(empty, 0)
        untouched = all(data.equal(before[key]) for key, data in state_of(engine).items())
        poisoned = True
        refused = train(engine, shape, mesh, 2, [2])[0]
        poisoned = False
        same = all(data.equal(before[key]) for key, data in state_of(engine).items())
        after = train(engine, shape, mesh, 2, range(3, 6))
        skipped = refused[2] == 1.0 and not math.isfinite(refused[1])
        found[stage] = {
            "untouched": untouched, "skipped": skipped, "same": same, "rows": after,
            "updates": engine.optimizer_steps,
        }  # fmt: skip
        engine.close()
    return found


def state_of(engine: Engine) -> dict[Any, Tensor]:
    """Copies of all that this rank would save, biases of routers included."""
    return {(p.kind, p.name, p.box, p.range): p.data.clone() for p in engine.read_pieces()}


def replace_nats(loss: LossSum, factor: float) -> LossSum:
    return loss._replace(nats=loss.nats * factor)


def without_refused_step(precision: str, style: str = "llama") -> list:
    """The rows of `void_steps` after those, from one process that never saw them."""
    shape = SHAPES[style]
    config = Config.model_validate(CONFIG)
    engine = NativeEngine(
        GPT(shape), config.optimizer, precision=PRECISIONS[precision], gradient_clipping=0.5
    )
    engine.write_pieces(Weights(random_model(shape)), 0)
    return train(engine, shape, Mesh(), 2, [0, 1, 3, 4, 5])[2:]


def alone(precision: str) -> dict:
    """ZeRO in a world of one process, on the GPU where there is one; beside the native engine there."""
    from datetime import timedelta

    from llmkit.engine.deepspeed import import_deepspeed
    from llmkit.parallel.rank_info import RankInfo
    from llmkit.parallel.world import process_group

    import_deepspeed()
    found: dict[str, Any] = {}
    with process_group(RankInfo(), timedelta(seconds=HANG), needs_group=True) as joined:
        mesh, device = joined.split(), joined.device
        for stage in ENGINES:
            offload = "cpu" if stage == "deepspeed 2" else "none"
            engine, shape = make("llama", stage, mesh, precision, 2, device=device, offload=offload)
            found[stage] = train(engine, shape, mesh, 2, range(4))
            engine.close()
    return found
