"""Branches: runs that begin with a checkpoint of another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import llmkit
from llmkit.checkpoint.keeping import Best, write_best
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.config.model_section import UNSCALED, RopeScaling
from llmkit.model.rope import rope_tables
from tests.initial_loss import first_batches, loss_of
from tests.limits import HANG
from tests.program import at_step, events, make_project, recorded, rows, start_ranks, timeless, train

OLD, NEW = Path("runs/tiny"), Path("runs/new")
BRANCH = ("run.name=new", "--from", "runs/tiny@5")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a run of twelve steps that has saved and evaluated steps 5, 10 and 12."""
    folder = tmp_path_factory.mktemp("branch")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("evaluate.every_steps=5") == 0
    write_best(folder / OLD / "checkpoints", Best(10, 2.5))
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def state(run: Path) -> dict[Any, Any]:
    """Everything that decides how a run goes on, as its newest checkpoint has it."""
    checkpoint = open_checkpoint(run)
    found = {
        (kind, name): checkpoint.read(name, kind).tolist()
        for kind in checkpoint.kinds()
        for name in checkpoint.names(kind)
    }
    kept = {name: checkpoint.state[name] for name in ("data", "updates", "recorded", "details")}
    counters = ("step", "tokens", "max_steps", "pace", "nats_since_row", "targets_since_row")
    return found | kept | {name: checkpoint.state["progress"][name] for name in counters}


def test_a_branch_is_what_the_straight_run_would_have_been(project: Path, capsys: Any) -> None:
    before = content(OLD)
    assert train(*BRANCH, "evaluate.every_steps=5") == 0
    assert content(OLD) == before
    assert state(NEW) == state(OLD)
    steps = [row["step"] for row in rows(NEW) if "loss" in row]
    assert steps == list(range(6, 13)), "metrics begin where the branch does"
    assert timeless(NEW) == [row for row in timeless(OLD) if row["step"] >= 6 or "eval_loss" in row]
    (start,) = recorded("start", NEW)
    origin = start["branched_from"]
    step5 = str((OLD / "checkpoints/step-00000005").absolute())
    assert origin["path"] == step5 and origin["run"] == str(OLD.absolute())
    assert (origin["step"], origin["data_position"], start["step"]) == (5, "keep", 5)
    assert json.loads((NEW / "manifest.json").read_text())["branched_from"] == origin
    assert open_checkpoint(NEW).state["branched_from"] == origin
    assert [event["step"] for event in recorded("save", NEW)] == [5, 10, 12]
    printed = capsys.readouterr().out
    assert f"begins with {step5} at step 5, and reads the data on from where" in printed.replace(
        "runs/tiny/checkpoints", str((OLD / "checkpoints").absolute())
    )


def test_a_branch_in_another_layout(project: Path) -> None:
    still = ("--from", "runs/tiny@5", "model.hidden_dropout=0")  # which each rank would draw for itself
    processes = start_ranks(project, 2, "train", "tiny.yaml", "run.name=new", *still, "parallel.zero_stage=1")
    for process in processes:
        assert process.wait(HANG) == 0, process.output()
    assert train("run.name=alone", *still) == 0
    expected, found = ({row["step"]: row["loss"] for row in rows(run) if "loss" in row}
                       for run in (Path("runs/alone"), NEW))  # fmt: skip
    assert list(found) == list(range(6, 13)) and found == pytest.approx(expected, rel=1e-5)
    assert recorded("start", NEW)[0]["branched_from"]["step"] == 5
    assert open_checkpoint(NEW).state["data"] == open_checkpoint(OLD).state["data"]


@pytest.mark.parametrize(("name", "step"), [("runs/tiny", 12), ("runs/tiny@best", 10)])
def test_the_newest_and_the_best(project: Path, name: str, step: int) -> None:
    assert train("run.name=new", "--from", name, "train.max_steps=13", "schedule.steps=12") == 0
    assert recorded("start", NEW)[0]["step"] == step
    changes = {each["setting"]: (each["old"], each["new"]) for each in recorded("start", NEW)[0]["changes"]}
    assert changes["train.max_steps"] == ("12", "13")


