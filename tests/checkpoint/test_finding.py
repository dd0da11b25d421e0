"""Finding checkpoints that lie elsewhere, have many files, or cannot be read for reasons of no damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from llmkit.checkpoint import read
from llmkit.checkpoint.format import canonical
from llmkit.errors import UserError


def newest(root: Path) -> tuple[int | None, list[str]]:
    """The step of the newest good checkpoint, and what was said on the way to it."""
    said: list[str] = []
    found = read.newest(root, said.append)
    return (found.step if found else None), said


def test_checkpoints_on_another_disk_are_found_through_their_links(tmp_path: Path, save_step: Any) -> None:
    for step in (1, 2):
        moved = tmp_path / f"disk{step}"
        folder = save_step(step)
        folder.rename(moved)
        folder.symlink_to(moved)
    assert newest(tmp_path) == (2, [])
    save_step(3, keep_last=2)
    assert [path.name for path in read.folders(tmp_path)] == ["step-00000002", "step-00000003"]
    assert (tmp_path / "disk1" / "manifest.json").exists()  # only the link was pruned


@pytest.mark.parametrize("how", ["moved", "copied", "linked", "copied as another step"])
def test_a_folder_of_checkpoints_that_was_moved_copied_or_linked_is_read_as_it_was(
    tmp_path: Path, save_step: Any, tensors: Any, how: str
) -> None:
    save_step(1)
    folder = save_step(2)
    root = tmp_path / "elsewhere"
    root.mkdir()
    for each in read.folders(tmp_path):
        if how == "moved":
            each.rename(root / each.name)
        elif how == "linked":
            (root / each.name).symlink_to(each)
        else:
            shutil.copytree(each, root / each.name)
    if how == "copied as another step":
        shutil.copytree(folder, root / "step-00000003")
    step, said = newest(root)
    assert step == 2
    assert len(said) == (how == "copied as another step") and all("it is of step 2" in line for line in said)
    checkpoint = read.open(root / "step-00000002")
    assert read.verify(checkpoint.path) == []
    assert all(torch.equal(checkpoint.read(name, "master"), t) for name, t in tensors(2).items())


def test_a_link_to_nothing_is_named(tmp_path: Path, save_step: Any) -> None:
    save_step(1)
    (tmp_path / "step-00000002").symlink_to("/unmounted/step-00000002")
    step, said = newest(tmp_path)
    assert step == 1
    assert "step-00000002: it is a link to /unmounted/step-00000002, which is not there" in said[0]


def test_a_checkpoints_folder_that_is_a_link_is_named_where_it_is_of_no_use(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match=r"checkpoints \(a link to .*disk\) is not there; is its disk"):
        read.open(run)
    (tmp_path / "disk").mkdir()
    with pytest.raises(UserError, match=r"checkpoints \(a link to .*disk\): there is no checkpoint in it"):
        read.open(run)


def test_a_link_to_another_step_is_not_taken_for_that_step(tmp_path: Path, save_step: Any) -> None:
    (tmp_path / "step-00000009").symlink_to(save_step(5))
    step, said = newest(tmp_path)
    assert step == 5
    assert "it is of step 5" in said[0]


@pytest.mark.drill("D37", injection="a link in a checkpoint to a file outside", expected="refused")
def test_files_in_a_checkpoint_may_not_be_links(tmp_path: Path, save_step: Any) -> None:
    folder = save_step(1)
    (folder / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    step, said = newest(tmp_path)
    assert step is None
    assert "it is a symbolic link" in said[0]


def test_a_checkpoint_of_a_newer_format_is_not_passed_over(tmp_path: Path, save_step: Any) -> None:
    save_step(1)
    path = save_step(2) / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    content |= {"version": 3, "versions": {"llmkit": "0.7.0"}, "what": "it has besides"}
    path.write_bytes(canonical(content | {"checksum": xxhash.xxh64(canonical(content)).hexdigest()}))
    with pytest.raises(
        UserError, match=r"llmkit 0\.7\.0 wrote it in format version 3, .* reads versions 1 and 2"
    ):
        newest(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"it has besides", b"it had besides"))
    assert newest(tmp_path)[0] == 1  # that one is damaged
