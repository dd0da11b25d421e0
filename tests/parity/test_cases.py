"""The cases: layouts that exist, each with a name of its own."""

from __future__ import annotations

from llmkit.parity.cases import FORMED, LARGE, all_cases
from llmkit.parity.run import refusal
from llmkit.parity.subjects import LENGTH, MODELS
from llmkit.plan import DeviceFacts, plan_for_shape


def test_only_layouts_that_exist_are_cases():
    for case in [*all_cases(), *LARGE]:
        assert case.world_size <= 8
        assert case.data == 2 or case.stage == 0
        assert case.tensor > 1 or not case.sequence_parallel
        assert case.stage > 0 or case.offload == "none"
        assert case.engine == "auto" or case.stage == 1


def test_a_case_tells_its_layout():
    case = next(
        case for case in all_cases() if str(case) == "odd Z3 tp2 dp2 sp acc3 full/2 masked fp32 offload"
    )
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": LENGTH},
        "train": {"max_steps": 1},
    }
    plan = plan_for_shape(MODELS[case.model], {**settings, "parallel": case.parallel}, DeviceFacts())
    layout = plan.layout
    assert (layout.world_size, layout.data_parallel_size, layout.tensor_parallel_size) == (4, 2, 2)
    assert (layout.zero_stage, layout.offload, layout.sequence_parallel) == (3, "cpu", True)
    assert (layout.activation_checkpointing, layout.activation_checkpointing_every) == ("full", 2)
    assert len({str(each) for each in all_cases()}) == len(list(all_cases()))


def test_forms_are_tried_where_the_device_takes_them():
    assert [refusal(case, DeviceFacts()) for case in FORMED] == [None] * len(FORMED)
    gpu = DeviceFacts("cuda", has_bf16_units=True, capability=(9, 0), triton=True, varlen=True)
    left_out = {case.forms: why for case in FORMED if (why := refusal(case, gpu))}
    assert left_out == {"attention=varlen": "flash attention of variable length computes in bf16, not fp32"}
