"""What a start says about settings that will not do what they seem to."""

from __future__ import annotations

from pathlib import Path

import pytest

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
