"""A run read back from its folder, whatever state that is in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmkit.errors import UserError
from llmkit.monitor import record
from llmkit.monitor.record import read_run
from llmkit.run_folder import RunFolder

OLD_RUNS = Path(__file__).parents[1] / "old_runs"


def lines(path: Path, *rows: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "a run"
    lines(
        run / "metrics.jsonl",
        {"step": 10, "loss": 3.0, "loss_mean": 3.5, "step_seconds": None, "mfu_peak": "of this CPU"},
        {"step": 20, "loss": 2.0, "loss_mean": 2.5, "step_seconds": 100.0, "mfu_peak": "of this CPU"},
        {"step": 20, "eval_loss": 2.25},
        "torn",
    )
    time, one, two = "2026-11-29T01:00:00+00:00", "configs/start-0001.yaml", "configs/start-0002.yaml"
    lines(
        run / "events.jsonl",
        {"time": time, "event": "start", "step": 0, "config": one},
        {"time": time, "event": "resume", "step": 10, "config": two},
    )
    lines(run / one, "run:", "  seed: 1  # command line")
    lines(run / two, "run:", "  seed: 2  # a.yaml:3")
    table = {"step": 20, "kind": "table", "name": "samples", "columns": [], "rows": []}
    lines(run / "media.jsonl", table, "[")
    lines(run / "manifest.json", {"host": "vm"})
    lines(run / "checkpoints/step-00000010/manifest.json", {"step": 10})
    lines(run / "checkpoints/step-00000020/manifest.json", {"step": 20})
    (run / "checkpoints/.part-step-00000030").mkdir()
    return run


def test_every_part_of_a_run_is_read(folder: Path) -> None:
    run = read_run(folder)
    assert run.name == "a run" and run.manifest == {"host": "vm"}
    assert run.columns["loss"].values.tolist() == [3.0, 2.0] and run.texts["mfu_peak"] == "of this CPU"
    assert run.damaged_lines == 1 and run.checkpoint == {"step": 20}
    assert run.newest == {
        "step": 20, "loss": 2.0, "loss_mean": 2.5, "step_seconds": 100.0, "mfu_peak": "of this CPU",
        "eval_loss": 2.25,
    }  # fmt: skip
    assert [event["event"] for event in run.events] == ["start", "resume"]
    assert [item["name"] for item in run.media] == ["samples"]
    assert run.settings.values == {"run.seed": 2} and run.settings.origins == {"run.seed": "a.yaml:3"}
    assert run.settings_of(run.events[0]).values == {"run.seed": 1}


def test_a_run_whose_rows_come_rarely_is_not_stalled_for_that(folder: Path) -> None:
    (folder / "run.lock").write_text(json.dumps({"host": "elsewhere"}))
    written = max((folder / name).stat().st_mtime for name in ("metrics.jsonl", "manifest.json"))
    assert read_run(folder, now=written + 9_999).state.name == "running"  # a row takes 1,000 s
    assert read_run(folder, now=written + 10_001).state.name == "stalled"


def test_newest_rows_of_a_long_file_come_from_its_end(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(record, "TAIL_BYTES", 300)
    rows = [{"step": step, "loss": float(step)} for step in range(1, 999)]
    lines(folder / "metrics.jsonl", {"step": 0, "early": 1}, *rows, {"step": 990, "eval/a/b": 1.0})
    assert read_run(folder).newest == {"step": 998, "loss": 998.0, "eval/a/b": 1.0}


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "configs/../x", "configs", ""])
def test_settings_are_read_from_the_run_folder_alone(folder: Path, name: str) -> None:
    lines(folder / "config.yaml", "run:", "  seed: 3")
    lines(folder / "events.jsonl", {"event": "start", "config": name})
    assert read_run(folder).settings.values == {"run.seed": 3}


def test_a_folder_with_nothing_in_it_but_a_lock_is_a_run(tmp_path: Path) -> None:
    held = RunFolder.open(tmp_path, "llmkit train")
    run = read_run(tmp_path)
    assert (run.columns, run.events, run.media, run.newest) == ({}, [], [], {})
    assert run.manifest == run.checkpoint == run.settings.values == {} and run.state.name == "running"
    held.close()
    (tmp_path / "manifest.json").write_text("[1")
    assert read_run(tmp_path).manifest == {} and read_run(tmp_path).state.name == "failed"


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong = {tmp_path: "is no run folder", tmp_path / "file": "no such", tmp_path / "x": "no such"}
    for path, says in wrong.items():
        with pytest.raises(UserError, match=says):
            read_run(path)


def test_a_run_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUNS / "2026-11-22-folder/folder", tmp_path / "old")
    run = read_run(tmp_path / "old")
    assert run.columns["loss"].last is not None and run.settings.get("data.validation_fraction") is not None
    assert run.state.name == "failed" and run.manifest["precision"] == "fp32"
    assert run.checkpoint["step"] == 4