def test_from_python(project: Path) -> None:
    loaded = llmkit.load("tiny.yaml", ["run.name=new", "train.max_steps=6", "schedule.steps=12"])
    run = llmkit.train(loaded, branch_from=Path("runs/tiny@5"), data_position="new", quiet=True)
    assert run.done and [row["step"] for row in run.metrics if "loss" in row] == [6]
    assert run.events[0]["branched_from"]["data_position"] == "new"


def test_the_data_anew(project: Path, capsys: Any) -> None:
    assert train(*BRANCH, "--data-position", "new", "monitor.log_samples=true", "run.seed=7") == 0
    assert "and reads the data from their beginning" in capsys.readouterr().out
    assert recorded("start", NEW)[0]["branched_from"]["data_position"] == "new"
    samples = (NEW / "samples/rank-00000.jsonl").read_text().splitlines()
    found = [(row["step"], row["positions"]) for row in map(json.loads, samples)]
    assert found[0] == (6, [0, 1, 2, 3]) and found[-1] == (12, [24, 25, 26, 27])
    assert open_checkpoint(NEW).state["data"]["seed"] == 7
    assert train(*BRANCH, "--data-position", "new", "run.seed=7", "train.max_steps=13") == 0
    assert open_checkpoint(NEW).state["data"]["rows"] == 32


@pytest.mark.parametrize(
    ("theta", "scaling"),
    [
        (5.0, None),  # the weights are hardly trained: little depends on positions yet
        (1e4, {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 32}),
    ],
)
def test_other_rotary_frequencies_act_on_the_weights_as_they_were(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, theta: float, scaling: dict[str, Any] | None
) -> None:
    batches = first_batches(monkeypatch)
    given = [f"model.rope_theta={theta}", *([f"model.rope_scaling={json.dumps(scaling)}"] if scaling else [])]
    longer = ("data.sequence_length=128", "train.max_steps=11", "schedule.steps=12", "model.hidden_dropout=0")
    begun = ("run.name=new", "--from", "runs/tiny@10", "--data-position", "new")
    assert train(*begun, *longer, *given) == 0
    changes = {each["setting"] for each in recorded("start", NEW)[0]["changes"]}
    assert any(name.startswith("model.rope_") for name in changes), changes
    tables = rope_tables(128, 8, theta, RopeScaling(**scaling) if scaling else UNSCALED)
    weights = OLD / "checkpoints/step-00000010"
    wanted = loss_of(weights, tables, batches[0])
    (row,) = [row for row in rows(NEW) if "loss" in row]
    assert row["step"] == 11 and row["loss"] == pytest.approx(wanted, rel=1e-6)
    as_before = loss_of(weights, rope_tables(128, 8, 1e4), batches[0])
    assert as_before != pytest.approx(wanted, rel=4e-6), "the frequencies matter"


def test_other_data_anew_or_by_permission(project: Path, capsys: Any) -> None:
    shorter = ("data.sequence_length=16", "train.max_steps=7", "schedule.steps=12")
    assert train(*BRANCH, *shorter) == 2
    error = capsys.readouterr().err
    assert "data.sequence_length: 32 -> 16" in error and "--data-position new" in error
    assert train(*BRANCH, *shorter, "--data-position", "new") == 0
    assert "data_change" not in events(NEW)
    assert train("run.name=third", "--from", "runs/tiny@5", *shorter, "--allow-data-change") == 0
    assert recorded("data_change", Path("runs/third"))[0]["step"] == 5


