"""`llmkit ladder`: reads finished runs, predicts the next size, and names what is missing or does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.load import load
from llmkit.config.show import to_yaml
from llmkit.data.located import located
from llmkit.plan import resolve_plan
from llmkit.recipes.fit import Law
from llmkit.recipes.ladder import planned_flops

LAW = Law(1.4, 2.2, 0.18, 1e13)
FILES = (*(f"rung-{number}" for number in range(1, 5)), "target")


@pytest.fixture
def ladder(tmp_path, monkeypatch):
    """A folder of configurations, in which no run is trained yet."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "tiny", "--flops", "1e15", "--tokenizer", "bytes", "--ladder"]) == 0
    return tmp_path / "tiny"


def trained(file: Path, *overrides: str, off: float = 1.0) -> Path:
    """The run folder that a training leaves which follows LAW; off: a factor of its loss."""
    loaded = load(file, overrides)
    steps, run = loaded.config.train.max_steps, Path("runs") / loaded.config.run.name
    assert steps is not None
    run.mkdir(parents=True)
    loss = off * LAW.loss(planned_flops(loaded.config, 257))
    evaluation = {"eval_loss": loss, "eval_bits_per_byte": loss / 0.7}
    rows = [{"step": steps, "loss": 1.0}, {"step": steps, **evaluation}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = located(loaded.config.data, Path.cwd())
    (run / "config.yaml").write_text(to_yaml(loaded.config.model_copy(update={"data": data})))
    (run / "manifest.json").write_text(json.dumps({"model": resolve_plan(loaded).model.to_dict()}))
    (run / "DONE").touch()
    return run


def test_the_law_of_the_rungs_predicts_the_target(ladder, capsys):
    for name in FILES[:4]:
        trained(ladder / f"{name}.yaml")
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in FILES[:4])
    assert "rung-4, predicted by the rungs below it: " in shown and "0.0" in shown.split("trained")[1]
    expected = LAW.loss(planned_flops(load(ladder / "target.yaml").config, 257))
    (line,) = (line for line in shown.splitlines() if line.startswith("tiny ("))
    assert float(line.split("FLOPs): ")[1].split()[0]) == pytest.approx(expected, rel=2e-3)
    low, high = (float(part) for part in line.split("between ")[1].split(",")[0].split(" and "))
    assert low < expected < high
    trained(ladder / "target.yaml", off=1.01)
    assert main(["ladder", "tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [rung["name"] for rung in found["rungs"]] == list(FILES[:4]) and found["left_out"] == []
    assert found["check"]["name"] == "rung-4" and found["check"]["loss"] == pytest.approx(
        found["check"]["trained"], rel=2e-3
    )
    target = found["target"]
    assert target["name"] == "tiny" and target["low"] < target["loss"] < target["high"]
    assert target["loss"] == pytest.approx(expected, rel=2e-3)
    assert target["trained"] == pytest.approx(1.01 * expected)
    law = found["law"]
    assert law["floor"] + law["scale"] * (target["flops"] / law["unit"]) ** -law["exponent"] == pytest.approx(
        target["loss"]
    )
    assert main(["ladder", "tiny"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("tiny, predicted"))
    assert 0.7 < float(line.split()[-2].removesuffix("%")) < 1.3 and line.endswith("% off")


def test_runs_that_are_missing_or_unfinished_are_named(ladder, capsys):
    unfinished = trained(ladder / "rung-2.yaml")
    (unfinished / "DONE").unlink()
    trained(ladder / "rung-3.yaml")
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 2
    message = capsys.readouterr().err
    assert "a fit needs finished runs of 3 sizes, and there are 1" in message
    assert (
        "tiny/rung-1.yaml: its run runs/tiny-rung-1 is not there; `llmkit train tiny/rung-1.yaml`" in message
    )
    assert "tiny/rung-2.yaml: its run runs/tiny-rung-2 is not finished (step" in message


def test_three_rungs_are_fitted_and_the_fourth_is_named(ladder, capsys):
    for name in FILES[1:4]:
        trained(ladder / f"{name}.yaml")
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("left out: tiny/rung-1.yaml: its run runs/tiny-rung-1 is not there")
    assert "predicted by the rungs below" not in shown, "two are too few for that"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("type: stdlib", "{type: text, path: other.txt}", "data.sources"),
        ("type: bytes", "type: bpe", "data.tokenizer"),
        ("sequence_length: ", "sequence_length: 1", "data.sequence_length"),
    ],
)
def test_losses_that_cannot_be_compared_are_refused(ladder, capsys, old, new, key):
    changed = ladder / "rung-2.yaml"
    changed.write_text(changed.read_text().replace(old, new))
    for name in FILES[:4]:
        trained(ladder / f"{name}.yaml")
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 2
    message = capsys.readouterr().err
    assert f"the runs of tiny/rung-1.yaml and tiny/rung-2.yaml differ in {key}," in message


def test_a_run_counts_as_it_was_trained_whatever_its_file_says(ladder, capsys):
    for name in FILES[1:4]:
        trained(ladder / f"{name}.yaml")
    longer = load(ladder / "rung-1.yaml", ["train.max_steps=4000"]).config
    trained(ladder / "rung-1.yaml", "train.max_steps=4000")
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 0
    shown = capsys.readouterr().out
    tokens = 4000 * longer.train.global_batch_size * longer.data.sequence_length
    (line,) = (line for line in shown.splitlines() if line.startswith("rung-1 "))
    assert f" {tokens:,} " in line
    assert float(line.split()[-1]) == pytest.approx(float(line.split()[-3]), rel=3e-3)


def test_overrides_and_a_target_on_other_text_are_refused(ladder, capsys):
    (Path("other.txt")).write_text("text\n" * 100)
    other = "data.sources=[{type: text, path: other.txt}]"
    for name in FILES[1:4]:
        trained(ladder / f"{name}.yaml")
    run = trained(ladder / "rung-1.yaml", other)
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 2
    message = capsys.readouterr().err
    assert "the runs of tiny/rung-1.yaml and tiny/rung-2.yaml differ in data.sources" in message
    shutil.rmtree(run)
    target = ladder / "target.yaml"
    target.write_text(target.read_text().replace("type: stdlib", "{type: text, path: other.txt}"))
    assert main(["ladder", "tiny"]) == 2
    message = capsys.readouterr().err
    assert "the runs of tiny/rung-2.yaml and tiny/target.yaml differ in data.sources" in message


def test_copies_of_one_run_are_one_size(ladder, capsys):
    trained(ladder / "rung-1.yaml")
    for copy in ("rung-5", "rung-6"):
        (ladder / f"{copy}.yaml").write_text((ladder / "rung-1.yaml").read_text())
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 2
    assert "finished runs of 3 sizes, and there are 1" in capsys.readouterr().err


def test_damaged_records_are_named(ladder, capsys):
    runs = [trained(ladder / f"{name}.yaml") for name in FILES[:4]]
    with (runs[0] / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 12, "eval_lo')
    capsys.readouterr()
    assert main(["ladder", "tiny"]) == 0, "a torn line is no row"
    capsys.readouterr()
    for name, content in (("manifest.json", "[1]"), ("config.yaml", "model: [")):
        whole = (runs[1] / name).read_text()
        (runs[1] / name).write_text(content)
        assert main(["ladder", "tiny"]) == 2
        assert f"tiny-rung-2/{name}" in capsys.readouterr().err
        (runs[1] / name).write_text(whole)


def test_a_folder_without_configurations_is_refused(tmp_path, capsys):
    assert main(["ladder", str(tmp_path)]) == 2
    assert "has no *.yaml in it" in capsys.readouterr().err
    assert main(["ladder", str(tmp_path / "missing")]) == 2
