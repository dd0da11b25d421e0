"""The parameters of a rank by sizes alone, against the model's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from llmkit.config.custom_model import CustomModel
from llmkit.config.lora_section import Lora
from llmkit.config.parameters import FullTensor
from llmkit.model.gpt import GPT
from llmkit.model.lora import add_adapters
from llmkit.parallel.mesh import ExpertParallel, TensorParallel
from llmkit.parity.subjects import MODELS
from llmkit.plan.stored import stored_parameters

LORA = Lora(rank=3, targets=["q_proj", "v_proj", "o_proj", "*.mlp.*"])
SHAPES = {**MODELS, "padded": replace(MODELS["odd"], padded_vocab_size=128)}


@pytest.mark.parametrize("name", [each for each in SHAPES if each != "large"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("lora", [Lora(), LORA], ids=["all", "adapters"])
def test_they_are_those_of_the_model(name: str, ranks: int, lora: Lora) -> None:
    shape = SHAPES[name]
    if name in ("sigmoid-experts", "two-experts", "all-experts") and lora.rank:
        lora = lora.model_copy(update={"targets": lora.targets[:3]})  # it has no other linear layer
    if shape.num_key_value_heads * shape.head_dim % ranks:
        pytest.skip("no such layout")
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        tp = TensorParallel(0, ranks, dist.group.WORLD) if ranks > 1 else TensorParallel()
        with torch.device("meta"):
            model = GPT(shape, tp=tp, seed=None)
            if lora.rank:
                add_adapters(model, lora)
    finally:
        dist.destroy_process_group()
    parts, found = model.parameter_slices(), stored_parameters(shape, lora, ranks)
    wanted = [
        (each.numel(), tuple(part.name for part in parts[path]), each.requires_grad)
        for path, each in model.named_parameters()
    ]
    for trained in (True, False):
        mine = [(each.elements, each.tensors, trained) for each in found if each.trained == trained]
        assert mine == [each for each in wanted if each[2] == trained], "in the model's order"
    linear = {each.name for each in found if each.linear}
    assert all("_proj" in each and each.endswith(".weight") for each in linear)
    shared = shape.moe is not None and shape.moe.shared_expert_intermediate_size is not None
    mlps = [shared or not shape.has_experts(layer) for layer in range(shape.num_hidden_layers)]
    assert len(linear) == 2 * len(mlps) + 2 * sum(mlps)


@pytest.mark.parametrize("rank", [0, 3])
def test_of_experts_that_are_dealt_out_a_rank_has_its_share(rank: int) -> None:
    shape = MODELS["two-experts"]
    with torch.device("meta"):
        model = GPT(shape, tp=TensorParallel(1, 2), experts=ExpertParallel(rank, 4), seed=None)
    parts, found = model.parameter_slices(), stored_parameters(shape, Lora(), 2, 4)
    assert [(each.elements, each.tensors, each.expert) for each in found] == [
        (each.numel(), tuple(part.name for part in parts[path]), "mlp.experts" in path)
        for path, each in model.named_parameters()
    ]


def test_of_a_registered_model_each_rank_has_a_share() -> None:
    tensors = (FullTensor("a", (6, 4), False, "a"), FullTensor("b", (4,), False, "b"))
    model = CustomModel("other", 6, 8, 28, 0, {}, takes_tensor_parallel=True, tensors=tensors)
    assert [each.elements for each in stored_parameters(model, Lora(), 2)] == [12, 2]
