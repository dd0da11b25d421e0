"""The least memory that training a model takes, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.config.memory import State, checkpoint_bytes, parameter_bytes, show_bytes, state_bytes
from llmkit.precision import PRECISIONS
from llmkit.registry import register
from tests.examples.project import forgotten
from tests.shapes import LLAMA_STYLE

SHAPE = replace(LLAMA_STYLE, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
N = SHAPE.num_parameters
BF16 = PRECISIONS["bf16"]


@pytest.mark.parametrize(
    ("optimizer", "fp32", "bf16"), [("adamw", (4, 4, 8), (2, 4, 12)), ("muon", (4, 4, 4), (2, 4, 8))]
)
def test_bytes_of_a_parameter(optimizer: str, fp32: tuple[int, ...], bf16: tuple[int, ...]) -> None:
    assert parameter_bytes(PRECISIONS["fp32"], {optimizer}) == fp32
    assert parameter_bytes(BF16, {optimizer}) == bf16
    assert checkpoint_bytes({optimizer}) == 4 + fp32[2]


def test_a_registered_optimizer_keeps_the_states_that_it_names() -> None:
    with forgotten():

        @register("optimizer", "three-states")
        class Three:
            states = ("a", "b", "c")

        assert parameter_bytes(BF16, {"three-states"}) == (2, 4, 16)
        assert checkpoint_bytes({"three-states"}) == 16
        assert checkpoint_bytes({"three-states", "muon", "adamw"}) == 8


@pytest.mark.parametrize(("stage", "bytes_each"), list(enumerate([18.0, 9.0, 6.0, 4.5])))
def test_each_stage_shares_out_more(stage: int, bytes_each: float) -> None:
    state = state_bytes(SHAPE, BF16, {"adamw"}, data_parallel_size=4, zero_stage=stage)
    assert (state.device + state.gradients) / N == pytest.approx(bytes_each, abs=0.01)
    assert state.host == 0


def test_tensor_parallelism_shares_out_everything() -> None:
    cut, zero3 = (
        state_bytes(SHAPE, BF16, {"adamw"}, tensor_parallel_size=4),
        state_bytes(SHAPE, BF16, {"adamw"}, data_parallel_size=4, zero_stage=3),
    )
    assert (cut.device, cut.gradients) == pytest.approx((zero3.device, zero3.gradients), rel=1e-6)


def test_offloading_moves_the_optimizer_and_at_stage_3_the_weights() -> None:
    one = {"zero_stage": 1, "offload": "cpu"}
    assert state_bytes(SHAPE, BF16, {"adamw"}, **one) == State(2 * N, 4 * N, 12 * N)  # type: ignore[arg-type]
    assert state_bytes(SHAPE, BF16, {"adamw"}, zero_stage=3, offload="cpu") == State(0, 4 * N, 14 * N)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (2**20, "1.0 MiB"), (79163224064, "73.7 GiB"), (2e13, "18,626.5 GiB")],
)
def test_sizes_are_for_people(size: float, text: str) -> None:
    assert show_bytes(size) == text
