"""The page that a run leaves in its folder."""

from __future__ import annotations

from llmkit.report import command
from tests.program import at_step, events, train


def test_a_run_that_is_stopped_or_done_leaves_its_page(project, monkeypatch, capsys):
    folder = project / "runs/tiny"
    at_step(monkeypatch, 3, (folder / "STOP").touch)
    assert train("monitor.report=true") == 75
    page = (folder / "report.html").read_text()
    assert 'stopped</span> step 3 of 12 (25 %); stopped by the stop file runs/tiny/STOP after' in page
    assert train("monitor.report=true") == 0
    page = (folder / "report.html").read_text()
    assert '<span class="badge done">done</span> step 12 of 12 (100 %); finished after step 12' in page
    assert 'title="step 3: resume' in page
    printed = capsys.readouterr().out
    assert "runs/tiny/report.html: open it in a browser" in printed
    assert " report runs/tiny" not in printed.partition("Try next")[2]
    (folder / "report.html").unlink()
    assert train("monitor.report=true") == 0  # nothing is left to do, and nothing is written
    assert not (folder / "report.html").exists()


def test_no_page_is_no_fault(project, monkeypatch, capsys):
    def fail(records, path):
        raise ZeroDivisionError("an odd run")

    monkeypatch.setattr(command, "write_page", fail)
    assert train("monitor.report=true", "train.max_steps=2") == 0
    printed = capsys.readouterr().out
    assert "no report: ZeroDivisionError: an odd run" in printed and " report runs/tiny" in printed
    assert events(project / "runs/tiny")[-1] == "done" and not (project / "runs/tiny/report.html").exists()


def test_a_run_that_is_not_asked_writes_none(project, capsys):
    assert train("train.max_steps=2") == 0
    assert not (project / "runs/tiny/report.html").exists()
    assert " report runs/tiny" in capsys.readouterr().out.partition("Try next")[2]
