"""A folder that tells of saved steps is never begun anew, and what is passed over is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.errors import UserError
from llmkit.loop.state import TrainState
from tests.program import make_project, train

FOLDER = Path("runs/tiny")
CHECKPOINTS = FOLDER / "checkpoints"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A project with a run that has saved steps 5 and 7 of 12, and was stopped there."""
    folder = tmp_path_factory.mktemp("find")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train("train.max_steps=7", "schedule.steps=12") == 0
        (FOLDER / "DONE").unlink()
    return folder


@pytest.fixture
def project(stopped, tmp_path, monkeypatch):
    """A copy of it as working directory."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record() -> dict[str, bytes]:
    """All that the folder records, but for the event that says why nothing was done."""
    files = {str(path): path.read_bytes() for path in FOLDER.rglob("*.*")}
    files = {name: text for name, text in files.items() if not {"logs", "generations"} & {*Path(name).parts}}
    lines = files.pop(str(FOLDER / "events.jsonl")).splitlines()
    return {name: text for name, text in files.items() if not name.endswith("run.lock")} | {
        "events": b"\n".join(line for line in lines if json.loads(line)["event"] != "refused")
    }


def empty() -> None:
    shutil.rmtree(CHECKPOINTS)


def unmounted() -> None:
    shutil.rmtree(CHECKPOINTS)
    Path("disk").mkdir()
    CHECKPOINTS.symlink_to(Path("disk").resolve())


def linked_to_nothing() -> None:
    for path in list(CHECKPOINTS.iterdir()):
        shutil.rmtree(path)
        path.symlink_to(f"/unmounted/{path.name}")


@pytest.mark.parametrize("flags", [[], ["--fresh"]])
@pytest.mark.parametrize(
    ("lose", "says"),
    [
        (empty, ["holds none, and step-00000007 was saved"]),
        (unmounted, ["(a link to ", "holds none, and step-00000007 was saved. Bring them back"]),
        (linked_to_nothing, ["none of the 2 checkpoints", "a link to /unmounted/step-00000007"]),
    ],
)
def test_a_run_whose_checkpoints_are_gone_does_not_start_over(project, lose, says, flags, capsys):
    lose()
    before = record()
    assert train(*flags) == 2
    printed = capsys.readouterr()
    for part in says:
        assert part in printed.err + printed.out
    assert record() == before


def test_a_checkpoints_folder_on_a_disk_that_is_gone_is_named(project, capsys):
    shutil.rmtree(CHECKPOINTS)
    CHECKPOINTS.symlink_to("/unmounted/checkpoints")
    assert train() == 2
    assert "checkpoints is a link to /unmounted/checkpoints, which is not there" in capsys.readouterr().err


def test_a_run_with_linked_checkpoints_goes_on_from_the_newest(project):
    Path("disk").mkdir()
    for path in list(CHECKPOINTS.iterdir()):
        path.rename(Path("disk") / path.name)
        path.symlink_to((Path("disk") / path.name).resolve())
    assert train() == 0
    steps = [json.loads(line)["step"] for line in (FOLDER / "metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 13))
    resumes = [json.loads(line) for line in (FOLDER / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in resumes if row["event"] == "resume"] == [7]


def test_a_saved_step_that_is_gone_is_named(project, capsys):
    shutil.rmtree(CHECKPOINTS / "step-00000007")
    assert train() == 0
    assert "step-00000007 was saved, but is not in runs/tiny/checkpoints any more" in capsys.readouterr().out
    assert open_checkpoint(FOLDER).step == 12
    (event,) = [row for row in map(json.loads, (FOLDER / "events.jsonl").open()) if row["event"] == "resume"]
    assert event["passed_over"] == ["step-00000007 was saved, but is not in runs/tiny/checkpoints any more"]


def test_a_start_that_never_saved_may_be_started_over(project, capsys):
    shutil.rmtree(CHECKPOINTS)
    events = [json.loads(line) for line in (FOLDER / "events.jsonl").read_text().splitlines()]
    (FOLDER / "events.jsonl").write_text(json.dumps(events[0]) + "\n")
    assert train("--fresh") == 0
    assert "steps 1 to 7 are in no checkpoint that is used: they are done again" in capsys.readouterr().out


def test_rows_without_any_event_are_not_overwritten(project, capsys):
    shutil.rmtree(CHECKPOINTS)
    (FOLDER / "events.jsonl").unlink()
    before = (FOLDER / "metrics.jsonl").read_bytes()
    assert train() == 2
    assert "is the record of a run whose checkpoints are gone" in capsys.readouterr().err
    assert (FOLDER / "metrics.jsonl").read_bytes() == before


def test_counters_of_another_version_are_refused_by_name():
    with pytest.raises(UserError, match=r"step-7 \(llmkit 9\): it counts dreams, which llmkit"):
        TrainState.from_json({"step": 7, "dreams": 3}, "step-7 (llmkit 9)")
