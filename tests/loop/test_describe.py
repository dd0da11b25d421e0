"""What a start says about settings that will not do what they seem to."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.checkpoint.pieces import EMA
from llmkit.checkpoint.read import load
from llmkit.cli import main
from tests.program import make_project

COMMON = ["run.deterministic=false", "data.workers=0", "checkpoint.every_steps=0"]


def said(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What a run of these settings prints; it must succeed."""
    capsys.readouterr()
    assert main(["train", "tiny.yaml", *COMMON, *overrides]) == 0
    return "".join(capsys.readouterr())


def test_an_evaluation_that_cannot_be_and_ids_without_text_are_told_at_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path, documents=3)
    monkeypatch.chdir(tmp_path)
    few = ["evaluate.every_steps=2", "model.vocab_size=4096"]
    for steps in (2, 4):
        printed = said(capsys, *few, f"train.max_steps={steps}")
        assert printed.count("nothing will be evaluated: of the few documents of the sources, data.v") == 1
        assert printed.count("model.vocab_size 4096 (command line) is larger than the tokenizer's 257") == 1
        assert "generate runs/tiny" in printed and "evaluate runs/tiny" not in printed
    assert main(["evaluate", "runs/tiny"]) == 2
    assert "nothing is held out: of the few documents of the sources, data.v" in capsys.readouterr().err
    assert main(["train", "tiny.yaml", *COMMON, *few, "evaluate.early_stopping=1", "train.max_steps=6"]) == 2
    message = capsys.readouterr().err
    assert "evaluate.early_stopping 1 (command line) needs held-out documents\n      of the few" in message
    printed = said(capsys, "run.name=other", "data.validation_fraction=0.5", "train.max_steps=1")
    assert "nothing will be evaluated" not in printed and "evaluate runs/other" in printed


def test_a_moving_average_begins_in_the_midst_of_a_run_and_is_dropped_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    begins = "no moving average is in that checkpoint: it begins at the weights of step 2"
    assert begins not in said(capsys, "train.max_steps=2")
    printed = said(capsys, "train.max_steps=4", "train.ema.decay=0.9")
    assert begins in printed and "changed since the checkpoint: train.ema.decay: null -> 0.9" in printed
    assert "it begins" not in said(capsys, "train.max_steps=5", "train.ema.decay=0.9")
    printed = said(capsys, "train.max_steps=6")
    assert "the moving average in that checkpoint is dropped" in printed
    assert EMA not in load(tmp_path / "runs/tiny/checkpoints/step-00000006").kinds()
