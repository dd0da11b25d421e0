"""Steps whose batch has no target: long questions fill whole rows, and what is learned are the answers."""

from __future__ import annotations

import json

import pytest
import torch

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from llmkit.data.shards.reader import ShardReader
from llmkit.engine.native import NativeEngine
from tests.program import make_project, rows


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Chats in which one row of 32 tokens in some has a target."""
    make_project(tmp_path)
    chat = [{"role": "user", "content": "long question " * 12}, {"role": "assistant", "content": "ok"}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(40)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


CHATS = [
    "data.sources=[{type: jsonl, path: chats.jsonl, record: chat}]", "data.validation_fraction=0",
    "train.global_batch_size=1", "train.max_steps=20", "run.deterministic=false",
]  # fmt: skip


def test_they_change_nothing_and_are_counted_and_told(project, monkeypatch, capsys):
    changed: list[bool] = []
    train_step = NativeEngine.train_step

    def watched(self, *arguments):
        before = [weight.detach().clone() for weight in self.weights.values()]
        result = train_step(self, *arguments)
        changed.append(not all(torch.equal(a, b) for a, b in zip(before, self.weights.values(), strict=True)))
        return result

    monkeypatch.setattr(NativeEngine, "train_step", watched)
    assert main(["train", "tiny.yaml", *CHATS, "monitor.log_every=7"]) == 0
    run, printed = project / "runs" / "tiny", capsys.readouterr().out
    empty = [step for step, change in enumerate(changed, start=1) if not change]
    assert 2 <= len(empty) <= 18

    found = {row["step"]: row for row in rows(run)}
    assert [step for step, row in found.items() if row.get("no_targets")] == empty
    assert sorted(found) == sorted({1, 7, 14, 20, *empty})
    assert all(found[step]["loss"] is None and found[step]["grad_norm"] is None for step in empty)
    assert changed.index(True) == 6, "step 7 compiles and warms caches, and counts in no mean of times"
    assert found[7]["step_seconds"] is None and found[7]["tokens_per_second"] is None
    counts = ((found[step], steps) for step, steps in ((14, 7), (20, 6)))
    trained = sum(row["tokens_per_second"] * row["step_seconds"] * steps for row, steps in counts)
    assert trained == pytest.approx(32 * sum(changed[7:])), "a step that computes nothing makes no speed"
    assert all(row["loss"] > 0.1 for step, row in found.items() if step not in empty)

    state = open_checkpoint(run).state
    assert state["progress"]["no_targets"] == len(empty) and state["progress"]["skipped"] == 0
    assert state["updates"] == 20 - len(empty)
    done = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert (done["event"], done["no_targets"]) == ("done", len(empty))
    assert f"{len(empty)} steps whose batch had no target" in printed
    assert "  no targets" in printed


def test_held_out_text_without_a_target_is_not_evaluated(project, monkeypatch, capsys):
    monkeypatch.setattr(ShardReader, "count_targets", lambda reader: 0)
    assert main(["train", "tiny.yaml", "train.max_steps=2", "run.deterministic=false"]) == 0
    assert "nothing will be evaluated: of the few documents" in capsys.readouterr().out
    assert not any("eval_loss" in row for row in rows(project / "runs" / "tiny"))
    assert main(["evaluate", "runs/tiny"]) == 2
    assert "no held-out token is a target" in capsys.readouterr().err
