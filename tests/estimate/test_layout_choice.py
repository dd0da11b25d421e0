"""`parallel.layout: auto`: what is given stays, the rest becomes the best layout, on all ranks the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.config.load import Loaded, load
from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.facts import facts_of
from llmkit.estimate.layout_choice import CHOSEN, kept_settings, layouts_of, with_layout
from llmkit.estimate.search import MICRO_BATCH, Ground, search
from llmkit.parallel.accelerate import AccelerateConfig
from llmkit.parallel.launch_setting import LaunchSetting
from llmkit.plan import Known, resolve_plan

RECIPES = Path(__file__).parents[2] / "configs/recipes"
FLEET = Hardware().fleet("h100", 8, 8)
KNOWN = Known(world_size=FLEET.size)


def recipe(*overrides: str) -> Loaded:
    return load(RECIPES / "llama-3.1-8b.yaml", ["parallel.layout=auto", *overrides])


def test_the_best_layout_stands_in_the_settings():
    given = recipe()
    chosen = with_layout(given, KNOWN, FLEET)
    kept = ["parallel.activation_checkpointing", MICRO_BATCH]
    best = search(given, Ground(FLEET, KNOWN), kept).fitting[0]
    layout = resolve_plan(chosen, KNOWN).layout
    assert layout.to_dict() == best.plan.layout.to_dict()
    assert chosen.config.train.micro_batch_size == "auto", "it follows from the memory that is free"
    assert chosen.origins["parallel.zero_stage"] == CHOSEN
    assert "the fastest of" in chosen.remarks[-1] and "by estimate; next: " in chosen.remarks[-1]


def test_what_is_given_is_kept():
    chosen = with_layout(recipe("parallel.zero_stage=3", "train.micro_batch_size=1"), KNOWN, FLEET)
    assert chosen.config.parallel.zero_stage == 3
    assert chosen.origins["parallel.zero_stage"] == "command line"
    assert chosen.config.parallel.activation_checkpointing == "selective", "as the recipe has it"


def test_micro_batches_are_those_that_training_takes():
    """With the layout in its settings, a start takes the micro-batch that the choice has counted with."""
    for overrides in ([], ["train.micro_batch_size=1"], ["parallel.activation_checkpointing=none"]):
        given = recipe(*overrides)
        best = layouts_of(given, Ground(FLEET, KNOWN)).fitting[0]
        chosen = with_layout(given, KNOWN, FLEET)
        plan = resolve_plan(chosen, replace(KNOWN, device=facts_of(FLEET.device)))
        assert plan.facts() == best.plan.facts() and best.fits


def test_other_layouts_are_looked_for_where_one_is_given():
    loaded = load(RECIPES / "llama-3.1-8b.yaml", ["parallel.zero_stage=3"])
    assert kept_settings(loaded) == []
    assert kept_settings(recipe("parallel.zero_stage=3")) == [
        "parallel.zero_stage", "parallel.activation_checkpointing", MICRO_BATCH
    ]  # fmt: skip


def test_a_vocabulary_that_the_settings_tell_counts_as_it_is():
    """A tokenizer of bytes has 257 tokens: such a small model needs no sharding on a GPU of 4 GiB."""
    tiny = replace(FLEET.device, memory=4.0 * 2**30)
    small = ["model.vocab_size=auto", "data.tokenizer={type: bytes, name: null}", "model.hidden_size=2048"]
    small += ["model.num_hidden_layers=1", "model.num_attention_heads=16", "model.num_key_value_heads=16"]
    loaded = load(RECIPES / "llama-3.1-8b.yaml", ["parallel.layout=auto", *small, "model.head_dim=128"])
    fleet = replace(FLEET, device=tiny)
    told = with_layout(loaded, replace(KNOWN, tokenizer_size=257), fleet)
    assert with_layout(loaded, KNOWN, fleet).remarks == told.remarks
    assert with_layout(loaded, replace(KNOWN, tokenizer_size=131_072), fleet).remarks != told.remarks


def test_the_launchers_stage_is_followed():
    stage = LaunchSetting("zero_stage", "2", "zero2.yaml:3")
    known = replace(KNOWN, accelerate=AccelerateConfig(zero_stage=stage))
    assert with_layout(recipe(), known, FLEET).config.parallel.zero_stage == 2


def test_a_vocabulary_that_is_not_known_yet_counts_as_a_large_one():
    hub = ["model.vocab_size=auto", "data.tokenizer.name=some/tokenizer"]
    large = with_layout(recipe(*hub), replace(KNOWN, tokenizer_size=131_072), FLEET)
    assert with_layout(recipe(*hub), KNOWN, FLEET).remarks == large.remarks


def test_what_fits_nowhere_is_refused_with_the_command_that_says_more():
    alone = Hardware().fleet("l4", 1)
    what = r"parallel.layout=auto \(command line\): no layout fits 1 x l4: .* needs .* GiB.*`llmkit plan"
    with pytest.raises(UserError, match=what):
        with_layout(recipe(), Known(world_size=1), alone, host_memory=2.0**34)


def test_contradictions_are_told_as_ever():
    with pytest.raises(UserError, match=r"train\.micro_batch_size"):
        with_layout(recipe("train.global_batch_size=64", "train.micro_batch_size=64"), KNOWN, FLEET)
