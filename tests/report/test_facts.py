"""What a page says of a run in its head."""

from __future__ import annotations

from pathlib import Path

from llmkit.report.facts import facts, figures, names_of, progress, source_names
from tests.report.runs import EVENTS, START, make_run, row, write_checkpoint


def test_facts_of_a_run(tmp_path: Path):
    profiles = [
        {"event": "profile", "verdict": verdict} for verdict in ("data-bound: 9 %", "compute-bound: 80 %")
    ]
    found = dict(facts(make_run(tmp_path / "run", [*map(row, range(1, 41)), "torn"], [*profiles, *EVENTS])))
    assert found == {
        "Model": "2000 parameters, 2 layers, width 32, 4 heads",
        "Data": "text-0; rows of 32 tokens; 4 a step",
        "Trained on": "4 processes, each on an H100, host vm",
        "Layout": "bf16, ZeRO-2, tensor parallel x 2, micro-batches of 4 x 2, compiled",
        "Began": "2026-11-29 01:00:00 UTC, 1 restart", "Ended": "2026-11-29 01:14:05 UTC",
        "Wall time": "14 min 05 s", "Profile": "compute-bound: 80 %", 
        "Damaged": "lines of metrics.jsonl that are no rows, left out: 1",
    }  # fmt: skip


def test_what_was_predicted_stands_beside_what_was_measured(tmp_path: Path):
    event = {"event": "predicted", "predicted": 0.5, "measured": 0.8, "cause": "waiting for data"}
    found = dict(facts(make_run(tmp_path / "run", [row(1)], [*EVENTS, event])))
    assert found["Forecast"] == (
        "0.5 s a step were predicted, 0.8 s measured (+60 %); most likely because of waiting for data"
    )
    torn = dict(facts(make_run(tmp_path / "other", [row(1)], [{"event": "predicted", "predicted": "x"}])))
    assert "Forecast" not in torn


def test_figures_of_a_run(tmp_path: Path):
    rows = [
        row(1, tokens_per_second=None),
        *map(row, range(2, 5)),
        row(5, tokens_per_second=1.0, elapsed_seconds=10.0, **{"lost/save": 5.0}),
    ]
    evaluations = [{"step": 4, "eval_loss": 3.0}, {"step": 5, "eval_loss": 3.25, "eval_bits_per_byte": 1.5}]
    run = make_run(
        tmp_path / "run", [*rows, *evaluations, row(6, cost=1.234, energy_kwh=None, tokens_per_second=1.0)]
    )
    run.settings.values["monitor.cost.currency"] = "EUR"
    assert figures(run) == {
        "Steps": "6", "Tokens": "600", "Training loss": "4.8000", "Held-out loss": "3.2500",
        "Best held-out loss": "3.0000 at step 4", "Bits per byte": "1.5000", "Tokens/s, median": "50",
        "MFU, median": "40.0 %",       "Goodput": "50.0 %", "Peak memory": "3.00 GiB", "Cost": "1.23 EUR",
    }  # fmt: skip
    assert progress(run) == "step 6 of 40 (15 %)"


def test_a_run_begins_with_its_command_and_its_peak_is_that_of_all_starts(tmp_path: Path):
    account = {"useful": 0.0, "lost": {"start": 20.0, "odd": "x"}}
    rows = [row(1, peak_memory_gib=9.0), row(2, peak_memory_gib=None), row(3, peak_memory_gib=3.0)]
    run = make_run(tmp_path / "run", rows, events=[START | {"account": account}])
    assert dict(facts(run))["Began"] == "2026-11-29 00:59:40 UTC"
    assert figures(run)["Peak memory"] == "9.00 GiB"


def test_of_adapters_their_own_parameters_are_counted(tmp_path: Path):
    run = make_run(tmp_path / "run")
    run.settings.values["train.lora.rank"] = 8
    model = dict(facts(run))["Model"]
    assert model == "2 layers, width 32, 4 heads, 2000 parameters of adapters of rank 8 are trained"


def test_little_is_known_of_an_odd_run(tmp_path: Path):
    odd = {
        "model": [],
        "layout": 3,
        "parameter_groups": {},
        "max_steps": "many",
        "kernels": None,
        "init_from": 1,
    }
    run = make_run(tmp_path / "run", [], events=[], manifest=odd)
    (run.folder / "config.yaml").unlink()
    assert (
        "Model" not in dict(facts(run)) and figures(run) == {"Steps": "0"} and progress(run) == "no step yet"
    )


def test_sources_are_named_as_the_run_names_them(tmp_path: Path):
    run = make_run(tmp_path / "run")
    assert source_names(run) == ["text-0"]
    write_checkpoint(tmp_path / "run", sources=[{"name": "web"}, {"name": "books\n"}])
    assert source_names(run.__class__(run.folder)) == ["web", r"books\n"]


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path: Path):
    runs = [make_run(tmp_path / name) for name in ("a/demo", "b/demo", "b/c/demo")]
    assert names_of(runs[:1]) == ["demo"] and names_of(runs[:2]) == ["a/demo", "b/demo"]
    assert names_of([*runs[1:], runs[1]]) == ["b/demo", "c/demo", "b/demo"]
