"""Which weights an average is made of, and in which shares."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.checkpoints.members import Choice, check_alike, choose, shared_out
from llmkit.errors import UserError

RUN = Path("runs/tiny")


def test_checkpoints_of_a_run_are_chosen_by_step_and_age(project: Path) -> None:
    def steps(choice: Choice, *paths: Path) -> list[int]:
        return [member.step for member in choose(paths or (RUN,), choice)]

    assert steps(Choice()) == [2, 4, 6, 8]
    assert steps(Choice(steps=[6, 2])) == [2, 6]
    assert steps(Choice(last=3)) == [4, 6, 8]
    assert steps(Choice(steps=[2, 4, 6], last=2)) == [4, 6]
    one, other = (RUN / f"checkpoints/step-{step:08d}" for step in (8, 2))
    assert steps(Choice(last=1), one, other) == [2, 8]  # of a run, not of what is named one by one


def test_shares_add_up_to_one(project: Path) -> None:
    members = choose([RUN], Choice())
    assert [each.share for each in shared_out(members, None)] == [0.25] * 4
    decayed = [each.share for each in shared_out(members, 0.5)]
    assert decayed == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15])


def test_dropout_and_seed_make_no_other_model_but_another_tokenizer_does(project: Path) -> None:
    from tests.program import train

    assert train("run.name=dropped", "model.hidden_dropout=0.3", "train.max_steps=1") == 0
    check_alike(choose([RUN, Path("runs/other"), Path("runs/dropped")], Choice()))
    tokenizer = Path("runs/dropped/checkpoints/step-00000001")
    members = choose([RUN, tokenizer], Choice(steps=[2]))
    other = members[0].weights.tokenizer()
    other.__dict__["hash"] = "another"
    object.__setattr__(members[0].weights, "tokenizer", lambda: other)
    with pytest.raises(UserError, match="they have different tokenizers"):
        check_alike(members)
