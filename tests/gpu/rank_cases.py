"""What the processes of `test_many.py` run."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch

from llmkit.device import device_facts
from llmkit.engine.build import build_engine
from llmkit.parallel.rank_info import rank_info_from_env
from llmkit.parallel.world import process_group
from llmkit.parity.state import gather_state
from llmkit.parity.subjects import MODELS, ROWS, RandomWeights, count_targets, global_batch, share
from llmkit.plan import plan_for_shape
from llmkit.plan.buckets import BucketSizes
from tests.limits import HANG

DELAY = 200_000_000
"""Clock cycles, about 0.1 s, that a reduction waits for while the backward pass goes on."""
BUCKETS = BucketSizes(native=4000, deepspeed=3000, persistent=60)
"""Gradients of most matrices are larger than DeepSpeed's bucket, and so reduced where they lie."""


def train(stage: int, delayed: bool) -> dict[str, Any]:
    """Losses of three steps, and norms of the masters. delayed: reductions on a side stream begin late."""
    with process_group(rank_info_from_env(os.environ), timedelta(seconds=HANG), needs_group=True) as joined:
        mesh = joined.split()
        settings = {
            "data": {"sources": [{"type": "stdlib"}], "sequence_length": 32},
            "train": {"max_steps": 3, "global_batch_size": ROWS, "micro_batch_size": 1, "precision": "bf16"},
            "parallel": {"world_size": joined.world_size, "zero_stage": stage},
            "kernels": {"compile": False, "backend": "torch"},
            "optimizer": {"learning_rate": 1e-2},
        }
        shape = MODELS["modern"]
        plan = plan_for_shape(shape, settings, device_facts(joined.device))
        engine = build_engine(plan, mesh, device=joined.device, buckets=BUCKETS)
        engine.write_pieces(RandomWeights(shape), optimizer_steps=0)
        late = delay_reductions(engine.zero) if delayed else [0]  # type: ignore[attr-defined]
        losses = []
        for step in range(3):
            batch = global_batch(shape, step, masked=False)
            mine = share(batch, mesh["data"].rank, mesh["data"].size, plan.accumulation_steps)
            result = engine.train_step([each.to(joined.device) for each in mine], count_targets(batch))
            losses.append(float(result.loss_sum) / result.targets)
        masters = gather_state(engine, mesh, ["master"])["master"]
        norms = {name: float(tensor.double().norm()) for name, tensor in masters.items()}
        engine.close()
        return {"losses": losses, "norms": norms, "late": late[0]}


def delay_reductions(zero: Any) -> list[int]:
    """Lets each reduction begin late on its stream; counts them."""
    average, count = zero.average_tensor, [0]

    def late(*arguments: Any) -> Any:
        count[0] += 1
        if torch.cuda.is_available():
            with torch.cuda.stream(zero.reduction_stream):
                torch.cuda._sleep(DELAY)
        return average(*arguments)

    zero.average_tensor = late
    return count
