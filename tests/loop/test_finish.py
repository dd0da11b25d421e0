"""The end of a run that has made its last step."""

from __future__ import annotations

import signal

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.loop import finish
from llmkit.run_folder import RunFolder
from tests.program import end, events, once, rows, train


def test_a_finished_run_stays_as_it_is_until_it_gets_more_steps(project, capsys):
    assert train() == 0
    folder = project / "runs" / "tiny"
    before = (folder / "metrics.jsonl").read_bytes()
    assert train() == 0
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert events(folder)[-1] == "done"
    assert "is finished since step 12" in capsys.readouterr().out
    assert train("train.max_steps=15") == 0
    assert [row["step"] for row in rows(folder) if "loss" in row] == list(range(1, 16))
    assert (folder / "DONE").exists()
    assert open_checkpoint(folder).step == 15


def test_a_signal_at_the_end_of_a_finished_run_interrupts_nothing(project, monkeypatch):
    assert train() == 0

    def signalled(trainer):
        signal.raise_signal(signal.SIGTERM)
        return {}

    monkeypatch.setattr(finish, "heldout_facts", signalled)
    assert train() == 0


def test_a_run_that_cannot_be_marked_as_done_is_not_done(project, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(
            RunFolder, "mark_done", lambda folder: folder.write_text("logs", "no file can be there")
        )
        assert train() == 1
    folder = project / "runs" / "tiny"
    assert "cannot write runs/tiny/logs: Is a directory" in capsys.readouterr().err
    assert events(folder)[-2:] == ["save", "fault"]
    assert train() == 0
    assert events(folder)[-1] == "done" and (folder / "DONE").exists()


def test_a_stop_while_the_sample_is_made_leaves_out_the_sample_of_a_run_that_is_done(
    project, monkeypatch, capsys
):
    once(monkeypatch, finish, "stream_text", end)
    assert train("monitor.sample='the '") == 0
    folder = project / "runs" / "tiny"
    assert (folder / "DONE").exists()
    assert events(folder)[-1] == "done"
    assert "no sample: stopped by SIGTERM" in capsys.readouterr().out


def test_the_sample_is_of_the_model_in_the_engine_where_that_is_complete(project, monkeypatch, capsys):
    monkeypatch.setattr(finish, "load_model", None)
    assert train("monitor.sample='the '", "parallel.zero_stage=1", "train.max_steps=1") == 0
    out = capsys.readouterr().out
    assert "\nthe " in out and "no sample" not in out
