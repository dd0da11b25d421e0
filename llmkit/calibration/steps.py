"""Times whole steps of small models, and finds from them what pointwise operations take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from llmkit.batch import Batch
from llmkit.calibration.primitives import How, measured_rates
from llmkit.calibration.turns import seconds_in_turns
from llmkit.config.shape import ModelShape
from llmkit.engine.build import build_engine
from llmkit.estimate.calibration import MEASURED, CpuRates, cpu_fleet
from llmkit.estimate.computing import computing, pointwise_bytes
from llmkit.estimate.step_parts import step_parts
from llmkit.estimate.workload import Workload, workload_of
from llmkit.kernels.operators import Operators
from llmkit.optim.schedule import step_values
from llmkit.parallel.mesh import Mesh
from llmkit.plan import DeviceFacts, Plan, plan_for_shape
from llmkit.precision import torch_dtype


@dataclass(frozen=True)
class Sample:
    """A step that is timed. parallel: settings of that section."""

    name: str
    shape: ModelShape
    length: int
    micro_batch: int
    micro_batches: int = 1
    parallel: Mapping[str, Any] = field(default_factory=dict)


def gpt(width: int, layers: int, heads: int, vocab: int, **more: Any) -> ModelShape:
    """A small decoder; more: fields of its shape."""
    values: dict[str, Any] = {"num_key_value_heads": heads, "intermediate_size": 64 * round(width / 24)}
    values |= {"head_dim": width // heads, "max_position_embeddings": 1024} | more
    return ModelShape(vocab, vocab, width, layers, heads, **values)


GPT2 = {
    "mlp": "gelu", "norm": "layernorm", "position_embedding": "learned", "attention_bias": True,
    "mlp_bias": True,
}  # fmt: skip
SAMPLES = (
    Sample("narrow", gpt(128, 4, 2, 1024), 128, 4),
    Sample("wide", gpt(512, 2, 8, 2048), 256, 4),
    Sample("long", gpt(256, 3, 4, 2048, intermediate_size=1024, **GPT2), 512, 2, micro_batches=2),
)
"""Small calls, large products, long rows: what a step's time is made of differs between them."""


STEP_ROUNDS = 15
"""Whole steps are all that tells of pointwise operations: more rounds, so that each finds a quiet one."""


def plan_of(sample: Sample, precision: str, facts: DeviceFacts, compiled: bool) -> Plan:
    """The plan of its training."""
    sections: dict[str, Any] = {
        "data": {
            "sources": [{"type": "stdlib"}], "sequence_length": sample.length,
            "tokenizer": {"type": "bytes"},
        },
        "train": {
            "max_steps": 1000, "global_batch_size": sample.micro_batch * sample.micro_batches,
            "micro_batch_size": sample.micro_batch, "precision": precision,
        },
        "kernels": {"compile": compiled}, "parallel": dict(sample.parallel),
    }  # fmt: skip
    return plan_for_shape(sample.shape, sections, facts)


def step_of(plan: Plan) -> Callable[[], object]:
    """A step of training on random tokens, the first ones done."""
    engine = build_engine(plan, Mesh(), device=torch.device("cpu"))
    tokens = (plan.micro_batch_size, plan.config.data.sequence_length + 1)
    rows = [torch.randint(0, plan.model.vocab_size, tokens) for _ in range(plan.accumulation_steps)]
    batches = [Batch(each[:, :-1].contiguous(), each[:, 1:].contiguous()) for each in rows]
    targets = sum(batch.labels.numel() for batch in batches)

    def step() -> object:
        return engine.train_step(batches, targets, step_values(2, 1000, plan.config))

    step()
    step()  # what the first one has set up is warm
    return step


def predicted(work: Workload, rates: CpuRates) -> float:
    """Seconds of a step."""
    return step_parts(work, cpu_fleet(rates), MEASURED, rates).seconds


def workload(plan: Plan) -> Workload:
    """That of a plan, whose model is ours."""
    work = workload_of(plan)
    assert work is not None
    return work


def calibrate_mode(
    precision: str, facts: DeviceFacts, compiled: bool, samples: Sequence[Sample] = SAMPLES
) -> CpuRates:
    """The rates of a mode: operations alone, then what is left of whole steps by least squares."""
    plans = {sample.name: plan_of(sample, precision, facts, compiled) for sample in samples}
    first = next(iter(plans.values()))
    how = How(Operators.of(first.kernels.forms), torch_dtype(first.precision.compute), first.kernels.compiled)
    rates = measured_rates(how)
    works = {name: workload(plan) for name, plan in plans.items()}
    seconds = seconds_in_turns({name: step_of(plan) for name, plan in plans.items()}, STEP_ROUNDS)
    return fitted(rates, works, seconds)


def fitted(rates: CpuRates, works: Mapping[str, Workload], seconds: Mapping[str, float]) -> CpuRates:
    """The same with the seconds of a byte and of a kernel that meet the measured steps best; none negative.

    Of each step the relative error counts.
    """
    matrix, rest = [], []
    for name, work in works.items():
        layers = work.shape.num_hidden_layers * work.micro_batches
        size = sum(pointwise_bytes(work)) * layers
        kernels = computing(work, rates).kernels * work.micro_batches
        matrix.append([size / seconds[name], kernels / seconds[name]])
        rest.append(max(0.0, 1.0 - predicted(work, rates) / seconds[name]))
    table, wanted = np.array(matrix), np.array(rest)
    byte, kernel = np.linalg.lstsq(table, wanted, rcond=None)[0]
    if byte < 0 or kernel < 0:
        alone = [max(0.0, float(column @ wanted / (column @ column))) for column in table.T]
        errors = [float(np.abs(column * x - wanted).sum()) for column, x in zip(table.T, alone, strict=True)]
        byte, kernel = (alone[0], 0.0) if errors[0] <= errors[1] else (0.0, alone[1])
    return replace(rates, byte=float(byte), kernel=float(kernel))
