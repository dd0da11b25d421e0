"""The curves of recipes that are kept: the pictures are of them, and so are the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.monitor.record import read_run
from llmkit.report.command import report_command
from tests.test_generated_pages import script

ROOT = Path(__file__).parents[1]
KEPT = sorted((ROOT / "configs/recipes/curves").iterdir())
curves = script("curves")


def test_something_is_kept_and_each_has_its_picture() -> None:
    assert KEPT
    assert {path.stem for path in (ROOT / "docs/curves").iterdir()} == {path.name for path in KEPT}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_what_is_kept_is_of_the_recipe_as_it_is(path: Path) -> None:
    run = read_run(path)
    _, train, config, *overrides = run.manifest["command"]
    assert train == "train" and config == run.manifest["config"]
    loaded = load(ROOT / config, overrides).config
    rows = run.columns["tokens"]
    read = rows.steps[-1] * loaded.train.global_batch_size * loaded.data.sequence_length
    assert rows.last == read or (loaded.train.init_from and rows.last < read)  # of a chat, answers alone
    assert loaded.train.max_steps in (rows.steps[-1], None)  # none: as many as its minutes allow
    assert (ROOT / "docs/curves" / f"{path.name}.svg").read_text() == curves.picture(run)
    kept = path / "config.yaml"
    if kept.exists():
        assert str(load(kept).config.model) == str(loaded.model) or loaded.train.init_from
        assert load(kept).config.optimizer == loaded.optimizer


def test_a_run_of_the_same_recipe_is_drawn_beside_it(tmp_path: Path) -> None:
    assert report_command([KEPT[0], KEPT[0]], tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").read_text().count(KEPT[0].name) > 2


def test_a_run_is_kept_without_what_nobody_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs/mine"
    run.mkdir(parents=True)
    rows = [{"step": n, "tokens": n * 8, "loss": 9 / n, "mfu": 0.5, "loss_mean": None} for n in range(1, 401)]
    rows.insert(200, {"step": 200, "eval_loss": 1.23456789, "eval_bits_per_byte": 1.0})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = ("2026-11-30T12:00:00.000+00:00", "2026-11-30T12:02:00.000+00:00")
    ends = [{"time": time, "event": event, "config": "x"} for time, event in zip(times, ("start", "done"))]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in ends))
    facts = {
        "llmkit": "1",
        "python": "3",
        "torch": "2",
        "device": "CPU",
        "precision": "fp32",
        "config": "c.yaml",
    }
    manifest = {**facts, "host": "secret", "command": ["/home/me/bin/llmkit", "train", "c.yaml"]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "config.yaml").write_text(f"run: {{dir: {tmp_path}/runs}}\n")
    curves.keep(read_run(run), tmp_path / "kept")
    kept = read_run(tmp_path / "kept")
    trained = kept.columns["loss"].steps.tolist()
    assert trained[0] == 1 and trained[-1] == 400 and curves.ROWS <= len(trained) < 2 * curves.ROWS
    assert kept.columns["eval_loss"].values.tolist() == [1.2346]
    assert "mfu" not in kept.columns and kept.state.name == "done"
    assert kept.manifest == {
        **facts,
        "command": ["llmkit", "train", "c.yaml"],
        "date": "2026-11-30",
        "seconds": 120,
    }
    assert (tmp_path / "kept/config.yaml").read_text() == "run: {dir: runs}\n"
    (run / "events.jsonl").write_text(json.dumps(ends[0]) + "\n")
    with pytest.raises(ValueError, match="not a run from one start to its end"):
        curves.keep(read_run(run), tmp_path / "other")
