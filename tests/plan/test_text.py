"""The values that follow from the settings, as `llmkit config` shows them."""

from __future__ import annotations

import pytest

from llmkit.config.load import Loaded
from llmkit.config.schema import Config
from llmkit.plan import DeviceFacts, Known, resolve_plan
from llmkit.plan.text import derived_values


def values(known: Known | None = None, **sections: dict) -> dict[str, tuple[int | str, str]]:
    data = {"sources": [{"type": "stdlib"}], "sequence_length": 128, **sections.pop("data", {})}
    train = {"max_steps": 9, **sections.pop("train", {})}
    config = Config.model_validate({"data": data, "train": train, **sections})
    rows = derived_values(resolve_plan(Loaded.of(config), known))
    return {name: (value, how) for name, value, how in rows}


def test_the_batch_is_shared_out():
    found = values(Known(2), train={"global_batch_size": 32, "micro_batch_size": 4})
    assert found["accumulation_steps"] == (4, "32 sequences / 2 data-parallel ranks / micro_batch_size")
    assert found["tokens_per_step"][0] == 32 * 128


def test_an_automatic_micro_batch_is_said_to_come_later():
    assert values()["micro_batch_size"] == ("chosen at start", "auto")
    assert values()["accumulation_steps"][0] == "chosen at start"
    at_start = values(Known(1, device=DeviceFacts()), train={"global_batch_size": 32})
    assert (at_start["micro_batch_size"][0], at_start["accumulation_steps"][0]) == (32, 1)


def test_forms_of_operators_are_shown_with_their_reasons():
    early = values(kernels={"operators": {"attention": "matmul"}})
    assert early["compiled"][0] == "chosen at start" and early["attention"] == ("matmul", "as given")
    assert "other operators" not in early and early["operators"][0] == "chosen at start"
    late = values(Known(1, device=DeviceFacts(compiler_missing="no compiler")))
    assert late["compiled"] == ("no", "no compiler") and late["attention"][:1] == ("sdpa",)
    asked = values(Known(1, device=DeviceFacts()), kernels={"compile": False})
    assert asked["compiled"] == ("no", "as given")
    assert late["other operators"] == ("torch", "plain PyTorch")


def test_the_settings_may_say_over_how_many_ranks():
    four = {"parallel": {"world_size": 8, "tensor_parallel_size": 2}, "train": {"micro_batch_size": 2}}
    assert values(**four)["accumulation_steps"][0] == 4


def test_rows_that_only_fill_are_told():
    found = values(Known(3), train={"micro_batch_size": 11})
    assert (found["accumulation_steps"][0], found["wasted_rows"][0]) == (1, 1)
    assert "wasted_rows" not in values(Known(2))


def test_without_a_number_of_processes_the_fewest_that_fit_are_taken():
    steps, how = values(train={"global_batch_size": 10, "micro_batch_size": 3})["accumulation_steps"]
    assert steps == 1
    assert "4 data-parallel ranks, the fewest" in how


@pytest.mark.parametrize(
    ("tokenizer", "size", "how"),
    [
        ({"type": "bytes"}, 257, "the tokenizer's size"),
        ({"type": "bpe", "vocab_size": 300}, 300, "at most; the tokenizer is trained at start"),
        ({"type": "file", "path": "x"}, "known once the tokenizer is loaded", "the tokenizer's size"),
    ],
)
def test_the_vocabulary_as_far_as_it_is_known(tokenizer, size, how):
    found = values(data={"tokenizer": tokenizer})
    assert found["vocab_size"] == (size, how)
    known = isinstance(size, int)
    assert isinstance(found["parameters"][0], int) == known
    assert ("training_state" in found) == known
    loaded = values(Known(tokenizer_size=290), data={"tokenizer": tokenizer})
    assert loaded["vocab_size"] == (290, "the tokenizer's size")


def test_the_memory_of_the_state_is_told_with_what_a_parameter_takes():
    bf16 = values(Known(4), train={"precision": "bf16"}, parallel={"zero_stage": 3, "offload": "cpu"})
    assert "18 bytes a parameter in bf16" in bf16["training_state"][1]
    assert "on the host" in bf16["training_state"][1]
    muon = values(train={"precision": "fp32"}, optimizer={"name": "muon"})
    assert "12.14 bytes a parameter in fp32" in muon["training_state"][1]


def test_the_engine_and_the_precision():
    assert values()["engine"] == ("native", "ZeRO stage 0, unless the launcher's configuration names one")
    assert values()["precision"][0] == "chosen at start"
    found = values(Known(2, device=DeviceFacts()), parallel={"zero_stage": 3})
    assert found["engine"] == ("deepspeed", "ZeRO stage 3")
    assert found["precision"][0] == "fp32"
    assert values(train={"precision": "bf16"})["precision"] == ("bf16", "as given")


def test_every_value_says_how_it_came_about():
    assert all(how for _, how in values().values())


def test_groups_of_parameters_are_shown_with_their_sizes():
    entries = [{"params": ["embedding.weight"], "learning_rate": 0.25, "weight_decay": 0.0}]
    found = values(optimizer={"name": "muon", "groups": entries}, data={"tokenizer": {"type": "bytes"}})
    assert "parameter_group_1" not in values()
    assert found["parameter_group_2"] == (
        257 * 768,
        "adamw, learning_rate 0.25, betas [0.9, 0.95], eps 1e-08, weight_decay 0.0: embedding.weight",
    )
    sizes = [size for name, (size, _) in found.items() if name.startswith("parameter_group_")]
    assert sum(sizes) == found["parameters"][0]
    later = values(optimizer={"groups": entries}, data={"tokenizer": {"type": "file", "path": "x"}})
    assert later["parameter_group_3"][0] == "known once the tokenizer is loaded"
