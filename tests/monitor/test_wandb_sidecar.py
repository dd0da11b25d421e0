"""Which rows are passed on to W&B, under which names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmkit.monitor.metrics import MetricsFile
from llmkit.monitor.wandb_sidecar import Tail, chart_values


def session(restarts: int, run_dir: Path) -> dict[str, Any]:
    metrics = run_dir / "metrics.jsonl"
    return {"restarts": restarts, "mirrored_at_most": metrics.stat().st_size if metrics.exists() else 0}


def take(tail: Tail) -> list[int]:
    """Steps of the new rows, all of them passed on."""
    rows = tail.rows()
    for _, place in rows:
        tail.passed_on(place)
    return [row["step"] for row, _ in rows]


def started(run_dir: Path, restarts: int = 0) -> tuple[MetricsFile, Tail]:
    (run_dir / "wandb").mkdir(exist_ok=True)
    return MetricsFile(run_dir / "metrics.jsonl"), Tail(run_dir, session(restarts, run_dir))


def test_names_are_grouped_and_what_is_no_number_is_left_out() -> None:
    row = {"step": 5, "loss": 2.0, "grad_norm": None, "mfu_peak": "measured", "skipped": True}
    assert chart_values(row, 2) == {"train/step": 5, "restarts": 2, "train/loss": 2.0, "train/skipped": True}
    row = {"step": 5, "eval_loss": 1.0}
    assert chart_values(row, 0) == {"train/step": 5, "restarts": 0, "eval/loss": 1.0}


def test_each_row_is_seen_once_and_a_torn_one_only_when_it_is_whole(tmp_path: Path) -> None:
    metrics, tail = started(tmp_path)
    assert take(tail) == [], "there is no file yet"
    metrics.append({"step": 1})
    with open(metrics.path, "ab") as file:
        file.write(b'{"step"')
        file.flush()
        assert take(tail) == [1]
        file.write(b": 2}\n")
    assert take(tail) == [2]
    assert take(tail) == []


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    metrics, tail = started(tmp_path)
    metrics.append({"step": 1})
    with open(metrics.path, "ab") as file:
        file.write(b"\x00\xff\n[1]\n")
    metrics.append({"step": 2})
    assert take(tail) == [1, 2]


def test_rows_count_as_mirrored_only_once_they_are_safe(tmp_path: Path) -> None:
    metrics, tail = started(tmp_path)
    metrics.append({"step": 1})
    take(tail)
    tail.remember()
    _, after_a_kill = started(tmp_path)
    assert take(after_a_kill) == [1]
    after_a_kill.remember(all_safe=True)
    metrics.append({"step": 2})
    _, after_an_end = started(tmp_path)
    assert take(after_an_end) == [2]


def test_rows_cut_back_on_resume_are_sent_again_when_they_are_redone(tmp_path: Path) -> None:
    metrics, tail = started(tmp_path)
    for step in range(1, 6):
        metrics.append({"step": step, "loss": 1.0})
    take(tail)
    tail.remember(all_safe=True)

    metrics.cut_back(3)
    beginning = session(1, tmp_path)
    for step in range(4, 9):  # the mirror may come up later than these rows
        metrics.append({"step": step, "loss": 2.0})
    assert take(Tail(tmp_path, beginning)) == [4, 5, 6, 7, 8]
    assert take(tail) == [], "the mirror of the earlier start has nothing to do with the new file"


def test_a_state_that_cannot_be_read_means_that_nothing_was_mirrored(tmp_path: Path) -> None:
    metrics, _ = started(tmp_path)
    metrics.append({"step": 1})
    for state in ("", "{}", "[]", json.dumps({"offset": "x", "session": 0})):
        (tmp_path / "wandb" / "mirror.json").write_text(state)
        assert take(Tail(tmp_path, session(0, tmp_path))) == [1]
