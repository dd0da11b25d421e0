"""Samples at each evaluation: what the model writes at that moment, and training as without them."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmkit
from llmkit.generation.sampling import Sampling
from llmkit.generation.text import complete, stream_batch
from llmkit.loop import sample_table
from llmkit.monitor.media import read_media
from llmkit.prompts import text_prompt
from llmkit.weights import open_weights
from tests.program import rows, timeless, train

SETTINGS = ("train.max_steps=8", "evaluate.every_steps=4", "checkpoint.every_steps=4")
PROMPTS = 'monitor.samples=["the ", "row of"]'


def test_they_are_the_models_own_at_each_evaluation_and_change_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropout is at work in training, so that a random number more or less would show."""
    assert train("run.name=plain", *SETTINGS) == 0
    assert train(*SETTINGS, PROMPTS) == 0
    run = Path("runs/tiny")
    assert timeless(run) == timeless(Path("runs/plain"))
    found = read_media(run)
    assert [(item["step"], item["name"]) for item in found] == [(4, "samples"), (8, "samples")]
    assert {tuple(item["columns"]) for item in found} == {("prompt", "likeliest", "drawn")}
    for item in found:
        path = run / f"checkpoints/step-{item['step']:08d}"
        model, tokenizer = llmkit.TrainedModel(path).model(precision="fp32"), open_weights(path).tokenizer()
        asked = [text_prompt(tokenizer, text) for text in ("the ", "the ", "row of", "row of")]
        ways = [Sampling(temperature=0.0), Sampling(temperature=1.0)] * 2
        texts = [each.text for each in complete(stream_batch(model, tokenizer, asked, 64, ways), 4)]
        assert item["rows"] == [["the ", *texts[:2]], ["row of", *texts[2:]]]
    assert found[0]["rows"] != found[1]["rows"]
    assert [row["step"] for row in rows(run) if "eval_loss" in row] == [4, 8]


def test_a_model_that_cannot_be_sampled_from_is_noted_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise llmkit.UserError("it defines no logits(tokens)\nmore")

    monkeypatch.setattr(sample_table, "stream_batch", fail)
    assert train(*SETTINGS, PROMPTS) == 0
    out = capsys.readouterr().out
    assert out.count("no samples at evaluations: it defines no logits(tokens)\n") == 1
    assert read_media(Path("runs/tiny")) == []
