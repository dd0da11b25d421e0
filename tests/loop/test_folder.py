"""Which run folder a start takes, and a record in it that can be kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from tests.program import make_project

RECORDS = ["events.jsonl", "metrics.jsonl"]
OLD, NEW = Path("runs/tiny"), Path("kept/moved")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a finished run of 2 steps."""
    folder = tmp_path_factory.mktemp("folder")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", "train.max_steps=2", "monitor.sample=null"]) == 0
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    """A copy of it as working directory, where its config.yaml names this copy."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = OLD / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path


@pytest.mark.parametrize("settings", ["config.yaml", "configs/start-0001.yaml"])
@pytest.mark.parametrize("relocate", [shutil.move, shutil.copytree])
def test_settings_of_a_run_folder_that_lies_elsewhere_now_are_refused(project, relocate, settings, capsys):
    NEW.parent.mkdir()
    relocate(OLD, NEW)
    assert main(["train", str(NEW / settings), "train.max_steps=3"]) == 2
    error = capsys.readouterr().err
    assert f"{NEW / settings} is from the run folder {NEW}" in error
    assert f"add run.dir={project / 'kept'} run.name=moved" in error
    if relocate is shutil.move:
        assert not OLD.exists()  # it was not begun anew
    else:
        assert open_checkpoint(OLD).step == 2


def test_a_moved_run_goes_on_where_its_new_place_is_named(project):
    NEW.parent.mkdir()
    shutil.move(OLD, NEW)
    here = [f"run.dir={project / 'kept'}", "run.name=moved"]
    assert main(["train", str(NEW / "config.yaml"), *here, "train.max_steps=3"]) == 0
    assert open_checkpoint(NEW).step == 3


def test_a_run_goes_on_by_its_own_settings_by_any_path_to_them(project):
    Path("link").symlink_to("runs")
    assert main(["train", "link/tiny/config.yaml", "train.max_steps=3"]) == 0
    assert open_checkpoint(OLD).step == 3


def test_a_new_run_may_take_the_settings_of_another(project):
    assert main(["train", str(OLD / "config.yaml"), "run.name=other", "train.max_steps=1"]) == 0
    Path("mine.yaml").write_text("extends: runs/tiny/config.yaml\nrun: {name: mine}\n")
    assert main(["train", "mine.yaml", "train.max_steps=1"]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"tiny", "other", "mine"}


def test_a_request_to_stop_from_before_the_start_is_removed_and_named(project, capsys):
    (OLD / "STOP").touch()
    assert main(["train", "tiny.yaml", "train.max_steps=2"]) == 0
    assert f"{OLD / 'STOP'} asked for a stop before this start; it is removed" in capsys.readouterr().out
    assert not (OLD / "STOP").exists()


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_cannot_be_written_is_refused_before_training(project, name, capsys):
    (OLD / name).unlink()
    (OLD / name).mkdir()
    assert main(["train", "tiny.yaml", "train.max_steps=3"]) == 2
    assert f"{OLD / name}: cannot be written (Is a directory)" in capsys.readouterr().err
    assert open_checkpoint(OLD).step == 2


def test_rows_that_were_never_written_are_told_at_the_end(project, monkeypatch, capsys):
    def full(file: int, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llmkit.monitor.jsonlines._write_line", full)
    assert main(["train", "tiny.yaml", "train.max_steps=3"]) == 0
    told = [f"the last rows could not be written and are lost: {OLD / name}: " for name in RECORDS]
    last = capsys.readouterr().out.splitlines()[-2:]
    assert sorted(last) == [f"{line}No space left on device" for line in told]


@pytest.mark.parametrize("link", ["runs", "runs/tiny"])
def test_a_link_to_what_is_not_there_is_named(project, link, capsys):
    shutil.move(link, "kept")
    Path(link).symlink_to("/unmounted/disk")
    assert main(["train", "tiny.yaml"]) == 2
    assert f"{link} is a link to /unmounted/disk, which is not there; is its disk" in capsys.readouterr().err


def test_the_commands_to_try_next_are_as_a_shell_takes_them(project, capsys):
    assert main(["train", "tiny.yaml", "run.dir=my runs", "train.max_steps=1", "monitor.sample=null"]) == 0
    tried = capsys.readouterr().out.rpartition("Try next:\n")[2].splitlines()
    assert " generate 'my runs/tiny' --prompt " in tried[0]
    assert tried[-3].endswith(" evaluate 'my runs/tiny'") and tried[-2].endswith(" report 'my runs/tiny'")
