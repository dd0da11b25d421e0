"""Candidates are plans that training accepts; the fastest that fits comes first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from llmkit import api
from llmkit.cli import main
from llmkit.config.load import Loaded, load
from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.search import (
    ALIKE,
    DIMENSIONS,
    MICRO_BATCH,
    PATHS,
    SPARE,
    Found,
    Ground,
    _layouts,
    as_given,
    search,
    setting_of,
    with_settings,
)
from llmkit.planner import words
from llmkit.planner.assumed import open_subject
from tests.examples.project import project

RECIPES = Path(__file__).parents[2] / "configs/recipes"


def recipe(name: str, *overrides: str) -> Loaded:
    return load(RECIPES / f"{name}.yaml", overrides)


def on(device: str, per_node: int = 8, nodes: int = 1) -> Ground:
    return Ground(Hardware().fleet(device, per_node, nodes))


@pytest.fixture(scope="module")
def found() -> Found:
    return search(recipe("llama-3.1-8b"), on("h100", nodes=8))


def test_all_that_is_offered_fits_and_no_layout_comes_twice(found: Found):
    assert all(each.fits and each.memory.fits for each in found.fitting)
    settings = [tuple(each.settings.items()) for each in found.fitting]
    assert len(set(settings)) == len(settings) > 20
    assert {path for each in found.fitting for path in each.settings} == set(PATHS)


def test_the_fastest_come_first_the_plainest_of_those_that_are_alike(found: Found):
    seconds = [each.time.seconds for each in found.fitting]
    assert seconds[0] <= min(seconds) * ALIKE
    assert all(later >= earlier / ALIKE for earlier, later in pairwise(seconds))
    behind = [each for each in found.fitting if each.time.seconds <= min(seconds) * ALIKE]
    assert found.fitting[0].effort == min(each.effort for each in behind)
    assert [each.effort for each in found.fitting[: len(behind)]] == sorted(each.effort for each in behind)


def test_micro_batches_are_the_largest_that_leave_some_memory_free(found: Found):
    for each in found.fitting[:12]:
        rows, micro = each.plan.rows_per_rank, each.plan.micro_batch_size
        assert each.memory.device_bytes <= (1 - SPARE) * each.memory.available
        if micro < rows:
            larger = min(n for n in range(micro + 1, rows + 1) if rows % n == 0)
            loaded = with_settings(recipe("llama-3.1-8b"), {**each.settings, MICRO_BATCH: larger})
            assert not as_given(loaded, on("h100", nodes=8)).fits


def test_nothing_is_offloaded_where_it_fits_without(found: Found):
    assert {each.plan.layout.offload for each in found.fitting} == {"none"}
    alone = search(recipe("llama-3.1-8b"), on("h100", 1))
    assert {each.plan.layout.offload for each in alone.fitting} == {"cpu"}


def test_families_are_the_best_of_each_way_to_share_out(found: Found):
    families = [each.family for each in found.families]
    assert len(set(families)) == len(families) and found.families[0] is found.fitting[0]


def test_a_candidate_is_what_the_settings_make(found: Found):
    loaded, best = recipe("llama-3.1-8b"), found.fitting[0]
    again = as_given(with_settings(loaded, best.settings), on("h100", nodes=8))
    assert again.plan.facts() == best.plan.facts()
    assert with_settings(loaded, {"parallel.zero_stage": 2}).origins["parallel.zero_stage"] == "plan"


def test_what_is_fixed_stays():
    loaded = recipe("gpt2-124m", "parallel.zero_stage=1", "train.micro_batch_size=4")
    found = search(loaded, on("h100"), ["parallel.zero_stage", MICRO_BATCH])
    for path, value in (("parallel.zero_stage", 1), (MICRO_BATCH, 4)):
        assert {setting_of(each.plan, path) for each in found.fitting} == {value}


def test_heads_that_do_not_divide_are_no_candidates():
    """GPT-2 has 12 heads: 8 ranks cannot share them."""
    found = search(recipe("gpt2-124m"), on("h100"))
    assert {each.plan.layout.tensor_parallel_size for each in found.fitting} == {1, 2, 4}
    assert any("num_attention_heads 12" in why for why in found.refused)


def test_what_fits_nowhere_is_told_by_what_needs_least():
    small = replace(Hardware().device("l4"), memory=2**30)
    ground = on("l4", 1)
    found = search(recipe("gpt2-1558m"), replace(ground, fleet=replace(ground.fleet, device=small)))
    assert not found.fitting and found.nearest is not None
    assert found.nearest.plan.layout.activation_checkpointing == "full"


def test_more_ranks_than_rows_are_tried_only_where_they_share_layers():
    found = search(recipe("gpt2-124m", "train.global_batch_size=4"), on("h100"))
    assert found.fitting[0].plan.padding_rows == 0


def test_a_layout_that_training_refuses_is_an_error():
    with pytest.raises(UserError, match="num_attention_heads"):
        as_given(with_settings(recipe("gpt2-124m"), {"parallel.tensor_parallel_size": 8}), on("h100"))


def test_experts_are_dealt_out_where_nothing_else_fits():
    """Qwen3 30B-A3B in our own engine: weights and gradients of all experts are more than a GPU has."""
    path = RECIPES.parent / "models/qwen3-30b-a3b.yaml"
    fixed = {
        "parallel.zero_stage": 1, "parallel.engine": "native", "parallel.tensor_parallel_size": 1,
        "parallel.activation_checkpointing": "full",
    }  # fmt: skip
    loaded = with_settings(open_subject(api.load, str(path), [], 1e11).loaded, fixed)
    found = search(loaded, on("h100", nodes=8), list(fixed))
    assert {each.plan.layout.expert_parallel_size for each in found.families} == {4, 8, 16, 32, 64}
    assert "EP 4, full" in words.layout(found.fitting[0].plan)
    alone = search(loaded, on("h100", nodes=8), [*fixed, "parallel.expert_parallel_size"])
    assert loaded.config.parallel.expert_parallel_size == 1 and not alone.fitting


@pytest.mark.parametrize("engine", ["auto", "native"])
def test_our_own_engine_is_tried_at_stage_2_only_for_dealt_out_experts_or_if_asked_for(engine):
    path = RECIPES.parent / "models/qwen3-30b-a3b.yaml"
    loaded = open_subject(api.load, str(path), [], 1e11).loaded
    asked = with_settings(loaded, {"parallel.engine": engine})
    for fixed in ([], ["parallel.expert_parallel_size"]):
        layouts = [
            (layout["parallel.engine"], layout["parallel.expert_parallel_size"])
            for layout in _layouts(asked.config, on("h100", nodes=8).fleet, fixed, {})
            if layout["parallel.zero_stage"] == 2
        ]
        assert ("deepspeed", 1) in layouts
        assert (("native", 1) in layouts) is (engine == "native")
        assert (("native", 2) in layouts) is (not fixed)


def test_a_registered_model_has_no_estimate(tmp_path):
    model = "model:\n  type: convolution\n  width: 24\n"
    with project(tmp_path, "own_model", model, drop=("model",)):
        what = r'model.type "convolution" \(tiny.yaml:\d+\): there is no estimate for it'
        with pytest.raises(UserError, match=what):
            search(load("tiny.yaml"), on("h100"))
        assert main(["plan", "tiny.yaml", "--device", "h100"]) == 2


def test_on_a_cpu_of_unknown_speed_the_plainest_is_best():
    cpu = replace(Hardware().device("l4"), name="cpu", architecture="cpu", memory=2**37)
    ground = on("l4", 2)
    ground = replace(ground, fleet=replace(ground.fleet, device=cpu))
    best = search(recipe("gpt2-124m"), ground).fitting[0].plan.layout
    assert not ground.timed
    assert (best.zero_stage, best.tensor_parallel_size, best.activation_checkpointing) == (0, 1, "none")


def test_rows_are_cut_twice_as_finely_where_heads_make_the_form_a_ring():
    """GPT-2 has 12 heads: of the 6 of a rank two ranks get 3 each, four ranks form a ring."""
    (cut,) = (each for each in DIMENSIONS if each.path == "parallel.sequence_parallel")
    config = recipe("gpt2-124m", "data.sequence_length=1016").config  # 8 * 127

    def values(context: int) -> list[bool]:
        chosen = {"parallel.tensor_parallel_size": 2, "parallel.context_parallel_size": context}
        return list(cut.values(config, on("h100").fleet, chosen))

    assert (values(1), values(2), values(4)) == ([True], [True], [False])


def test_ranks_share_rows_that_are_long() -> None:
    long = recipe("llama-3.1-8b", "data.sequence_length=131072", "model.max_position_embeddings=131072")
    shared = [each for each in search(long, on("h100")).fitting if each.plan.layout.context_parallel_size > 1]
    assert {each.plan.layout.context_parallel_form for each in shared} == {"ulysses"}
    assert {each.settings["parallel.context_parallel_size"] for each in shared} <= {2, 4, 8}
    first = shared[0]
    assert "CP " in words.layout(first.plan)
    assert any("context parallelism" in part.name for part in first.time.parts)


def test_ranks_share_rows_of_any_length_where_that_is_asked_for() -> None:
    given = recipe("llama-3.1-8b", "parallel.context_parallel_size=4")
    found = search(given, on("h100"), ["parallel.context_parallel_size"])
    assert {each.plan.layout.context_parallel_size for each in found.fitting} == {4}
