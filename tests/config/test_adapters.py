"""Which tensors the adapters of `train.lora` are, and which settings of them are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.config.adapters import is_adapter, is_target, trained_tensors
from llmkit.config.groups import assign
from llmkit.config.load import load
from llmkit.config.lora_section import Lora
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.parameters import count_elements
from tests.shapes import GPT2_STYLE, LLAMA_STYLE

ONE_BLOCK = replace(LLAMA_STYLE, num_hidden_layers=1)


def test_without_a_rank_all_weights_are_trained():
    assert trained_tensors(ONE_BLOCK.tensors, Lora()) == ONE_BLOCK.tensors


@pytest.mark.parametrize("shape", [GPT2_STYLE, LLAMA_STYLE])
def test_by_default_each_linear_layer_of_a_block_has_an_adapter(shape):
    tensors = trained_tensors(shape.tensors, Lora(rank=3))
    sizes = {t.name: t.shape for t in shape.tensors}
    linear = [name for name in sizes if name.startswith("blocks.") and name.endswith("_proj.weight")]
    assert len(tensors) == 2 * len(linear) and all(is_adapter(t.name) and t.hidden for t in tensors)
    assert count_elements(tensors) == sum(3 * sum(sizes[name]) for name in linear)
    assert not any(is_adapter(name) for name in sizes)


def test_each_projection_has_its_own_tensors_in_one_parameter():
    found = trained_tensors(ONE_BLOCK.tensors, Lora(rank=2, targets=["q_proj", "*.attention.v_proj"]))
    inputs = ONE_BLOCK.hidden_size
    outputs = [n * ONE_BLOCK.head_dim for n in (ONE_BLOCK.num_attention_heads, ONE_BLOCK.num_key_value_heads)]
    at = "blocks.0.attention"
    assert [(t.name, t.shape) for t in found] == [
        (f"{at}.q_proj.lora_A", (2, inputs)), (f"{at}.q_proj.lora_B", (outputs[0], 2)),
        (f"{at}.v_proj.lora_A", (2, inputs)), (f"{at}.v_proj.lora_B", (outputs[1], 2)),
    ]  # fmt: skip
    assert len({t.stored_in for t in found}) == 2
    groups = assign(found, Optimizer(name="muon"))
    assert [group.optimizer for group in groups] == ["muon"]


@pytest.mark.parametrize(
    ("pattern", "is_one"),
    [("q_proj", True), ("*_proj", True), ("blocks.0.*", True), ("blocks.1.*", False), ("proj", False)],
)
def test_a_pattern_is_for_the_full_name_or_its_last_part(pattern, is_one):
    assert is_target("blocks.0.attention.q_proj", ["no", pattern]) is is_one


MISTAKES = [
    (
        ["train.lora.targets=[q_proj, c_attn]"],
        'no linear layer matches "c_attn"\n      the layers are blocks.*.attention.q_proj, blocks.*.',
    ),
    (["train.lora.rank=9000"], "train.lora.rank 9000 (command line) is too large"),
    (
        ["train.lora.input_dropout=0.1", "parallel.tensor_parallel_size=2", "parallel.world_size=2"],
        "train.lora.input_dropout 0.1 (command line) does not go with parallel.tensor_parallel_size 2",
    ),
    (["optimizer.groups=[{params: [embedding.weight]}]"], "no parameter matches"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "what"), MISTAKES)
def test_what_is_refused(settings, what, refused_for_one):
    refused_for_one(["train.lora.rank=4", "train.init_from=base", *settings], what)


def test_settings_of_adapters_without_a_rank_train_no_model_in_full(refused, base, write):
    settings = ["train.init_from=base", "train.lora.alpha=8", "train.lora.targets=[q_proj]"]
    message = refused(base, *settings)
    assert "train.lora.alpha 8.0 (command line) needs train.lora.rank 0 (default) to be given" in message
    assert 'train.lora.targets ["q_proj"] (command line) needs train.lora.rank' in message
    assert load(write(base), [*settings, "train.lora.rank=0"]).config.train.lora.rank == 0  # as was asked for


def test_adapters_need_weights(refused_for_one):
    what = "train.lora.rank 4 (command line) needs train.init_from null (default) to be given"
    refused_for_one(["train.lora.rank=4"], what)


def test_groups_match_the_names_of_adapters(write):
    groups = "optimizer.groups=[{params: ['*.lora_B'], learning_rate: 0.01}]"
    loaded = load(write(), ["train.lora.rank=4", "train.init_from=base", groups])
    assert loaded.config.optimizer.groups[0].params == ["*.lora_B"]
