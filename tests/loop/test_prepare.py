"""What can be wrong is found before the data, which may take hours, are built."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.data.building import build_source
from llmkit.loop import room
from llmkit.plan import DeviceFacts, Known, resolve_plan
from llmkit.plan.memory import memory
from tests.program import train

RUN = Path("runs/tiny")


def no_build(patch: pytest.MonkeyPatch) -> None:
    def build(*arguments: object, **named: object) -> None:
        raise AssertionError("a source was built")

    patch.setattr(build_source, "write_shards", build)


def test_a_model_that_does_not_fit_is_refused_before_a_source_is_built(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_build(monkeypatch)
    assert train("model.hidden_size=1048576", "model.intermediate_size=4194304") == 2
    assert "does not fit into memory" in capsys.readouterr().err
    (event,) = map(json.loads, (RUN / "events.jsonl").read_text().splitlines())
    assert event["event"] == "refused"


def test_a_step_that_cannot_fit_is_refused_before_a_source_is_built_unless_it_is_to_start_anyway(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Known(1, tokenizer_size=257, holds_out=True, device=DeviceFacts())
    needs = memory(resolve_plan(load("tiny.yaml", ["train.micro_batch_size=4"]), known))
    assert needs.state.total < needs.least
    monkeypatch.setattr(room, "host_memory", lambda: needs.least - 1)
    with monkeypatch.context() as patch:
        no_build(patch)
        assert train("train.micro_batch_size=4") == 2
        refusal = capsys.readouterr().err
    assert "a step does not fit into memory: train.micro_batch_size 4 (command line)" in refusal
    assert "What should fit: train.micro_batch_size=" in refusal and "--anyway starts" in refusal
    assert len(refusal.splitlines()) == 1
    assert train("train.micro_batch_size=4", "train.max_steps=1", "--anyway") == 0
    assert "a step does not fit into memory" in capsys.readouterr().out
    smaller = re.findall(r"train\.micro_batch_size=(\d)", refusal)[0]
    assert train(f"train.micro_batch_size={smaller}", "train.max_steps=2") == 0


def test_a_checkpoint_of_another_model_is_refused_before_a_source_is_built(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("train.max_steps=2") == 0
    no_build(monkeypatch)
    other = ["model.position_embedding=learned", "data.sequence_length=64", "train.max_steps=4"]
    assert train(*other) == 2
    assert "model" in capsys.readouterr().err
