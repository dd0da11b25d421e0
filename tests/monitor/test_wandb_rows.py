"""Rows and media under the names they have on the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import wandb

from llmkit.monitor.columns import COLUMNS
from llmkit.monitor.wandb_rows import Best, chart_name, chart_values, events_table, media, media_name

SECTIONS = {"train", "eval", "speed", "memory", "data", "layers", "faults", "system"}


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("step", "train/step"),
        ("loss", "train/loss"),
        ("loss/wiki", "data/loss/wiki"),
        ("grad_norm", "train/grad_norm"),
        ("grad_norm/blocks.0", "layers/grad_norm/blocks.0"),
        ("tokens_per_second", "speed/tokens_per_second"),
        ("time/save", "speed/time/save"),
        ("peak_memory_gib", "memory/peak_memory_gib"),
        ("restarts", "faults/restarts"),
        ("lost/down", "faults/lost/down"),
        ("power_watts", "system/power_watts"),
        ("eval_loss", "eval/loss"),
        ("eval_loss/wiki", "eval/loss/wiki"),
        ("eval/arc_easy/acc", "eval/arc_easy/acc"),
        ("rewards/margin", "train/rewards/margin"),
        ("of_a_hook", "train/of_a_hook"),
        ("mine/of_a_hook", "mine/of_a_hook"),
        ("eval_of_a_hook", "eval/of_a_hook"),
    ],
)
def test_the_part_before_the_slash_is_the_section(column: str, name: str) -> None:
    assert chart_name(column) == name


def test_every_column_has_its_section_and_a_name_of_its_own() -> None:
    names = [chart_name(column.name) for column in COLUMNS]
    assert {name.partition("/")[0] for name in names} <= SECTIONS
    assert len(set(names)) == len(names)


def test_what_is_no_number_is_left_out() -> None:
    row = {"step": 5, "loss": 2.0, "grad_norm": None, "mfu_peak": "measured", "skipped": True}
    shown = chart_values(row)
    assert shown == {"train/step": 5, "train/loss": 2.0, "faults/skipped": 1}
    assert shown["faults/skipped"] is not True, "charts have no truth values"


def test_the_best_values_and_their_steps_are_in_the_summary() -> None:
    best = Best()
    assert best.see({"step": 1, "eval_loss": 3.0}) == {"best/eval_loss": 3.0, "best/eval_loss_step": 1}
    assert best.see({"step": 2, "eval_loss": 3.5, "tokens_per_second": 10.0, "mfu": None}) == {
        "best/tokens_per_second": 10.0,
        "best/tokens_per_second_step": 2,
    }
    assert best.see({"step": 3, "eval_loss": 2.0, "tokens_per_second": 9.0})["best/eval_loss_step"] == 3
    assert best.summary() == {
        "best/eval_loss": 2.0,
        "best/eval_loss_step": 3,
        "best/tokens_per_second": 10.0,
        "best/tokens_per_second_step": 2,
    }


def test_media_become_what_wandb_shows(tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"\x89PNG")
    histogram = {
        "step": 4,
        "kind": "histogram",
        "name": "gradients/b.0",
        "edges": [0, 1, 2],
        "counts": [3, 4],
    }
    table = {"step": 4, "kind": "table", "name": "samples", "columns": ["a", "b"], "rows": [["x", 1]]}
    image = {"step": 4, "kind": "image", "name": "plot", "path": "plot.png"}
    shown = {**media(histogram, tmp_path), **media(table, tmp_path), **media(image, tmp_path)}
    assert shown["train/step"] == 4
    assert shown["layers/gradients/b.0"].histogram == [3, 4] and shown["layers/gradients/b.0"].bins == [
        0,
        1,
        2,
    ]
    assert (shown["samples/samples"].columns, shown["samples/samples"].data) == (["a", "b"], [["x", 1]])
    assert isinstance(shown["images/plot"], wandb.Html)
    assert shown["images/plot"].html == '<img src="data:image/png;base64,iVBORw==">'
    assert media_name({"kind": "table", "name": "samples/chat"}) == "samples/chat"


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"step": 1, "kind": "sound", "name": "x"},
        {"step": 1, "kind": "table", "name": "x", "columns": ["a"], "rows": 3},
        {"step": 1, "kind": "histogram", "name": "x", "edges": [0], "counts": [1, 2, 3]},
        {"step": 1, "kind": "image", "name": "x", "path": "../outside.png"},
        {"step": 1, "kind": "image", "name": "x", "path": "/etc/passwd"},
        {"step": 1, "kind": "image", "name": "x", "path": "missing.png"},
    ],
)
def test_an_item_that_is_none_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "outside.png").write_bytes(b"png")
    with pytest.raises(ValueError):
        media(wrong, tmp_path / "run")


def test_all_events_are_a_table_at_the_last_step() -> None:
    events = [
        {"time": "t0", "event": "start", "step": 0, "config": "configs/start-0001.yaml", "changes": [1]},
        {"time": "t1", "event": "stop", "step": 7, "reason": "SIGTERM"},
        {"time": "t2", "event": "done"},
    ]
    shown = events_table(events)
    assert shown["train/step"] == 7
    assert shown["faults/events"].data == [
        ["t0", "start", 0, "config: configs/start-0001.yaml"],
        ["t1", "stop", 7, "reason: SIGTERM"],
        ["t2", "done", None, ""],
    ]
