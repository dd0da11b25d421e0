"""Reading: the newest good one, any region from any cutting, and no byte that was not checked."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.checkpoint import files, format, index_file, read, write
from llmkit.checkpoint.regions import RegionReader
from llmkit.errors import RunFault, UserError
from llmkit.parallel.slices import Box

PIECES = "pieces-00000-00000.safetensors"
FLIPS = 1000


def newest(root: Path) -> tuple[int | None, list[str]]:
    """The step of the newest good checkpoint, and what was said on the way to it."""
    said: list[str] = []
    found = read.newest(root, said.append)
    return (found.step if found else None), said


def region(tensor: Tensor, box: Box) -> Tensor:
    """A box of a tensor."""
    return tensor[tuple(slice(lo, hi) for lo, hi in box)]


# Finding


def test_there_is_no_newest_where_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "nothing") == (None, [])


def test_the_newest_good_one_is_taken_and_bad_ones_are_named(tmp_path: Path, save_step: Any) -> None:
    for step in (9, 10, 100):
        save_step(step)
    assert newest(tmp_path) == (100, [])
    os.truncate(tmp_path / "step-00000100" / PIECES, 100)
    found, said = newest(tmp_path)
    assert found == 10
    assert len(said) == 1 and PIECES in said[0] and "100 bytes instead of" in said[0] and "\n" not in said[0]


def test_folders_that_are_no_checkpoints_are_passed_by(tmp_path: Path, save_step: Any) -> None:
    save_step(5)
    arabic = "step-" + "\u0660" * 7 + "\u0667"  # digits, but not those of a step
    for name in ("step-7", "step-000000070", "step-0000007x", ".tmp-step-00000007", arabic):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000008").write_text("a file")
    (tmp_path / "step-00000009.bak").symlink_to(tmp_path / "step-00000005")
    assert newest(tmp_path) == (5, [])


def test_a_path_may_be_a_run_folder_its_checkpoints_or_one_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for step in (1, 2):
        write.save(run / "checkpoints", step, [], state={}, model={}, config={}, extra_files={}, keep_last=5)
    (run / "manifest.json").write_text("{}")  # a run folder has one, too
    assert read.open(run).step == 2
    assert read.open(run / "checkpoints").step == 2
    assert read.open(run / "checkpoints" / "step-00000001").step == 1
    (run / "checkpoints" / "step-00000001").rename(tmp_path / "by another name")
    assert read.open(tmp_path / "by another name").step == 1


def test_a_path_without_a_checkpoint_is_a_mistake_that_is_named(tmp_path: Path, save_step: Any) -> None:
    with pytest.raises(UserError, match="nothing: no such folder"):
        read.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"no checkpoint in it; name a run folder that has one, or a check"):
        read.open(tmp_path)
    (tmp_path / "run.yaml").touch()
    with pytest.raises(UserError, match=r"run\.yaml: is no folder; name a run folder"):
        read.open(tmp_path / "run.yaml")
    (save_step(1) / "manifest.json").unlink()
    said: list[str] = []
    with pytest.raises(UserError, match="none of the 1 checkpoints in it is good"):
        read.open(tmp_path, said.append)
    assert len(said) == 1 and "manifest.json: No such file" in said[0]


def test_a_folder_of_runs_names_them(tmp_path: Path, save_step: Any) -> None:
    step = save_step(1)
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/empty/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/one/checkpoints").mkdir()
    step.rename(tmp_path / "runs/one/checkpoints" / step.name)
    with pytest.raises(
        UserError, match=r"there is no checkpoint in it; name one of its run folders: .*runs/one$"
    ):
        read.open(tmp_path / "runs")


def test_a_bad_checkpoint_that_was_asked_for_by_name_is_not_replaced_by_another(save_step: Any) -> None:
    save_step(1)
    folder = save_step(2)
    (folder / PIECES).unlink()
    with pytest.raises(RunFault, match=PIECES):
        read.open(folder)


def test_bad_ones_are_told_on_standard_error(
    tmp_path: Path, save_step: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    save_step(1)
    (save_step(2) / PIECES).unlink()
    assert read.open(tmp_path).step == 1
    assert "step-00000002 is not usable" in capsys.readouterr().err


def test_a_checkpoint_stays_readable_when_it_is_deleted_meanwhile(save_step: Any, tensors: Any) -> None:
    folder = save_step(1)
    checkpoint = read.load(folder)
    shutil.rmtree(folder)
    assert torch.equal(checkpoint.read("embedding", "master"), tensors(1)["embedding"])


def test_a_missing_tokenizer_is_named(save_step: Any) -> None:
    checkpoint = read.load(save_step(1, extra_files={}))
    assert checkpoint.manifest.tokenizer_sha256 is None
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        checkpoint.tokenizer_json()


# Damage


@pytest.mark.drill(
    "D19",
    injection="a bit flipped at random positions, in turn in each file of a checkpoint",
    expected="the file is named, and the checkpoint before is taken",
)
def test_every_flipped_bit_is_found_and_the_one_before_is_taken(
    tmp_path: Path, save_step: Any, measured: Any
) -> None:
    save_step(1)
    folder = save_step(2)
    paths = sorted(folder.iterdir())
    draw = random.Random(0)
    for trial in range(FLIPS):
        path = paths[trial % len(paths)]
        position, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        _flip(path, position, bit)
        step, said = newest(tmp_path)
        assert step == 1, f"bit {bit} of byte {position} of {path.name}"
        assert len(said) == 1 and str(path) in said[0] and "\n" not in said[0]
        assert len(read.verify(folder)) == 1
        _flip(path, position, bit)
    assert newest(tmp_path) == (2, [])
    measured("found", FLIPS, f"of {FLIPS} bits in {len(paths)} files")


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.mark.drill(
    "D20",
    injection="each file of a checkpoint is missing, empty, shorter, longer, a folder, a pipe or a link",
    expected="the file is named, and the checkpoint before is taken",
)
@pytest.mark.parametrize("name", [PIECES, "tokenizer.json", "index.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "shorter", "longer", "folder", "pipe", "link"])
def test_a_file_that_is_not_as_written_is_named(
    tmp_path: Path, save_step: Any, name: str, damage: str
) -> None:
    save_step(1)
    path = save_step(2) / name
    size = path.stat().st_size
    if damage in ("empty", "shorter", "longer"):
        os.truncate(path, {"empty": 0, "shorter": size - 1, "longer": size + 1}[damage])
    else:
        kept = path.rename(tmp_path / "kept")
        if damage == "folder":
            path.mkdir()
        elif damage == "pipe":
            os.mkfifo(path)
        elif damage == "link":
            path.symlink_to(kept)
    step, said = newest(tmp_path)
    assert step == 1
    assert len(said) == 1 and str(path) in said[0]


@pytest.mark.drill(
    "D20",
    injection="files, and the whole folder, of another step",
    expected="the file is named, and the checkpoint before is taken",
)
def test_files_of_two_steps_do_not_mix(tmp_path: Path, save_step: Any) -> None:
    one, two = save_step(1), save_step(2)
    shutil.copy(one / PIECES, two / PIECES)  # as long as the right one
    found, said = newest(tmp_path)
    assert found == 1 and PIECES in said[0]
    shutil.rmtree(two)
    shutil.copytree(one, two)
    found, said = newest(tmp_path)
    assert found == 1 and "it is of step 1" in said[0]


def test_an_unreadable_block_is_damage(save_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_step(1)

    def failing(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", failing)
    assert read.verify(folder) == [f"{folder / 'index.safetensors'}: Input/output error, reading from byte 0"]
    monkeypatch.undo()
    checkpoint = read.load(folder)
    monkeypatch.setattr(os, "preadv", failing)
    assert list(checkpoint.problems()) == [
        f"{folder / name}: Input/output error, reading from byte 0"
        for name in ("tokenizer.json", "index.safetensors", PIECES)
    ]


@pytest.mark.parametrize("of", [1, 3, 50])
def test_processes_that_check_together_read_every_block_once(
    save_step: Any, monkeypatch: pytest.MonkeyPatch, of: int
) -> None:
    for module in (format, files, index_file):
        monkeypatch.setattr(module, "BLOCK", 4096)
    folder = save_step(1)
    checkpoint = read.load(folder)
    read_blocks: list[tuple[str, int]] = []
    fill = files.BlockFile.fill

    def recording(file: files.BlockFile, number: int, buffer: memoryview) -> None:
        read_blocks.append((file.path.name, number))
        fill(file, number, buffer)

    monkeypatch.setattr(files.BlockFile, "fill", recording)
    monkeypatch.setattr(RegionReader, "check_spans", lambda reader, file: None)
    counts = []
    for share in range(of):
        before = len(read_blocks)
        assert list(checkpoint.problems(share, of)) == []
        counts.append(len(read_blocks) - before)
    names = [path.name for path in folder.iterdir() if path.name != "manifest.json"]
    blocks = {(name, b) for name in names for b in range(-(-(folder / name).stat().st_size // 4096))}
    assert len(read_blocks) == len(blocks) > 5 and set(read_blocks) == blocks
    assert max(counts) - min(counts) <= 1


def test_names_and_shapes(save_step: Any) -> None:
    checkpoint = read.load(save_step(1))
    assert checkpoint.names("exp_avg") == ["embedding", "blocks.0.norm", "blocks.0.q"]
    assert checkpoint.names("nothing") == []
    assert checkpoint.shape("blocks.0.q", "master") == (4, 4, 16)
