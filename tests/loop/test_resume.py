"""The counters of a resumed run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config.schema import Config, Data, Evaluate, Source, Train
from llmkit.data.state import DataState, Fingerprint
from llmkit.loop.resume import resumed_state
from llmkit.loop.state import TrainState

STOPPED = TrainState(
    step=12, max_steps=40, evaluated_step=12, eval_loss=2.0, best_eval_loss=1.5, evaluations_without_gain=3
)


def fingerprint(**changes: Any) -> dict[str, Any]:
    source = {"name": "a", "kind": "shards", "tokens": 9, "digest": "x", "heldout": "y"}
    found = {"tokenizer": "t", "sequence_length": 32, "document_masks": False, "sources": [source]}
    return found | {"sources": [source | changes]} if "heldout" in changes else found | changes


def resumed(now: dict[str, Any], notes: list[str]) -> TrainState:
    before = DataState.at_start(0, [1.0], Fingerprint.model_validate(fingerprint()))
    state = {"progress": STOPPED.to_json(), "data": before.model_dump(mode="json")}
    config = Config(
        data=Data(sources=[Source(type="stdlib")]),
        train=Train(max_steps=50),
        evaluate=Evaluate(early_stopping=3),
    )
    checkpoint: Any = SimpleNamespace(state=state, origin="a checkpoint")
    return resumed_state(checkpoint, config, Fingerprint.model_validate(now), notes.append)


def test_early_stopping_goes_on_counting_on_the_same_held_out_text():
    notes: list[str] = []
    progress = resumed(fingerprint(), notes)
    assert (progress.step, progress.max_steps, progress.best_eval_loss) == (12, 50, 1.5)
    assert progress.stopped_early
    assert notes == []


@pytest.mark.parametrize("change", [{"heldout": "z"}, {"sequence_length": 64}, {"document_masks": True}])
def test_losses_on_other_held_out_text_are_not_compared(change):
    notes: list[str] = []
    progress = resumed(fingerprint(**change), notes)
    assert (progress.best_eval_loss, progress.evaluations_without_gain) == (None, 0)
    assert not progress.stopped_early
    assert notes == ["other text is held out than before: early stopping begins to compare anew"]
