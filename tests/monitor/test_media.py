"""media.jsonl: items are checked, kept small, read past damage, and cut back with the steps."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.load import load
from llmkit.errors import UserError
from llmkit.loop.hook import Hook, Request
from llmkit.loop.options import Options
from llmkit.monitor import media
from llmkit.monitor.sink import Sink
from llmkit.train import train
from tests.program import CONFIG, make_project


def test_items_are_what_their_makers_say() -> None:
    assert media.histogram("g", [0, 1, 2], [3, 4]) == {
        "kind": "histogram", "name": "g", "edges": [0, 1, 2], "counts": [3, 4]
    }  # fmt: skip
    assert media.table("samples", ["prompt", "text"], [["a", 1], [Path("b"), None]])["rows"] == [
        ["a", 1], ["b", None]
    ]  # fmt: skip
    assert media.image("loss", "figures/loss.png")["path"] == "figures/loss.png"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"kind": "sound", "name": "x"}, "'sound' is none of histogram, table, image"),
        ({"kind": ["table"], "name": "x"}, "is none of"),
        ({"kind": "table", "name": 3, "columns": [], "rows": []}, "needs a name"),
        ({"kind": "table", "name": "x", "columns": ["a"]}, "table x has no rows"),
        ({"kind": "table", "name": "x", "columns": ["a"], "rows": [[1, 2]]}, "2 cells, and there are 1"),
        (
            {"kind": "histogram", "name": "x", "edges": [0, 1], "counts": [1, 2]},
            "2 counts need one edge more",
        ),
        ({"kind": "image", "name": "x", "path": "../../etc/passwd"}, "inside the run folder"),
        ({"kind": "image", "name": "x", "path": "/etc/passwd"}, "inside the run folder"),
        ({"kind": "histogram", "name": "x", "edges": [0] * 400_001, "counts": [0] * 400_000}, "longer than"),
    ],
)
def test_other_items_are_refused_with_the_reason(item: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        media.checked(item)


def test_a_table_that_is_too_long_is_shortened_and_says_so() -> None:
    item = media.table("t", ["text"], [["y" * 20_000], *[["z" * 9_000]] * 200])
    assert len(json.dumps(item)) < media.MOST_BYTES
    assert item["rows"][0][0] == "y" * media.MOST_TEXT + "..."
    assert item["rows_left_out"] == 201 - len(item["rows"]) and len(item["rows"]) > 100
    assert media.checked(item)["rows"] == item["rows"]


def test_damaged_lines_and_what_is_no_item_are_not_read(tmp_path: Path) -> None:
    good = {"step": 3, **media.table("t", ["a"], [[1]])}
    escaping = {"step": 3, "kind": "image", "name": "x", "path": "../x.png"}
    odd = {"step": 3, "kind": "histogram", "name": "x", "edges": 3, "counts": None}
    lines = ["{torn", "[]", json.dumps({"step": 1}), json.dumps(escaping), json.dumps(odd), json.dumps(good)]
    (tmp_path / media.FILE).write_text("\n".join(lines) + '\n{"step": 4, "ki')
    assert media.read_media(tmp_path) == [good]
    media.cut_back_media(tmp_path, 2)
    assert (tmp_path / media.FILE).read_text() == ""


class Draws(Hook):
    """An item every second step; asks for a stop after one of them."""

    def __init__(self, stop: int = 0) -> None:
        self.stop = stop

    def after_step(self, t: Any, result: Any) -> None:
        if t.state.step % 2 == 0:
            t.write_media(media.table("t", ["step", "nan"], [[t.state.step, float("nan")]]))

    def request(self, t: Any) -> Request | None:
        return Request(stop="enough") if t.state.step == self.stop else None


class Takes(Sink):
    def __init__(self) -> None:
        self.items: list[Mapping[str, Any]] = []
        self.events: list[str] = []

    def write(self, row: Mapping[str, Any]) -> None:
        pass

    def media(self, item: Mapping[str, Any]) -> None:
        self.items.append(item)

    def event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event["event"])


def test_a_hooks_items_are_on_disk_once_a_step_over_a_resume_and_reach_sinks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path).write_text(CONFIG + "evaluate: {every_steps: 0}\n")
    monkeypatch.chdir(tmp_path)
    run, sink = tmp_path / "runs/tiny", Takes()

    def fit(hook: Hook, *sinks: Sink) -> int:
        loaded = load("tiny.yaml", ("train.max_steps=6", "checkpoint.every_steps=4"))
        return train(
            loaded, Options(), started=time.monotonic(), environment={}, hooks=[hook], sinks=list(sinks)
        )

    assert fit(Draws(stop=4)) == 75
    with open(run / media.FILE, "a") as file:  # what a start wrote that was killed after step 4
        file.write(json.dumps({"step": 6, **media.table("t", ["step", "nan"], [["lost", 0]])}) + "\n{to")
    assert fit(Draws(), sink) == 0
    found = media.read_media(run)
    assert [(item["step"], item["rows"]) for item in found] == [(n, [[n, None]]) for n in (2, 4, 6)]
    assert sink.items == found[2:]
    assert sink.events == ["resume", "save", "done"]
