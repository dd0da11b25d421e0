"""What a start leaves in the run folder, and what it says has changed."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.load import load
from tests.program import recorded, train

FOLDER = Path("runs/tiny")


@pytest.mark.parametrize("done", [True, False])
def test_fewer_steps_than_are_made_end_the_run_where_it_stands(finished, done, capsys):
    if not done:
        (FOLDER / "DONE").unlink()
    assert train("train.max_steps=5") == 0
    printed = capsys.readouterr().out
    assert "train.max_steps 5 (command line): 12 steps are made already, so no more are" in printed
    assert "the learning rate of step" not in printed and "/5" not in printed
    assert open_checkpoint(FOLDER).step == 12 and (FOLDER / "DONE").exists()


def test_dropout_and_padding_may_change_and_every_change_is_recorded(finished, capsys):
    changes = ["model.hidden_dropout=0.0", "model.vocab_pad_multiple=64", "model.num_key_value_heads=2"]
    assert train(*changes, "train.max_steps=13", "schedule.steps=12", "monitor.log_every=2") == 0
    printed = capsys.readouterr().out
    assert "free to change: model.hidden_dropout: 0.1 -> 0.0 (command line), model.vocab_pad" in printed
    assert {change["setting"] for change in recorded("resume")[0]["changes"]} == {
        "model.hidden_dropout", "model.vocab_pad_multiple", "train.max_steps", "schedule.steps",
        "monitor.log_every",
    }  # fmt: skip


def test_the_settings_of_each_start_are_kept_and_a_start_with_nothing_to_do_changes_nothing(finished, capsys):
    def content() -> dict[str, bytes]:
        files = [FOLDER / "config.yaml", FOLDER / "manifest.json", *FOLDER.glob("configs/*")]
        return {str(file): file.read_bytes() for file in [*files, FOLDER / "events.jsonl"]}

    before = content()
    assert train("optimizer.learning_rate=0.001") == 0
    assert "is finished since step 12" in capsys.readouterr().out
    assert content() == before
    assert train("train.max_steps=13", "optimizer.learning_rate=0.001") == 0
    first, second = sorted(FOLDER.glob("configs/start-*.yaml"))
    assert [recorded("start")[0]["config"], recorded("resume")[0]["config"]] == [
        f"configs/{first.name}", f"configs/{second.name}",
    ]  # fmt: skip
    assert load(first).config == load("tiny.yaml").config
    assert load(second).config.optimizer.learning_rate == 0.001
    assert "0.001" in second.read_text() and "# command line" in second.read_text()


def test_other_versions_and_another_precision_are_told(finished, monkeypatch, capsys):
    monkeypatch.setattr("llmkit.loop.begin.__version__", "9.9")
    assert train("train.max_steps=13", "train.precision=bf16") == 0
    printed = capsys.readouterr().out
    assert "changed since the checkpoint: version of llmkit " in printed and " -> 9.9" in printed
    assert "changed since the checkpoint: precision in use fp32 -> bf16" in printed
    changed = [change["setting"] for change in recorded("resume")[0]["changes"]]
    assert changed == ["train.max_steps", "train.precision", "precision in use", "version of llmkit"]


def test_another_form_of_an_operator_is_told(finished, capsys):
    assert train("train.max_steps=13", "kernels.operators.attention=matmul") == 0
    assert "changed since the checkpoint: attention in use sdpa -> matmul" in capsys.readouterr().out
    changed = [change["setting"] for change in recorded("resume")[0]["changes"]]
    assert changed == ["train.max_steps", "kernels.operators.attention", "attention in use"]


def test_a_model_that_is_written_otherwise_but_is_the_same_goes_on(finished):
    assert train("train.max_steps=13", "model.head_dim=8", "model.vocab_size=257") == 0


def test_a_mirror_that_cannot_start_is_on_record_too(finished, monkeypatch):
    def fail(*arguments):
        raise OSError("no room for a process")

    monkeypatch.setattr(import_module("llmkit.train"), "open_mirror", fail)
    with pytest.raises(OSError, match="no room"):
        train("train.max_steps=13")
    assert recorded("fault")[0]["reason"] == "OSError: no room for a process"


@pytest.mark.parametrize(("kept", "lost"), [(12, None), (10, [10, 12]), (0, [0, 12])])
def test_lost_rows_are_told(finished, kept, lost, capsys):
    text = (FOLDER / "metrics.jsonl").read_text().splitlines(keepends=True)
    (FOLDER / "metrics.jsonl").write_text("".join(line for line in text if json.loads(line)["step"] <= kept))
    assert train("train.max_steps=13") == 0
    told = "metrics.jsonl has lost its rows after step"
    if lost is None:
        assert told not in capsys.readouterr().out
        assert "lost_rows" not in recorded("resume")[0]
    else:
        assert f"{told} {lost[0]} up to step {lost[1]}" in capsys.readouterr().out
        assert recorded("resume")[0]["lost_rows"] == {"after": lost[0], "up_to": lost[1]}


def test_rows_that_were_never_due_are_not_lost(finished, capsys):
    assert train("train.max_steps=15", "monitor.log_every=4") == 0  # 13 and 14 have no row, 15 is the last
    assert train("train.max_steps=17", "monitor.log_every=9") == 0
    assert train("train.max_steps=18") == 0
    assert "has lost" not in capsys.readouterr().out


def test_a_number_of_steps_that_is_no_longer_set_is_kept_and_that_is_told(finished, capsys):
    shutil.rmtree(FOLDER / "checkpoints/step-00000012")
    assert train("train.max_steps=null", "train.max_minutes=5") == 0
    assert "train.max_steps is not set now: the run keeps the 12 steps" in capsys.readouterr().out
    assert open_checkpoint(FOLDER).step == 12
