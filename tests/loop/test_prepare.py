"""What can be wrong is found before the data, which may take hours, are built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.data.building import build_source
from tests.program import train

RUN = Path("runs/tiny")


def no_build(patch: pytest.MonkeyPatch) -> None:
    def build(*arguments: object, **named: object) -> None:
        raise AssertionError("a source was built")

    patch.setattr(build_source, "assemble", build)


def test_a_model_that_does_not_fit_is_refused_before_a_source_is_built(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_build(monkeypatch)
    assert train("model.hidden_size=1048576", "model.intermediate_size=4194304") == 2
    assert "does not fit into memory" in capsys.readouterr().err
    (event,) = map(json.loads, (RUN / "events.jsonl").read_text().splitlines())
    assert event["event"] == "refused"


def test_a_checkpoint_of_another_model_is_refused_before_a_source_is_built(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("train.max_steps=2") == 0
    no_build(monkeypatch)
    other = ["model.position_embedding=learned", "data.sequence_length=64", "train.max_steps=4"]
    assert train(*other) == 2
    assert "model" in capsys.readouterr().err
