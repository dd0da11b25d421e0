"""`llmkit runs`: what is found, how it is shown, sorted, and as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.monitor.terminal import Painter
from llmkit.watch.options import SORTS
from llmkit.watch.runs import RunLine, find_runs, read_line, sorted_lines, table
from tests.watch.folders import add_row, make_run

DONE = {"event": "done", "step": 5}
STOPPED = {"event": "stop", "step": 3, "reason": "SIGTERM"}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs, and of what is none."""
    root = tmp_path / "runs"
    make_run(root / "first", steps=5, max_steps=5, end=DONE)
    add_row(root / "first", {"step": 5, "eval_loss": 4.25, "eval_bits_per_byte": 1.0})
    eight = {"world_size": 8, "zero_stage": 1, "tensor_parallel_size": 2, "context_parallel_size": 2}
    make_run(root / "deep" / "er" / "second", steps=3, end=STOPPED, layout=eight)
    (root / "first" / "checkpoints" / "manifest.json").parent.mkdir()
    (root / "first" / "checkpoints" / "manifest.json").write_text("{}")  # in a run nothing is looked for
    (root / ".hidden").mkdir()
    (root / ".hidden" / "metrics.jsonl").touch()
    (root / "empty").mkdir()
    (root / "notes.txt").touch()
    return root


def test_runs_are_found_at_any_depth_and_nothing_else(runs: Path) -> None:
    assert [str(path.relative_to(runs)) for path in find_runs(runs)] == ["deep/er/second", "first"]
    assert list(find_runs(runs / "first")) == [runs / "first"]
    os.symlink(runs, runs / "loop")
    names = {path.name for path in find_runs(runs)}
    assert names == {"first", "second"} and len(list(find_runs(runs))) == 2
    os.symlink(runs / "first", runs / "newest")
    assert len(list(find_runs(runs))) == 3


def test_the_table_says_how_each_run_stands(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--sort", "name"]) == 0
    heading, second, first = capsys.readouterr().out.splitlines()
    assert heading.split() == ["name", "state", "step", "loss", "held-out", "tokens/s", "layout", "age"]
    assert second.startswith("deep/er/second  stopped  3/100  7.0000")
    assert "8: ZeRO-1, TP 2, CP 2" in second
    assert first.startswith("first           done       5/5  5.0000    4.2500      2.0k  1 ")


def test_a_run_that_cannot_be_read_does_not_hide_the_others(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "odd/events.jsonl").mkdir(parents=True)
    add_row(runs / "first", {"step": 6, "loss": float("nan"), "tokens_per_second": float("inf")})
    assert main(["runs", str(runs), "--json", "--sort", "name"]) == 0
    second, first, odd = json.loads(capsys.readouterr().out)
    assert (odd["name"], odd["state"], odd["step"]) == ("odd", "unreadable", None)
    assert "cannot be read" in odd["reason"] and second["loss"] == 7.0
    assert first["loss"] is None and first["speed"] is None
    assert main(["runs", str(runs)]) == 0 and "odd" in capsys.readouterr().out


def test_json_has_the_same_and_more(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--json", "--sort", "loss", "--size"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["state"], first["heldout"]) == ("first", "done", 4.25)
    assert first["size"] == sum(path.stat().st_size for path in (runs / "first").rglob("*") if path.is_file())
    assert second["reason"] == "stopped by SIGTERM after step 3" and second["path"].endswith("deep/er/second")
    assert second["heldout"] is None and second["age"] > 0


def test_headings_of_the_table_name_columns_too(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs)]) == 0
    for heading in capsys.readouterr().out.splitlines()[0].split():
        assert main(["runs", str(runs), "--sort", heading]) == 0, heading


def line(name: str, **more: object) -> RunLine:
    blank = dict.fromkeys(("step", "max_steps", "loss", "heldout", "speed", "layout", "age"))
    return RunLine(**{"name": name, "path": name, "state": "done", "reason": "", **blank, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "order"), [("loss", "bca"), ("step", "cba"), ("name", "abc"), ("age", "abc"), ("size", "abc")]
)
def test_the_best_comes_first_and_what_is_not_known_last(column: str, order: str) -> None:
    lines = [line("a", step=None), line("b", loss=1.0, step=5), line("c", loss=2.0, step=9)]
    assert "".join(each.name for each in sorted_lines(lines, column)) == order


def test_every_column_can_be_sorted_by() -> None:
    for column in SORTS:
        assert len(sorted_lines([line("a"), line("b", step=1, loss=1.0, age=2.0, layout="1")], column)) == 2


def test_long_and_wide_names_do_not_break_the_columns() -> None:
    shown = list(table([line("模型" * 40, step=3), line("x" * 500, step=44), line("short", step=5)]))
    ends = {each.rstrip()[-2:].strip() for each in shown[1:]}
    assert ends == {"3", "44", "5"} and all("…" in each for each in shown[1:3])


def test_names_are_shortened_to_the_terminal_and_nothing_else() -> None:
    lines = [line("a-long-name-of-a-run" * 2, step=12345, layout="8: ZeRO-1")]
    assert [len(each) for each in table(lines, 45)] == [45 - 3, 45]
    assert list(table(lines, 1))[1].startswith("a-long-name…  done")


def test_states_have_colours_and_names_have_none() -> None:
    paint = Painter(True, {"TERM": "xterm"})
    heading, failed, done = table([line("done", state="failed", step=1), line("模型", step=2)], None, paint)
    assert heading.startswith("\x1b[1m") and failed.startswith("done  \x1b[31mfailed")
    assert done.startswith("模型  \x1b[32mdone")


def test_odd_folders_are_lines_with_little_in_them(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "metrics.jsonl").write_bytes(b"\x00\xff\n{}\n[1]\n")
    (odd / "manifest.json").write_text('{"layout": 3, "max_steps": "x"}')
    found = read_line(odd, tmp_path, now=0.0)
    assert (found.name, found.step, found.max_steps, found.layout) == ("odd", None, None, None)
    (tmp_path / "bad\x1b[2J").mkdir()
    (tmp_path / "bad\x1b[2J" / "events.jsonl").touch()
    assert "\x1b" not in "".join(table([read_line(path, tmp_path, 0.0) for path in find_runs(tmp_path)]))


def test_no_runs_and_no_folder_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "there are no runs in" in capsys.readouterr().err
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["runs", str(tmp_path / "missing")]) == 2
    assert "is no folder" in capsys.readouterr().err
