"""Rates transfer: features change alike at every width, and a deeper model is better at its own budget."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from llmkit.cli import main
from llmkit.recipes import new, recipe
from llmkit.recipes.rules import Size
from tests.program import rows
from tests.recipes.training import LENGTH, VOCABULARY, engine_of, features, train

WIDTHS = (64, 128, 256)
STEPS = 10


def slope(values: list[float]) -> float:
    """Exponent of width by which values grow."""
    return float(np.polyfit(np.log(WIDTHS), np.log(values), 1)[0])


def changes() -> tuple[list[float], list[float]]:
    """For each width the mean absolute features after some steps, and their mean absolute change."""
    sizes, moved = [], []
    for width in WIDTHS:
        engine = engine_of(Size(2, width, VOCABULARY, LENGTH))
        before = features(engine)
        train(engine, STEPS)
        after = features(engine)
        sizes.append(float(after.abs().mean()))
        moved.append(float((after - before).abs().mean()))
    return sizes, moved


def test_features_change_alike_at_every_width():
    sizes, moved = changes()
    assert abs(slope(moved)) < 0.3
    assert abs(slope(sizes)) < 0.3


@pytest.mark.exhaustive
def test_with_rates_that_grow_with_the_width_they_drift(monkeypatch):
    monkeypatch.setattr(recipe, "MATRICES", recipe.MATRICES._replace(exponent=0.5))
    assert slope(changes()[1]) > 0.5


@pytest.mark.exhaustive
def test_a_deeper_model_is_better_at_its_own_budget(tmp_path, monkeypatch):
    """Two depths of what `llmkit new` writes, with a fiftieth of the tokens: seconds of training each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "TOKENS_PER_PARAMETER", 0.25)
    monkeypatch.setattr(recipe, "LEAST_STEPS", 60)
    monkeypatch.setattr(new, "FEWEST_STEPS", 60)
    text = Path(sysconfig.get_paths()["stdlib"]) / "[a-d]*.py"
    losses = [final_loss(depth, ["--data", str(text), "--tokenizer", "bytes"]) for depth in (1, 2)]
    assert losses[1] < losses[0] - 0.1


def final_loss(depth: int, text: list[str]) -> float:
    """Held-out loss of a run that `llmkit new` wrote."""
    name = f"d{depth}"
    assert main(["new", name, "--depth", str(depth), "--sequence-length", "64", *text]) == 0
    quick = ["kernels.compile=false", "train.precision=fp32", "monitor.wandb.mode=disabled"]
    assert main(["train", f"{name}.yaml", "evaluate.every_steps=0", "monitor.log_every=100", *quick]) == 0
    return rows(Path("runs") / name)[-1]["eval_loss"]
