"""The state of a layout by hand; that engines allocate as much is a part of every case of parity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llmkit.config.model_section import Model
from llmkit.config.parameters import EXPERTS
from llmkit.config.schema import Config
from llmkit.parallel.layout import Layout
from llmkit.parity.subjects import MODELS
from llmkit.plan.buckets import BucketSizes
from llmkit.plan.state_memory import State, state_memory
from llmkit.precision import PRECISIONS
from tests.shapes import LLAMA_STYLE

SHAPE = replace(
    LLAMA_STYLE, hidden_size=768, head_dim=64, num_attention_heads=12, num_key_value_heads=4,
    intermediate_size=3072, num_hidden_layers=12, vocab_size=1000,
    padded_vocab_size=1000,
)  # fmt: skip
N = SHAPE.num_parameters
BF16 = PRECISIONS["bf16"]


def config(**sections: Any) -> Config:
    model = Model.model_validate({"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12})
    data = {"sources": [{"type": "stdlib"}], "sequence_length": 32}
    return Config.model_validate({"model": model, "data": data, "train": {"max_steps": 1}, **sections})


def state(precision: str = "bf16", settings: Config | None = None, **layout: Any) -> State:
    stage, world = layout.get("zero_stage", 0), layout.get("world_size", 1)
    engine = "deepspeed" if stage > 1 or layout.get("offload") else "native"
    tensor = layout.get("tensor_parallel_size", 1)
    made = Layout(**{"engine": engine, **layout})
    assert made.data_parallel_size == world // tensor
    return state_memory(settings or config(), SHAPE, PRECISIONS[precision], made)


@pytest.mark.parametrize(("stage", "bytes_each"), list(enumerate([18.0, 9.0, 6.0, 4.5])))
def test_each_stage_shares_out_more(stage: int, bytes_each: float) -> None:
    found = state(world_size=4, zero_stage=stage)
    assert found.device == found.total and found.host == 0
    assert found.device / N == pytest.approx(bytes_each, abs=0.01)


def test_tensor_parallelism_shares_out_all_but_the_norms() -> None:
    sharded, zero3 = state(world_size=4, tensor_parallel_size=4), state(world_size=4, zero_stage=3)
    assert sharded.device == pytest.approx(zero3.device, rel=1e-3)
    norms = 25 * 768
    assert sharded.total == 18 * ((N - norms) // 4 + norms)


def test_in_fp32_the_weights_are_their_own_masters_but_deepspeed_copies_them() -> None:
    assert state("fp32") == State(4 * N, 4 * N, 0, 8 * N)
    for stage in (1, 2, 3):
        assert state("fp32", engine="deepspeed", zero_stage=stage) == State(4 * N, 4 * N, 4 * N, 8 * N)


def test_deepspeed_keeps_all_gradients_at_stage_1_in_bf16_and_its_share_else() -> None:
    def gradients(precision: str, stage: int) -> float:
        return state(precision, world_size=2, engine="deepspeed", zero_stage=stage).gradients / N

    found = [gradients(precision, stage) for precision in ("bf16", "fp32") for stage in (1, 2, 3)]
    assert found == pytest.approx([4, 2, 2, 2, 2, 2], rel=1e-3)


def test_offloading_moves_the_optimizer_and_at_stage_3_the_weights() -> None:
    found = state(world_size=1, zero_stage=2, offload="cpu")
    assert (found.device, found.host) == (2 * N, 16 * N) and found.optimizer == 12 * N
    found = state(world_size=1, zero_stage=3, offload="cpu")
    assert (found.device, found.host) == (0, 18 * N)


def test_a_slice_of_each_bucket_is_padded_to_whole_lines() -> None:
    made, layout = config(optimizer={"name": "muon"}), Layout(4, zero_stage=1)
    small = state_memory(made, LLAMA_STYLE, BF16, layout, BucketSizes(native=1))
    large = state_memory(made, LLAMA_STYLE, BF16, layout)
    assert small.weights > large.weights > 2 * LLAMA_STYLE.num_parameters
    assert small.weights % (64 * 4 * 2) == 0 and small.masters == 2 * small.weights // 4
    matrices = sum(t.shape[0] * t.shape[1] for t in SHAPE.tensors if t.hidden)
    moments = state_memory(made, SHAPE, BF16, layout).moments
    assert moments / 4 == pytest.approx((2 * N - matrices) / 4, rel=1e-3), "Muon's have one"


@pytest.mark.parametrize("stage", [0, 1])
def test_experts_that_are_dealt_out_are_shared_by_those_that_hold_the_same(stage: int) -> None:
    shape = MODELS["two-experts"]
    experts = sum(math.prod(each.shape) for each in shape.tensors if EXPERTS in each.name)
    rest = shape.num_parameters - experts
    found = state_memory(
        config(), shape, BF16, Layout(8, zero_stage=stage, expert_parallel_size=4), BucketSizes(native=2**30)
    )
    assert found.weights == pytest.approx(2 * (rest + experts / 4), rel=0.02)
    masters = rest / 8 + experts / 4 / 2 if stage else rest + experts / 4
    assert found.masters == pytest.approx(4 * masters, rel=0.02)


def test_frozen_weights_have_neither_gradients_nor_moments() -> None:
    lora = {"init_from": "x", "lora": {"rank": 4, "targets": ["q_proj"]}, "max_steps": 1}
    adapters = 12 * 4 * (768 + 768)
    found = state(settings=config(train=lora))
    assert found == State(2 * (N + adapters), 4 * adapters, 4 * adapters, 8 * adapters)


def test_a_moving_average_is_as_large_as_the_masters() -> None:
    averaged = config(train={"max_steps": 1, "ema": {"decay": 0.9}})
    for layout in ({}, {"world_size": 2, "zero_stage": 1}, {"zero_stage": 2, "offload": "cpu"}):
        plain, found = state(**layout), state(settings=averaged, **layout)
        assert found.ema == found.masters > 0 and found == replace(plain, ema=found.ema)