def test_the_same_command_goes_on_with_the_branch(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    at_step(monkeypatch, 3, lambda: (NEW / "STOP").touch())
    assert train(*BRANCH) == 75
    shutil.rmtree(OLD)
    capsys.readouterr()
    assert train(*BRANCH) == 0
    assert "resuming from runs/new/checkpoints/step-00000008 at step 8" in capsys.readouterr().out
    assert events(NEW).count("start") == 1 and recorded("resume", NEW)[0]["step"] == 8
    assert "lost_rows" not in recorded("resume", NEW)[0]
    assert [row["step"] for row in rows(NEW) if "loss" in row] == list(range(6, 13))
    assert train("run.name=new", "train.max_steps=13", "schedule.steps=12") == 0
    assert open_checkpoint(NEW).state["branched_from"]["step"] == 5


def test_a_branch_that_is_killed_at_its_first_step_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def kill() -> None:
        raise KeyboardInterrupt

    at_step(monkeypatch, 1, kill)
    train(*BRANCH)
    assert [path.name for path in (NEW / "checkpoints").glob("step-*")] == ["step-00000005"]
    assert train("run.name=new") == 0  # --from is not needed any more
    assert "lost_rows" not in recorded("resume", NEW)[0]
    assert state(NEW) == state(OLD)


def test_one_that_was_ended_before_its_first_save_never_starts_from_random_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("llmkit.loop.trainer.Trainer.save", lambda trainer: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(*BRANCH)
    assert train("run.name=new") == 2
    assert "was begun as a branch of" in capsys.readouterr().err
    assert train(*BRANCH) == 0
    assert state(NEW) == state(OLD)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data-position", "new"], "--data-position new goes with --from"),
        (["--from", "runs/tiny@7", "run.name=new"], "has no checkpoint of step 7, but of 5, 10, 12"),
        (["--from", "runs/nowhere", "run.name=new"], "there is no good checkpoint in runs/nowhere"),
        (["--from", "runs/tiny@5", "run.name=other"], "did not begin as a branch"),
        (["--from", "runs/tiny@5"], "that is the run's own folder"),
        (["--from", "", "run.name=new"], "--from is empty"),
        (
            ["--from", "runs/tiny@5", "run.name=new", "--data-position", "new", "--allow-data-change"],
            "leave one of them out",
        ),
        (["--from", "runs/tiny@5", "run.name=new", "train.max_steps=5"], "train.max_steps to more than 5"),
        (["--from", "runs/tiny", "run.name=new"], "set train.max_steps to more than 12"),
        (["--from", "runs/tiny@5", "run.name=new", "model.hidden_size=64"], "model.hidden_size: 32 -> 64"),
        (["--from", "runs/tiny@5", "run.name=new", "optimizer.name=muon"], "optimizer.name: "),
        (["--from", "runs/tiny@5", "run.name=new", "run.seed=3"], "run.seed: 0 -> 3"),
    ],
)
def test_what_cannot_be_is_one_message(
    project: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(OLD / "checkpoints")
    if "run.name=other" in arguments:
        assert train("run.name=other", "train.max_steps=1") == 0
        capsys.readouterr()
    assert train(*arguments) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.count("llmkit: ") == 1
    assert content(OLD / "checkpoints") == before


def test_another_branch_in_the_same_folder_is_refused(project: Path, capsys: Any) -> None:
    assert train(*BRANCH, "train.max_steps=6", "schedule.steps=12") == 0
    for name in ("runs/tiny@10", "runs/other@5"):
        assert train("run.name=new", "--from", name) == 2
        assert "is another branch: it began with" in capsys.readouterr().err
    assert train(*BRANCH, "--data-position", "new") == 2
    assert "--data-position keep" in capsys.readouterr().err
    assert train("run.name=new", "--from", str(OLD.absolute()), "train.max_steps=7", "schedule.steps=12") == 0


def test_a_damaged_one_and_weights_alone_are_refused(project: Path, capsys: Any) -> None:
    pieces = OLD / "checkpoints/step-00000005/pieces-00000-00000.safetensors"
    data = bytearray(pieces.read_bytes())
    data[len(data) // 2] ^= 4
    pieces.write_bytes(data)
    assert train(*BRANCH) == 2
    assert "the checkpoint is damaged: " in capsys.readouterr().err
    from llmkit.cli import main

    average = ["checkpoint", "average", "runs/tiny", "--steps", "10,12", "--out", "average"]
    assert main(average) == 0
    assert train("run.name=new", "--from", "average") == 2
    assert "holds weights alone" in capsys.readouterr().err
