"""DeepSpeed's buffers by stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmkit.config.lora_section import Lora
from llmkit.parallel.layout import Layout
from llmkit.plan.communication_memory import deepspeed_buffers
from llmkit.precision import PRECISIONS
from tests.shapes import LLAMA_STYLE

SMALL = replace(LLAMA_STYLE, padded_vocab_size=LLAMA_STYLE.vocab_size)
LARGE = replace(SMALL, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80)


def buffers(stage: int, shape: Any = SMALL, precision: str = "bf16", **layout: Any) -> dict[str, int]:
    made = Layout(4, zero_stage=stage, engine="deepspeed", **layout)
    return deepspeed_buffers(shape, Lora(), PRECISIONS[precision], made)


def test_stage_1_in_bf16_sums_gradients_where_they_are() -> None:
    assert buffers(1) == {}
    whole = 4 * SMALL.num_parameters
    for case in (buffers(1, precision="fp32"), buffers(1, offload="cpu")):
        assert case["gradients as they come"] == whole and case["gradient bucket"] > 0


def test_stage_2_has_two_buckets_that_hold_the_largest_parameter_and_one_as_it_is_sent() -> None:
    largest = 28672 * 2 * 8192
    assert buffers(2, LARGE)["gradient bucket"] == largest * (2 * 2 + 4)
    assert buffers(2, LARGE)["gradients as they come"] == 2 * LARGE.num_parameters // 4
    assert buffers(2, LARGE, precision="fp32")["gradient bucket"] == largest * 2 * 4
    assert buffers(2, LARGE, offload="cpu")["gradient on its way to the host"] == largest * 2


def test_gradients_in_bf16_go_to_the_host_when_all_of_a_step_are_there() -> None:
    """DeepSpeed adds up a rank's share in fp32 on the device; in fp32 it does on the host."""
    for stage in (1, 2):
        assert buffers(stage, LARGE, offload="cpu")["gradients of a step"] == LARGE.num_parameters
        assert "gradients of a step" not in buffers(stage, LARGE)
        assert "gradients of a step" not in buffers(stage, LARGE, "fp32", offload="cpu")


def test_stage_3_gathers_all_of_a_small_model_and_what_is_used_again_soon_of_a_large_one() -> None:
    assert buffers(3)["gathered weights"] == 2 * SMALL.num_parameters
    found = buffers(3, LARGE)
    assert 2 * 5 * 10**8 < found["gathered weights"] < 2 * 1.1 * 10**9 < 2 * LARGE.num_parameters
    assert found["gradient bucket"] == 4 * 2**25
