"""`llmkit report`: where the page goes, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.report.runs import make_run

OLD_RUN = Path(__file__).parents[1] / "old_runs/2026-11-22-folder/folder"


def test_a_page_is_written_into_the_run_folder_and_replaced(tmp_path: Path, capsys):
    run = make_run(tmp_path / "run").folder
    for _ in range(2):
        assert main(["report", str(run)]) == 0
        assert capsys.readouterr().out == f"wrote {run}/report.html: open it in a browser\n"
    assert (run / "report.html").read_bytes().startswith(b"<!doctype html>")
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "configs", "events.jsonl", "manifest.json", "media.jsonl", "metrics.jsonl",
        "report.html",
    }  # fmt: skip


def test_a_page_on_several_runs_is_written_here_or_where_asked(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [str(make_run(tmp_path / name).folder) for name in ("one", "two")]
    assert main(["report", *runs]) == 0 and b"one | two" in Path("report.html").read_bytes()
    assert main(["report", runs[0], "--output", "page.html"]) == 0 and Path("page.html").exists()
    assert not (tmp_path / "one/report.html").exists()


def test_a_run_of_an_older_version_and_an_odd_name_have_a_page(tmp_path: Path):
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(OLD_RUN, odd)
    assert main(["report", str(odd)]) == 0
    assert rb"<h1>caf\udce9</h1>" in (odd / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("runs", "output", "says"),
    [
        (["missing"], "page.html", "missing: there is no such run folder"),
        (["."], "page.html", ".: is no run folder"),
        (["run"], "mine.html", "mine.html is there already and is no report; name another file by --output"),
        (["run"], "no/such/page.html", "no/such/page.html cannot be written: No such file or directory"),
        (["run"] * 41, "page.html", "41 runs are more than a page can tell apart"),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, monkeypatch, capsys, runs, output, says):
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"))
    Path("mine.html").write_text("<p>mine</p>")
    assert main(["report", *runs, "--output", output]) == 2
    captured = capsys.readouterr().err
    assert says in captured and captured.count("\n") == 1
    assert Path("mine.html").read_text() == "<p>mine</p>" and not Path("page.html").exists()
