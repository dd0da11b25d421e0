"""A finished folder gets its name at once, and older checkpoints go once the new one is good."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llmkit.checkpoint import commit, read
from llmkit.checkpoint.keeping import Best, write_best
from llmkit.checkpoint.writer import Writer
from llmkit.errors import RunFault
from llmkit.ownership.claim import Claim, folder_of


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_are_kept(tmp_path: Path, save_step: Any) -> None:
    for step in (1, 2, 3, 10):
        save_step(step, keep_last=2)
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_later_steps_of_a_run_that_went_back_neither_count_nor_vanish(tmp_path: Path, save_step: Any) -> None:
    for step in (10, 20, 30):
        save_step(step)
    save_step(15, keep_last=2)
    assert names(tmp_path) == ["step-00000010", "step-00000015", "step-00000020", "step-00000030"]


def test_older_ones_are_kept_if_the_new_one_turns_out_bad(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(1)
    rename = commit._rename

    def rename_on_a_bad_disk(temporary: Path, final: Path) -> None:
        rename(temporary, final)
        path = final / "pieces-00000-00000.safetensors"
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))

    monkeypatch.setattr(commit, "_rename", rename_on_a_bad_disk)
    with pytest.raises(RunFault, match=r"older ones are kept: .*pieces-00000-00000"):
        save_step(2, keep_last=1)
    found = read.newest(tmp_path, lambda line: None)
    assert found is not None and found.step == 1


def test_the_same_step_is_replaced(tmp_path: Path, save_step: Any) -> None:
    save_step(1, state={"try": 1})
    folder = save_step(1, state={"try": 2})
    assert read.load(folder).state == {"try": 2}
    assert names(tmp_path) == ["step-00000001"]


def test_a_failing_exchange_puts_the_old_one_back(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_step(1, state={"try": 1})
    rename = os.rename

    def failing(source: Any, target: Any) -> None:
        if ".tmp-" in str(source):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        with pytest.raises(RunFault):
            save_step(1, state={"try": 2})
    assert names(tmp_path) == ["step-00000001"]
    assert read.load(folder).state == {"try": 1}


def test_a_checkpoint_is_saved_though_an_old_one_cannot_go(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(1)

    def failing(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    notes: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", failing)
        for step in (2, 3):
            assert read.verify(save_step(step, keep_last=1, note=notes.append)) == []
    for step, note in zip((2, 3), notes, strict=True):
        assert f"step-0000000{step} is saved, but older checkpoints cannot be deleted: " in note
        assert "denied" in note
    save_step(4, keep_last=1, note=notes.append)
    assert names(tmp_path) == ["step-00000004"] and len(notes) == 2, "they go as soon as that is possible"


def test_the_best_and_those_of_every_so_many_steps_are_kept(tmp_path: Path, save_step: Any) -> None:
    notes: list[str] = []
    for step in (1, 2, 3, 4, 5, 6, 7):
        save_step(step, keep_last=1, keep_every=4, note=notes.append)
        if step == 3:
            write_best(tmp_path, Best(3, 1.0))
    assert names(tmp_path) == ["best.json"] + [f"step-0000000{step}" for step in (3, 4, 7)]
    (tmp_path / "best.json").write_text("?")
    assert read.verify(save_step(8, keep_last=1, note=notes.append)) == []
    assert len(names(tmp_path)) == 5, "while it is not known which one is the best, none is deleted"
    (note,) = notes
    assert "step-00000008 is saved, but older checkpoints cannot be deleted: " in note and "best.json" in note


def test_leftovers_are_cleared_and_other_files_left_alone(tmp_path: Path, save_step: Any) -> None:
    for name in (".tmp-step-00000007", ".tmp-old-step-00000003", ".tmp-mine", "step-7", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    save_step(1)
    assert names(tmp_path) == [".tmp-mine", "notes", "step-00000001", "step-7"]


def test_an_interrupted_replacement_is_put_back(tmp_path: Path, save_step: Any) -> None:
    save_step(1).rename(tmp_path / ".replaced-step-00000001")
    found = read.newest(tmp_path, pytest.fail)
    assert found is not None and found.step == 1
    commit.tidy(tmp_path)
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("half_deleted", [False, True])
def test_a_replacement_that_was_finished_is_cleared(
    tmp_path: Path, save_step: Any, half_deleted: bool
) -> None:
    save_step(1, state={"try": 1}).rename(tmp_path / "aside")
    save_step(1, state={"try": 2})
    (tmp_path / "aside").rename(tmp_path / ".replaced-step-00000001")
    if half_deleted:
        (tmp_path / ".tmp-old-step-00000001" / "rest").mkdir(parents=True)
    found = read.newest(tmp_path, pytest.fail)
    assert found is not None and found.state == {"try": 2}
    commit.tidy(tmp_path)
    assert names(tmp_path) == ["step-00000001"]


def test_tidying_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    commit.tidy(tmp_path / "nothing")


def test_a_leftover_that_is_a_link_is_removed_and_its_target_kept(tmp_path: Path, save_step: Any) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (tmp_path / ".tmp-step-00000002").symlink_to(outside)
    save_step(1)
    assert names(tmp_path) == ["step-00000001"]
    assert outside.is_dir()


@pytest.fixture
def lose(tmp_path: Path) -> Any:
    """Lets another start take over the run whose checkpoints `save_step` writes; first its claim."""
    run = tmp_path.parent

    def generation(number: int) -> None:
        folder = folder_of(run, number)
        folder.mkdir(parents=True)
        (folder / "beat").touch()

    def lose() -> None:
        generation(2)
        commit.tidy(tmp_path)

    shutil.rmtree(run / "generations", ignore_errors=True)
    generation(1)
    lose.claim = Claim(run, 1)  # type: ignore[attr-defined]
    lose.generation = generation  # type: ignore[attr-defined]
    yield lose
    shutil.rmtree(run / "generations")


@pytest.mark.parametrize("moment", ["before", "while writing", "before the check", "after the check"])
def test_a_start_that_loses_the_run_in_a_save_publishes_nothing(
    tmp_path: Path, save_step: Any, lose: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    save_step(1, claim=lose.claim)
    before = {path: path.read_bytes() for path in (tmp_path / "step-00000001").iterdir()}
    if moment == "before":
        lose()
    module, name = {
        "before": (commit, "tidy"),
        "while writing": (Writer, "_write_batch"),
        "before the check": (commit, "finish"),
        "after the check": (commit, "_rename"),
    }[moment]
    act = getattr(module, name)

    def then_lost(*arguments: Any) -> None:
        if moment == "after the check":
            lose()
        act(*arguments)
        if moment in ("while writing", "before the check"):
            lose()

    monkeypatch.setattr(module, name, then_lost)
    with pytest.raises(RunFault):
        save_step(2, claim=lose.claim)
    assert names(tmp_path) == ["step-00000001"]
    assert {path: path.read_bytes() for path in (tmp_path / "step-00000001").iterdir()} == before


def test_a_start_that_has_just_lost_the_run_gives_no_checkpoint_its_name(
    tmp_path: Path, save_step: Any, lose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has taken it over has not yet removed what was being written."""
    finish = commit.finish

    def then_lost(*arguments: Any) -> None:
        finish(*arguments)
        lose.generation(2)

    monkeypatch.setattr(commit, "finish", then_lost)
    with pytest.raises(RunFault, match="taken over by generation 2"):
        save_step(1, claim=lose.claim)
    assert names(tmp_path) == []


def test_a_start_that_has_lost_the_run_deletes_no_checkpoint(
    tmp_path: Path, save_step: Any, lose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_step(1, claim=lose.claim)
    verify = read.verify

    def then_lost(*arguments: Any) -> Any:
        lose()
        return verify(*arguments)

    monkeypatch.setattr(read, "verify", then_lost)
    with pytest.raises(RunFault, match="taken over by generation 2"):
        save_step(2, keep_last=1, claim=lose.claim)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]  # as it was the run's when it got its name


def test_starts_of_a_run_write_aside_under_names_of_their_own(tmp_path: Path, save_step: Any) -> None:
    writers = [Writer(tmp_path / "step-00000001", 0, generation) for generation in (0, 1, 12)]
    aside = [writer.folder.name for writer in writers]
    assert aside == [".tmp-step-00000001", ".tmp-1-step-00000001", ".tmp-12-step-00000001"]
    for writer in writers:
        writer.folder.mkdir(parents=True)
    commit.tidy(tmp_path)
    assert names(tmp_path) == []
