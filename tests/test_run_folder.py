"""A run folder belongs to one process at a time and says where the run stands."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from llmkit.errors import RunFault, UserError
from llmkit.run_folder import FollowedFolder, RunFolder

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "demo"


def test_the_layout_is_created(path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        assert folder.path == path
        parts = ["checkpoints", "generations", "logs", "run.lock", "wandb"]
        assert sorted(p.name for p in path.iterdir()) == parts
        assert folder.checkpoints.is_dir() and folder.logs.is_dir() and folder.wandb.is_dir()


def test_what_is_there_stays(path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        (folder.checkpoints / "step-00000001").mkdir()
        folder.write_text("config.yaml", "a: 1\n")
    with RunFolder.open(path, "train") as folder:
        assert (folder.checkpoints / "step-00000001").is_dir()
        assert (path / "config.yaml").read_text() == "a: 1\n"


@pytest.mark.parametrize("blocked", ["runs", "runs/demo", "runs/demo/logs", "runs/demo/STOP/file"])
def test_a_folder_that_cannot_be_set_up_is_named(tmp_path: Path, path: Path, blocked: str) -> None:
    (tmp_path / blocked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / blocked).write_text("in the way")
    for _ in range(2):  # the second time as the first: the lock was let go
        with pytest.raises(UserError) as refused:
            RunFolder.open(path, "train")
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_stop_is_seen_and_forgotten_at_the_next_start(tmp_path: Path, path: Path) -> None:
    asked = tmp_path / "asked"
    for file in (path / "STOP", asked):
        with RunFolder.open(path, "train", stop_file=asked) as folder:
            assert folder.stop_file() is None
            file.touch()
            assert folder.stop_file() == file


def test_a_stop_that_is_asked_for_during_a_restart_in_place_is_kept(path: Path) -> None:
    """The request is one to this launch: it may have come after the fault that is being mended."""
    RunFolder.open(path, "train").close()
    (path / "STOP").touch()
    with RunFolder.open(path, "train", environment={"TORCHELASTIC_RESTART_COUNT": "1"}) as folder:
        assert folder.stop_file() == path / "STOP" and folder.outdated == []
    with RunFolder.open(path, "train", environment={"TORCHELASTIC_RESTART_COUNT": "0"}) as folder:
        assert folder.stop_file() is None and folder.outdated == [path / "STOP"]



def test_done_is_marked_and_cleared(path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        assert not folder.is_done
        folder.clear_done()
        folder.mark_done()
        assert folder.is_done and (path / "DONE").exists()
    with RunFolder.open(path, "train") as folder:
        assert folder.is_done
        folder.clear_done()
        assert not folder.is_done


def test_a_file_is_written_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.open(path, "train") as folder:
        folder.write_json("manifest.json", {"é": [1, None]})
        assert json.loads((path / "manifest.json").read_text()) == {"é": [1, None]}

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RunFault, match=r"manifest\.json: No space left"):
            folder.write_json("manifest.json", {})
        assert json.loads((path / "manifest.json").read_text()) == {"é": [1, None]}
        assert [p.name for p in path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "logs/x", "", ".", "..", ".x"])
def test_a_file_outside_the_folder_is_refused(path: Path, name: str) -> None:
    with RunFolder.open(path, "train") as folder, pytest.raises(ValueError, match="not the name of a file"):
        folder.write_text(name, "x")


def test_too_little_space_is_a_fault_with_both_figures(path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        folder.require_space(1)
        with pytest.raises(RunFault, match=rf"{path} is too full: .* 931,322,574.6 GiB, free are \S+ GiB"):
            folder.require_space(10**18)


def test_a_batch_script_is_told_of_a_save_of_this_start(tmp_path: Path, path: Path) -> None:
    saved = tmp_path / "saved"
    saved.touch()
    with RunFolder.open(path, "train", saved_file=saved) as folder:
        assert not saved.exists()
        folder.mark_saved()
        assert saved.exists()
    with RunFolder.open(path, "train") as folder:
        folder.mark_saved()  # nobody asked
        folder._saved_file = tmp_path / "nowhere" / "saved"
        with pytest.raises(RunFault, match="nowhere"):
            folder.mark_saved()


def test_a_file_is_removed_if_it_is_there(path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        folder.write_text("deepspeed.json", "{}")
        for _ in range(2):
            folder.remove("deepspeed.json")
            assert not (path / "deepspeed.json").exists()


def test_those_who_follow_use_the_paths_and_change_nothing(tmp_path: Path, path: Path) -> None:
    with pytest.raises(UserError, match=rf"{path}, which rank 0 has made, is not there"):
        FollowedFolder.follow(path, 1)
    with RunFolder.open(path, "train", saved_file=tmp_path / "saved") as folder:
        folder.mark_done()
        (path / "STOP").touch()
        before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
        with FollowedFolder.follow(path, 1) as followed:
            assert followed.checkpoints == folder.checkpoints
            assert followed.is_done
            assert followed.stop_file() is None  # rank 0 tells them
            followed.clear_done()
            followed.remove("DONE")
            followed.mark_saved()
            followed.write_json("manifest.json", {})
            followed.require_space(10**18)
        assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
        assert not (tmp_path / "saved").exists()


def test_a_folder_of_the_same_name_elsewhere_is_found_out(tmp_path: Path, path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        handshake = folder.begin_handshake()
        folder.answer_handshake(handshake, 0)
        FollowedFolder.follow(path, 1).answer_handshake(handshake, 1)
        assert sorted(file.name for file in (folder.checkpoints / handshake).iterdir()) == ["0", "1"]
        (tmp_path / "elsewhere" / "checkpoints").mkdir(parents=True)
        other = FollowedFolder.follow(tmp_path / "elsewhere", 1)
        with pytest.raises(UserError, match=r"elsewhere is another folder here than on rank 0: set run\.dir"):
            other.answer_handshake(handshake, 1)
        folder.end_handshake(handshake)
        assert list(folder.checkpoints.iterdir()) == []


def test_what_a_killed_start_left_is_removed(path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        left = folder.begin_handshake()
        folder.answer_handshake(left, 0)
        assert folder.begin_handshake() != left
        assert not (folder.checkpoints / left).exists()


def test_a_folder_in_which_no_checkpoint_can_be_written_is_refused_at_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that has the disk mounted read-only, or as another user."""
    with RunFolder.open(path, "train") as folder:
        handshake = folder.begin_handshake()

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("os.fsync", refuse)
        with pytest.raises(UserError, match=r"nothing can be written in .*/checkpoints, .*: Read-only file"):
            folder.answer_handshake(handshake, 0)
        monkeypatch.setattr("pathlib.Path.mkdir", refuse)
        with pytest.raises(UserError, match=r"nothing can be written in .*: Read-only file system; mend"):
            folder.begin_handshake()


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "beat")
    return {path: path.read_bytes() for path in files}


