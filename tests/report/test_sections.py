"""Tables of sources, of tasks, and how to make a run again."""

from __future__ import annotations

from pathlib import Path

from llmkit.report.sections import Source, reproduce, settings_by_start, sources, tasks
from tests.report.runs import EVENTS, RESUME, make_run, row, write_checkpoint


def test_sources_have_their_shares_and_figures(tmp_path: Path):
    rows = [row(1, **{"epochs/web": 0.5, "loss/web": 3.21, "epochs": 0.25})]
    run = make_run(tmp_path / "run", rows)
    run.settings.values.update({"data.sources.0.weight": 3.0, "data.sources.1.weight": 1})
    run.settings.values["data.sources.1.dataset"] = "a/b"
    write_checkpoint(
        tmp_path / "run", sources=[{"name": "web", "tokens": 1000}, {"name": "books", "tokens": 20}]
    )
    assert sources(run) == [
        Source("web", "text", 75.0, {"tokens": "1,000", "epochs": "0.5", "loss": "3.21"}),
        Source("books", "a/b", 25.0, {"tokens": "20", "epochs": "", "loss": ""}),
    ]


def test_a_damaged_checkpoint_is_no_source(tmp_path: Path):
    run = make_run(tmp_path / "run")
    write_checkpoint(tmp_path / "run", sources=[{"name": {"a": 1}}, 3, {"name": [], "tokens": "x"}])
    assert [source.name for source in sources(run)] == ["text-0"] and reproduce(run)


def test_a_source_alone_has_the_epochs_of_all(tmp_path: Path):
    assert sources(make_run(tmp_path / "run", [row(1, epochs=1.5)])) == [
        Source("text-0", "text", 100.0, {"epochs": "1.5"})
    ]


def test_tasks_are_rows_and_their_steps_columns(tmp_path: Path):
    rows = [{"step": step, "eval/arc/acc": step / 10} for step in range(8)]
    rows += [{"step": 7, "eval/arc/acc_norm": None, "eval/odd": 1.0}]
    steps, found = tasks(make_run(tmp_path / "run", rows))
    assert steps == [2, 3, 4, 5, 6, 7]
    assert found == [
        ("arc", "acc", ["0.2000", "0.3000", "0.4000", "0.5000", "0.6000", "0.7000"]),
        ("arc", "acc_norm", [""] * 6), ("odd", "", [*[""] * 5, "1.0000"]),
    ]  # fmt: skip
    assert tasks(make_run(tmp_path / "none")) == ([], [])


def test_how_to_make_it_again(tmp_path: Path):
    write_checkpoint(
        tmp_path / "my run", tokenizer="abc", sources=[{"name": "web", "digest": "d1", "tokens": 5}]
    )
    found = dict(reproduce(make_run(tmp_path / "my run")))
    assert found["Its command"] == "llmkit train 'a b.yaml' train.max_steps=40"
    assert found["Started in"] == "/home/me/project" and found["llmkit"] == "0.1.0 (source 0123)"
    assert found["A new run with its settings"].startswith("llmkit train '") and "run.name=" in found[
        "A new run with its settings"
    ]  # fmt: skip
    assert found["Tokenizer"] == "abc" and found["Data web"] == "digest d1, 5 tokens"


def test_the_command_of_a_process_of_a_launcher_is_one_that_can_be_typed(tmp_path: Path):
    command = ["/site-packages/llmkit/__main__.py", "train", "a.yaml"]
    found = dict(reproduce(make_run(tmp_path / "run", manifest={"command": command})))
    assert found["Its command"] == "python -m llmkit train a.yaml"


def test_a_secret_in_the_command_is_not_shown(tmp_path: Path):
    command = ["llmkit", "train", "a.yaml", "my.api_key=hunter2"]
    assert "hunter2" not in str(reproduce(make_run(tmp_path / "run", manifest={"command": command})))


def test_which_start_the_settings_are_of(tmp_path: Path):
    assert settings_by_start(make_run(tmp_path / "run")) == ""
    events = [*EVENTS, RESUME | {"config": "configs/start-0002.yaml"}]
    found = settings_by_start(make_run(tmp_path / "other", events=events))
    assert found == "those of the newest start, configs/start-0002.yaml"
