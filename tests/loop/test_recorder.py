"""Numbers that hooks and models record: one a row, by their rule."""

from __future__ import annotations

import json
from typing import get_args

import pytest
import torch

from llmkit.errors import UserError
from llmkit.loop.recorder import Recorder, Rule
from llmkit.loop.scalars import Scalars
from llmkit.parallel.mesh import Mesh


def row(recorder: Recorder) -> dict[str, float]:
    recorded = recorder.take()
    return recorded.reduce(Scalars(recorded.tensors).read() if recorded.tensors else [])


@pytest.mark.parametrize(
    ("rule", "wanted"), [("mean", 2.0), ("sum", 6.0), ("max", 3.0), ("min", 1.0), ("last", 2.0)]
)
@pytest.mark.parametrize("kinds", ["numbers", "tensors", "both"])
def test_the_values_since_the_last_row_become_one(rule: Rule, wanted: float, kinds: str) -> None:
    recorder = Recorder(Mesh())
    for index, value in enumerate((1.0, 3.0, 2.0)):
        on_device = kinds == "tensors" or (kinds == "both" and index != 1)
        recorder.record("x", torch.tensor(value) if on_device else value, reduce=rule)
    assert row(recorder) == {"x": pytest.approx(wanted)}
    assert row(recorder) == {}, "each row takes what is new"


def test_several_names_keep_their_values() -> None:
    recorder = Recorder(Mesh())
    recorder.record("a", torch.tensor([2.0], requires_grad=True))
    recorder.record("b", 5)
    recorder.record("c", torch.tensor(7, dtype=torch.int32), reduce="sum")
    assert row(recorder) == {"a": 2.0, "b": 5.0, "c": 7.0}


def test_what_cannot_be_recorded_is_refused_with_its_name() -> None:
    recorder = Recorder(Mesh(), columns=("loss",))
    with pytest.raises(UserError, match="'loss' is a column of llmkit's own"):
        recorder.record("loss", 1.0)
    with pytest.raises(UserError, match=r"'x' is a tensor of shape \(2,\), not a scalar"):
        recorder.record("x", torch.zeros(2))
    with pytest.raises(UserError, match="reduce='median' of 'x' is none of mean, sum, max, min, last"):
        recorder.record("x", 1.0, reduce="median")  # type: ignore[arg-type]
    recorder.record("x", 1.0, reduce="max")
    with pytest.raises(UserError, match="'x' was recorded with reduce='max' and 'min'"):
        recorder.record("x", 1.0, reduce="min")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_was_recorded_goes_on_under_any_number_of_ranks(ranks: int) -> None:
    saved = []
    for value in (1.0, 4.0):
        recorder = Recorder(Mesh())
        for rule in get_args(Rule):
            recorder.record(rule, torch.tensor(value) if rule == "sum" else value, reduce=rule)
        saved += json.loads(json.dumps(recorder.state()))
    found = []
    for rank in range(ranks):
        recorder = Recorder(Mesh(rank=rank, world_size=ranks), gathers=False)
        recorder.load_state(saved)
        found.append(row(recorder))
    if ranks == 1:
        assert found == [{"mean": 2.5, "sum": 5.0, "max": 4.0, "min": 1.0, "last": 1.0}]
    else:
        assert found[:2] == [dict.fromkeys(get_args(Rule), value) for value in (1.0, 4.0)]
        assert found[2:] == [{}] * (ranks - 2)


def test_what_a_checkpoint_holds_under_another_rule_or_a_name_of_ours_is_left_out() -> None:
    before = Recorder(Mesh())
    before.record("x", 5.0, reduce="max")
    before.record("mine", 5.0)
    recorder = Recorder(Mesh(), columns=("mine",))
    recorder.load_state(before.state())
    recorder.record("x", 1.0, reduce="sum")
    recorder.record("x", 2.0, reduce="sum")
    assert row(recorder) == {"x": 3.0}
