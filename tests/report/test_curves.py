"""Which charts a page has, and what is in them."""

from __future__ import annotations

from pathlib import Path

from llmkit.monitor.columns import COLUMNS
from llmkit.report.curves import FAMILIES, LINES, LOSS, STANDARD, charts
from llmkit.report.happened import marks
from tests.report.runs import make_run, row

ELSEWHERE = {
    # Columns that are no chart: axes, figures, the waterfall, tables, pictures, marks.
    "step", "tokens", "elapsed_seconds", "loss_mean", "eval_perplexity", "skipped_total", "energy_kwh",
    "cost", "co2_grams", "skipped", "eval/TASK/METRIC", "grad_norm/LAYER", "weight_norm/LAYER",
    "update_ratio/LAYER",
    "activation_rms/LAYER", "activation_max/LAYER", "router_entropy/LAYER", "router_balance/LAYER",
    "router_z/LAYER", "expert_load_max/LAYER", "expert_load_min/LAYER", "expert_dropped/LAYER",
    # The same in other words, or texts.
    "tokens_per_second_per_device", "restarts", "no_targets", "device_hours", "mfu_peak", "energy_source",
}  # fmt: skip


def test_every_column_is_shown_somewhere():
    shown = {each.column for wanted in (LOSS, *STANDARD) for each in wanted.shown}
    families = (*(prefix for prefix, _, _ in FAMILIES), "time/", "lost/")
    columns = {column.name for column in COLUMNS}
    assert shown <= columns and columns >= ELSEWHERE
    assert {name for name in columns - shown - ELSEWHERE if not name.startswith(families)} == set()


def titles(found) -> list[str]:
    return [chart.title for chart in found]


def test_a_run_has_a_chart_for_each_thing_that_it_has_recorded(tmp_path: Path):
    rows = [row(step, **{"loss/web": 4.0, "loss/books": 5.0, "own/number": 7.0, "loss_at/512-1023": 3.0,
                         "loss_at/64-127": 3.5}) for step in range(1, 41)]  # fmt: skip
    run = make_run(tmp_path / "run", [*rows, {"step": 40, "eval_loss": 3.25}])
    found = charts([run], ["run"], marks(run))
    assert titles(found) == [
        "Loss", "Learning rate", "Gradient norm", "Speed", "Utilization", "Memory", "Time of a step",
        "Loss by source",
        "Loss by position in the document", "own/number",
    ]  # fmt: skip
    loss = found[0]
    assert [pane.name for pane in loss.panes] == ["steps", "tokens", "time", "FLOPs"]
    assert loss.legend == [(0, "training"), (1, "held out")]
    assert [classes for classes, _, _ in loss.panes[0].plot.paths] == [
        "raw c0",
        "line c0",
        "dots c1",
    ]
    assert [kind for _, kind, _ in loss.panes[0].plot.marks].count("resume") == 1
    assert found[1].panes[0].plot.marks == []
    assert found[8].legend == [(0, "64-127"), (1, "512-1023")]
    raw, smoothed = (d for _, _, d in found[4].panes[0].plot.paths)
    assert found[4].panes[0].plot.y.high > 40.0 and raw == smoothed  # both in percent, and the same all along
    of_steps, of_means = (d for _, _, d in loss.panes[0].plot.paths[:2])
    assert of_steps != of_means  # the smoothed loss is that of all steps between the rows


def test_of_several_runs_each_has_a_colour(tmp_path: Path):
    one = make_run(tmp_path / "one")
    two = make_run(
        tmp_path / "two", [row(step, loss=9.0, loss_mean=9.0) for step in range(1, 11)], manifest={}
    )
    found = charts([one, two], ["one", "two"], [])
    paths = found[0].panes[0].plot.paths
    assert {(classes.split()[1], name) for classes, name, _ in paths} == {("c0", "one"), ("c1", "two")}
    assert found[0].legend == [] and "Loss by source" not in titles(found)
    flops = next(pane for pane in found[0].panes if pane.name == "FLOPs")
    assert {name for _, name, _ in flops.plot.paths} == {
        "one"
    }  # the other has not recorded what a token costs


def test_many_members_of_a_family_are_cut_with_a_note(tmp_path: Path):
    rows = [row(step, **{f"loss/s{n}": 1.0 for n in range(12)}) for step in (1, 2)]
    chart = next(
        c for c in charts([make_run(tmp_path / "run", rows)], ["x"], []) if c.title == "Loss by source"
    )
    assert len(chart.panes[0].plot.paths) == LINES and chart.note == "8 of 12"


def test_pairs_have_rewards(tmp_path: Path):
    rows = [
        row(
            1,
            **{
                "rewards/chosen": 1.0,
                "rewards/rejected": -1.0,
                "rewards/margin": 2.0,
                "rewards/accuracy": 0.5,
            },
        )
    ]
    run = make_run(tmp_path / "run", rows)
    run.settings.values["train.objective"] = "dpo"
    found = charts([run], ["run"], [])
    assert found[0].unit == "nats a pair"
    assert (found[0].panes[1].name, found[0].panes[1].label) == ("pairs", "pairs")
    mixed = charts([run, make_run(tmp_path / "text")], ["run", "text"], [])
    assert (mixed[0].unit, mixed[0].panes[1].label) == ("nats a target or pair", "tokens or pairs")
    rewards = next(chart for chart in found if chart.title == "Rewards of answers")
    assert [name for _, name in rewards.legend] == ["chosen", "margin", "rejected"]
    assert "Rewards of answers: accuracy" in titles(found)


def test_a_run_without_rows_has_no_charts(tmp_path: Path):
    run = make_run(tmp_path / "run", [])
    assert charts([run], ["run"], marks(run)) == []
    nothing = make_run(tmp_path / "nulls", [dict.fromkeys(row(1)) | {"step": 1}])
    assert charts([nothing], ["x"], []) == []


def test_what_happened_after_the_last_row_lies_at_the_end(tmp_path: Path):
    run = make_run(tmp_path / "run", [row(step) for step in (10, 20, 30)])
    found = charts([run], ["run"], [(32, "stop", "a"), (15, "save", "b"), (99, "save", "of another time")])
    for pane in found[0].panes:
        assert pane.plot.marks[0] == (100.0, "stop", "a"), pane.name
    assert found[0].panes[0].plot.marks == [(100.0, "stop", "a"), (50.0, "save", "b")]
