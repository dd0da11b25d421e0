"""At the size where it was tuned the recipe is the demo's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.config.derive import resolved_model
from llmkit.config.load import load
from llmkit.config.schema import Config
from llmkit.recipes import recipe
from llmkit.recipes.compose import Source, compose
from llmkit.recipes.document import plain
from llmkit.recipes.rules import Size, budget

DEMO = load(Path(__file__).parents[2] / "configs/demo.yaml").config
SIZE = Size(DEMO.model.num_hidden_layers, recipe.WIDTH, 4096, 256)
STDLIB = Source({"type": "stdlib"}, {"type": "bpe"})


def config(size: Size, steps: int) -> Config:
    trained = replace(budget(size), steps=steps, rows=DEMO.train.global_batch_size)
    return Config.model_validate(plain(compose("run", size, trained, STDLIB, None, 1)))


def test_the_recipe_at_the_demos_size_is_the_demo():
    made = config(SIZE, recipe.STEPS)
    assert made.optimizer == DEMO.optimizer
    assert made.data == DEMO.data
    assert made.schedule.model_copy(update={"warmup_steps": DEMO.schedule.warmup_steps}) == DEMO.schedule
    assert abs(made.schedule.warmup_steps - DEMO.schedule.warmup_steps) <= 3
    assert resolved_model(made) == resolved_model(DEMO)


def test_a_wider_and_longer_run_has_other_rates():
    small, large = (
        config(SIZE, recipe.STEPS).optimizer,
        config(Size(12, 768, 4096, 256), 4 * recipe.STEPS).optimizer,
    )
    assert large.learning_rate < small.learning_rate
    spans = [each.learning_rate * each.weight_decay * steps for each, steps in ((small, 1), (large, 4))]
    assert spans[0] == pytest.approx(spans[1], rel=0.01)


def test_numbers_have_three_digits():
    assert [recipe.rounded(value) for value in (0.123456, 12345.6, 8e-3)] == [0.123, 12300.0, 8e-3]
