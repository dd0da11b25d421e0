"""The best checkpoint: saved where an evaluation finds it, named once it is there, and kept."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint.keeping import BEST, Best, read_best, write_best
from llmkit.checkpoint.named import named
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.loop import evaluations
from llmkit.loop.hook import Evaluation
from tests.program import at_step, recorded, rows, train

ROOT = Path("runs/tiny/checkpoints")
KEEP = (
    "checkpoint.keep_best=true", "checkpoint.every_steps=5", "checkpoint.keep_last=1",
    "evaluate.every_steps=2", "checkpoint.background=false",
)  # fmt: skip


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Held-out losses by step, which tests set; 9.0 at other steps."""
    found: dict[int, float] = {}

    def evaluate(
        engine: Any, heldout: Any, mesh: Any, control: Any, stop: Any, step: int, ranges: Any
    ) -> Evaluation:
        return Evaluation(step, found.get(step, 9.0), None)

    monkeypatch.setattr(evaluations, "evaluate", evaluate)
    return found


def steps() -> list[int]:
    return sorted(int(folder.name[5:]) for folder in ROOT.glob("step-*"))


def test_it_is_saved_kept_and_named(project: Path, losses: dict[int, float]) -> None:
    losses.update({2: 5.0, 4: 3.0, 6: 4.0, 8: float("nan"), 12: 3.0})
    assert train(*KEEP) == 0
    assert [event["step"] for event in recorded("save")] == [2, 4, 5, 10, 12]
    assert steps() == [4, 12], "the newest, and the best, which an equal one does not replace"
    assert read_best(ROOT) == Best(4, 3.0)
    assert [(event["step"], event["eval_loss"]) for event in recorded("best")] == [(2, 5.0), (4, 3.0)]
    checkpoint = open_checkpoint(named(Path("runs/tiny@best")))
    progress = checkpoint.state["progress"]
    assert (checkpoint.step, progress["evaluated_step"], progress["eval_loss"]) == (4, 4, 3.0)
    losses[14] = 2.0
    assert train(*KEEP, "train.max_steps=14", "schedule.steps=12") == 0
    assert read_best(ROOT) == Best(14, 2.0) and steps() == [4, 14]  # 4 goes with the next save
    assert train(*KEEP, "train.max_steps=15", "schedule.steps=12") == 0
    assert steps() == [14, 15]


def test_beside_training_it_is_named_once_it_is_there(project: Path, losses: dict[int, float]) -> None:
    losses.update({2: 5.0, 4: 3.0, 5: 2.0, 6: 4.0})
    assert train(*KEEP[:3], "evaluate.every_steps=1") == 0  # step 5 is being saved when it is evaluated
    assert read_best(ROOT) == Best(5, 2.0) and steps() == [5, 12]
    assert [event["step"] for event in recorded("save")] == [1, 2, 4, 5, 10, 12]
    assert recorded("best")[-1]["step"] == 5


def test_without_the_setting_none_is_made_and_one_that_is_there_is_kept(
    project: Path, losses: dict[int, float]
) -> None:
    losses.update({2: 5.0})
    assert train(*KEEP, "train.max_steps=3") == 0
    losses.update({4: 1.0})
    assert train("checkpoint.keep_last=1", *KEEP[3:]) == 0
    assert steps() == [2, 12] and read_best(ROOT) == Best(2, 5.0)
    assert [event["step"] for event in recorded("save")] == [2, 3, 5, 10, 12]


def test_every_so_many_steps_are_kept(project: Path) -> None:
    assert train("checkpoint.every_steps=2", "checkpoint.keep_last=1", "checkpoint.keep_every=4") == 0
    assert steps() == [4, 8, 12]


def test_a_start_names_what_the_one_before_could_not(
    project: Path, losses: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses.update({5: 2.0, 10: 1.0})
    every = (*KEEP[:3], "evaluate.every_steps=5", KEEP[4])
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(BEST):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert train(*every, "train.max_steps=5", "schedule.steps=12") == 0
    assert read_best(ROOT) is None
    assert "step-00000005, cannot be named: " in Path("runs/tiny/logs/rank-00000.log").read_text()
    assert train(*every, "train.max_steps=6", "schedule.steps=12") == 0
    assert read_best(ROOT) == Best(5, 2.0) and steps() == [5, 6]


def test_a_name_that_cannot_be_read_keeps_all_and_a_start_mends_it(
    project: Path, losses: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses.update({4: 2.0})
    at_step(monkeypatch, 6, lambda: (ROOT / BEST).write_text("{"))
    assert train(*KEEP) == 0
    assert steps() == [4, 5, 10, 12]
    log = Path("runs/tiny/logs/rank-00000.log").read_text()
    assert "older checkpoints cannot be deleted: runs/tiny/checkpoints/best.json" in log
    assert train(*KEEP, "train.max_steps=13", "schedule.steps=12") == 0
    assert read_best(ROOT) == Best(4, 2.0) and steps() == [4, 13]


def test_one_of_steps_that_are_done_again_is_not_the_best(project: Path, losses: dict[int, float]) -> None:
    losses.update({4: 3.0, 10: 2.0})
    assert train(*KEEP, "checkpoint.keep_last=9") == 0
    assert read_best(ROOT) == Best(10, 2.0)
    for step in (10, 12):
        shutil.rmtree(ROOT / f"step-{step:08d}")
    del losses[10]
    assert train(*KEEP, "checkpoint.keep_last=9") == 0
    assert read_best(ROOT) == Best(4, 3.0)
    again = [row["eval_loss"] for row in rows(Path("runs/tiny")) if row["step"] == 10 and "eval_loss" in row]
    assert again == [9.0]


def test_other_held_out_text_begins_anew(project: Path, losses: dict[int, float]) -> None:
    losses.update({2: 1.0, 6: 2.0})
    assert train(*KEEP, "train.max_steps=5", "schedule.steps=12") == 0
    cut = ("data.validation_fraction=0.2", "--allow-data-change")
    assert train(*KEEP, *cut) == 0
    assert read_best(ROOT) == Best(6, 2.0) and steps() == [6, 12]


def test_one_that_is_gone_is_nowhere(project: Path) -> None:
    assert train("train.max_steps=1") == 0
    write_best(ROOT, Best(9, 1.0))
    assert train("train.max_steps=2", "schedule.steps=12") == 0
    assert read_best(ROOT) is None
