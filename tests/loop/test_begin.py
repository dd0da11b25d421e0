"""What a start leaves in the run folder, and what it says has changed."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.load import load
from tests.program import make_project, rows, train

FOLDER = Path("runs/tiny")


def recorded(event: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (FOLDER / "events.jsonl").read_text().splitlines())
    return [row for row in lines if row["event"] == event]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a finished run of twelve steps."""
    folder = tmp_path_factory.mktemp("begin")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train() == 0
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it as working directory."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rate(step: int) -> float:
    return next(row["learning_rate"] for row in rows(FOLDER) if row["step"] == step and "loss" in row)


def test_more_steps_stretch_the_schedule_and_that_is_told(project, capsys):
    assert train("train.max_steps=24") == 0
    printed = capsys.readouterr().out
    assert "train.max_steps: 12 -> 24 (command line): where the run ends" in printed
    said = f"learning rate of step 13 is {rate(13):.3g}; by the checkpoint's settings it was {rate(12):.3g}"
    assert f"{said}: the schedule now spans 24 steps instead of 12 (schedule.steps=12 " in printed
    assert rate(13) > 5 * rate(12)
    (event,) = recorded("resume")
    assert event["learning_rate"] == {"step": 13, "old": rate(12), "new": rate(13)}
    assert event["changes"] == [
        {"setting": "train.max_steps", "old": "12", "new": "24", "origin": "command line"}
    ]


def test_a_schedule_with_steps_of_its_own_is_kept(project, capsys):
    assert train("train.max_steps=15", "schedule.steps=12") == 0
    assert "the learning rate of step" not in capsys.readouterr().out
    assert [rate(step) for step in (12, 13, 15)] == [pytest.approx(0.001)] * 3
    assert "learning_rate" not in recorded("resume")[0]


@pytest.mark.parametrize("done", [True, False])
def test_fewer_steps_than_are_made_end_the_run_where_it_stands(project, done, capsys):
    if not done:
        (FOLDER / "DONE").unlink()
    assert train("train.max_steps=5") == 0
    printed = capsys.readouterr().out
    assert "train.max_steps 5 (command line): 12 steps are made already, so no more are" in printed
    assert "the learning rate of step" not in printed and "/5" not in printed
    assert open_checkpoint(FOLDER).step == 12 and (FOLDER / "DONE").exists()


def test_dropout_and_padding_may_change_and_every_change_is_recorded(project, capsys):
    changes = ["model.hidden_dropout=0.0", "model.vocab_pad_multiple=64", "model.num_key_value_heads=2"]
    assert train(*changes, "train.max_steps=13", "schedule.steps=12", "monitor.log_every=2") == 0
    assert "model.hidden_dropout: 0.1 -> 0.0 (command line): the same weights" in capsys.readouterr().out
    assert {change["setting"] for change in recorded("resume")[0]["changes"]} == {
        "model.hidden_dropout", "model.vocab_pad_multiple", "train.max_steps", "schedule.steps",
        "monitor.log_every",
    }  # fmt: skip


def test_the_settings_of_each_start_are_kept_and_a_start_with_nothing_to_do_changes_nothing(project, capsys):
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


def test_other_versions_and_another_precision_are_told(project, monkeypatch, capsys):
    monkeypatch.setattr("llmkit.loop.begin.__version__", "9.9")
    assert train("train.max_steps=13", "train.precision=bf16") == 0
    printed = capsys.readouterr().out
    assert "changed since the checkpoint: version of llmkit " in printed and " -> 9.9" in printed
    assert "changed since the checkpoint: precision in use fp32 -> bf16" in printed
    changed = [change["setting"] for change in recorded("resume")[0]["changes"]]
    assert changed == ["train.max_steps", "train.precision", "precision in use", "version of llmkit"]


def test_a_model_that_is_written_otherwise_but_is_the_same_goes_on(project):
    assert train("train.max_steps=13", "model.head_dim=8", "model.vocab_size=257") == 0


@pytest.mark.parametrize(
    ("override", "says"),
    [("model.intermediate_size=128", "64 -> 128"), ("data.sources.0.path=nowhere", "nowhere")],
)
def test_a_start_that_is_refused_says_so_in_the_record(project, override, says, capsys):
    assert train("train.max_steps=13", override) == 2
    (event,) = recorded("refused")
    assert says in event["reason"]
    assert open_checkpoint(FOLDER).step == 12


def test_a_start_that_fails_says_so_in_the_record(project, monkeypatch):
    def fail(*arguments, **settings):
        raise MemoryError("no room for the engine")

    monkeypatch.setattr("llmkit.loop.build.build_engine", fail)
    with pytest.raises(MemoryError):
        train("train.max_steps=13")
    assert recorded("fault")[0]["reason"] == "MemoryError: no room for the engine"


def test_a_mirror_that_cannot_start_is_on_record_too(project, monkeypatch):
    def fail(*arguments):
        raise OSError("no room for a process")

    monkeypatch.setattr(import_module("llmkit.train"), "open_mirror", fail)
    with pytest.raises(OSError, match="no room"):
        train("train.max_steps=13")
    assert recorded("fault")[0]["reason"] == "OSError: no room for a process"


@pytest.mark.parametrize(("kept", "lost"), [(12, None), (10, [10, 12]), (0, [0, 12])])
def test_lost_rows_are_told(project, kept, lost, capsys):
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


def test_rows_that_were_never_due_are_not_lost(project, capsys):
    assert train("train.max_steps=15", "monitor.log_every=4") == 0  # 13 and 14 have no row, 15 is the last
    assert train("train.max_steps=17", "monitor.log_every=9") == 0
    assert train("train.max_steps=18") == 0
    assert "has lost" not in capsys.readouterr().out


def test_a_number_of_steps_that_is_no_longer_set_is_kept_and_that_is_told(project, capsys):
    shutil.rmtree(FOLDER / "checkpoints/step-00000012")
    assert train("train.max_steps=null", "train.max_minutes=5") == 0
    assert "train.max_steps is not set now: the run keeps the 12 steps" in capsys.readouterr().out
    assert open_checkpoint(FOLDER).step == 12
