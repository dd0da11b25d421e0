"""What a placement says of a parameter, and that each layer describes its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from llmkit.config.shape import ModelShape
from llmkit.engine.deepspeed import mark_sharded
from llmkit.model.build import check_placements
from llmkit.model.gpt import GPT
from llmkit.parallel import placement as module
from llmkit.parallel.mesh import DIMENSIONS, ExpertParallel, TensorParallel
from llmkit.parallel.placement import (
    REPLICATED,
    Partial,
    Placement,
    Replicate,
    Shard,
    of_experts,
    place,
    placement,
    tensor_sharded,
)
from llmkit.parity.subjects import MODELS
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

SHAPES: dict[str, ModelShape] = {
    "gpt2": GPT2_STYLE,
    "llama": LLAMA_STYLE,
    "all biases": replace(LLAMA_STYLE, attention_bias=True, mlp_bias=True, qk_norm=True),
    "tied, no bias": replace(GPT2_STYLE, attention_bias=False, mlp_bias=False, qk_norm=True),
}
WANTED: dict[str, Placement] = {
    "embedding.weight": tensor_sharded(0),
    "head.weight": tensor_sharded(0),
    "positions.weight": REPLICATED,
    "qkv.weight": tensor_sharded(0),
    "qkv.bias": tensor_sharded(0),
    "gate_up.weight": tensor_sharded(0),
    "gate_up.bias": tensor_sharded(0),
    "up_proj.weight": tensor_sharded(0),
    "up_proj.bias": tensor_sharded(0),
    "o_proj.weight": tensor_sharded(1),
    "down_proj.weight": tensor_sharded(1),
    "o_proj.bias": REPLICATED,
    "down_proj.bias": REPLICATED,
    "norm.weight": REPLICATED,
    "norm.bias": REPLICATED,
}


@pytest.mark.parametrize(
    "tp", [TensorParallel(), TensorParallel(1, 2), TensorParallel(0, 2, sequence_parallel=True)]
)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_parameter_of_every_kind_of_model(shape, tp):
    with torch.device("meta"):
        model = GPT(shape, tp=tp, seed=None)
    if tp.size > 1:
        check_placements(model)
    for name, parameter in model.named_parameters():
        (wanted,) = (each for end, each in WANTED.items() if name.endswith(end))
        assert placement(parameter) == wanted, name


def test_what_follows_from_a_placement():
    sharded = tensor_sharded(1)
    assert (
        sharded["tensor"] == Shard(1) and sharded["data"] == Partial() and REPLICATED["tensor"] == Replicate()
    )
    assert (sharded.sharded, sharded.copies, sharded.summed) == (
        ("tensor",), ("data", "context"), ("data", "context"),
    )  # fmt: skip
    assert (REPLICATED.sharded, REPLICATED.copies) == ((), DIMENSIONS)
    assert REPLICATED.summed == ("data", "context")


def test_experts_that_are_dealt_out_are_summed_over_the_ranks_that_hold_the_same():
    dealt = of_experts(1)
    assert dealt.sharded == ("expert", "tensor") and dealt["tensor"] == Shard(1)
    assert dealt.copies == dealt.summed == ("expert_data",)


def test_a_wrong_placement_of_dealt_out_experts_is_noticed():
    with torch.device("meta"):
        model = GPT(MODELS["one-expert"], experts=ExpertParallel(1, 2), seed=None)
    check_placements(model, shared=False)
    weight = model.get_parameter("blocks.1.mlp.experts.into.weight")
    for wrong in (tensor_sharded(0), of_experts(0).along | {"expert": Replicate()}):
        place(weight, wrong if isinstance(wrong, Placement) else Placement(wrong))
        with pytest.raises(AssertionError, match=r"into\.weight"):
            check_placements(model, shared=False)


def test_a_parameter_that_nobody_has_described_is_replicated():
    parameter = nn.Linear(2, 3).weight
    assert placement(parameter) == REPLICATED
    place(parameter, tensor_sharded(0))
    assert placement(parameter) == tensor_sharded(0) and placement(parameter.detach()) == REPLICATED
    assert not vars(parameter)  # which libraries hand on to constructors
    before = len(module._PLACEMENTS)
    del parameter
    assert len(module._PLACEMENTS) == before - 1


def test_deepspeeds_marks_are_those_of_the_sharded():
    is_marked: Callable[[nn.Parameter], bool] = pytest.importorskip(
        "deepspeed.runtime.utils"
    ).is_model_parallel_parameter
    model = GPT(GPT2_STYLE, tp=TensorParallel(1, 2), seed=None)
    mark_sharded(model.parameters())
    for name, parameter in model.named_parameters():
        assert is_marked(parameter) == ("tensor" in placement(parameter).sharded), name