def test_a_start_that_has_lost_the_run_writes_nothing_into_its_folder(tmp_path: Path, path: Path) -> None:
    saved = tmp_path / "saved"
    with RunFolder.open(path, "train", saved_file=saved) as folder:
        folder.write_text("config.yaml", "a: 1\n")
        folder.mark_done()
        shutil.move(path / "generations" / "00000001", path / "generations" / "00000002")
        before = contents(path)
        for act in (
            lambda: folder.write_text("config.yaml", "a: 2\n"),
            lambda: folder.keep_config("a: 2\n"),
            lambda: folder.remove("config.yaml"),
            folder.clear_done,
            folder.mark_done,
            folder.mark_saved,
            FollowedFolder.follow(path, 1).require_current,
        ):
            with pytest.raises(RunFault, match="taken over by generation 2"):
                act()
    assert contents(path) == before and not saved.exists()


def test_what_an_earlier_start_was_writing_cannot_take_the_place_of_a_file_any_more(path: Path) -> None:
    with RunFolder.open(path, "train") as folder:
        folder.keep_config("a: 1\n")
    for name in ("config.yaml.part", "configs/start-0002.yaml.part"):
        (path / name).write_text("half")
    with RunFolder.open(path, "train"):
        assert not list(path.rglob("*.part"))
