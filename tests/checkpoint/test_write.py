"""Saving: whole or not there, the newest kept, nothing of others touched."""

from __future__ import annotations

import errno
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llmkit.checkpoint import commit, read, writer
from llmkit.checkpoint.pieces import Piece
from llmkit.errors import RunFault


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path, save_step: Any, tensors: Any) -> None:
    folder = save_step(100)
    assert folder == tmp_path / "step-00000100"
    checkpoint = read.load(folder)
    assert checkpoint.step == 100
    assert checkpoint.state == {"step": 100, "tokens": 10000, "schedule": [0.5, None]}
    assert checkpoint.model == {"hidden_size": 16}
    assert checkpoint.config == {"run": {"name": "demo"}}
    assert checkpoint.tokenizer_json() == '{"model": "bytes"}'
    assert checkpoint.kinds() == ["master", "exp_avg", "exp_avg_sq"]
    for name, tensor in tensors(100).items():
        assert torch.equal(checkpoint.read(name, "master"), tensor)
        assert torch.equal(checkpoint.read(name, "exp_avg_sq"), tensor + 2)


def test_any_safetensors_reader_can_open_the_tensors(save_step: Any, tensors: Any) -> None:
    folder = save_step(1)
    found = safetensors.torch.load_file(folder / "pieces-00000-00000.safetensors")
    assert torch.equal(found["master/blocks.0.q"], tensors(1)["blocks.0.q"])


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8],
)
def test_every_type_keeps_its_bits_beside_the_others(save_step: Any, dtype: torch.dtype) -> None:
    odd = torch.tensor([1, 2, 250], dtype=torch.uint8)
    data = torch.tensor([0, 1, 3, 7], dtype=dtype)
    pieces = [
        Piece("odd", "master", (3,), ((0, 3),), (0, 3), odd),
        Piece("data", "master", (4,), ((0, 4),), (0, 4), data),
    ]
    checkpoint = read.load(save_step(1, pieces=pieces))
    assert torch.equal(checkpoint.read("data", "master"), data)
    assert checkpoint.read("data", "master").dtype == dtype
    assert torch.equal(checkpoint.read("odd", "master"), odd)


def test_non_finite_weights_keep_their_bits(save_step: Any) -> None:
    data = torch.tensor([float("nan"), float("inf"), -0.0])
    piece = Piece("w", "master", (3,), ((0, 3),), (0, 3), data)
    found = read.load(save_step(1, pieces=[piece])).read("w", "master")
    assert torch.equal(found.view(torch.int32), data.view(torch.int32))


@pytest.mark.parametrize("count", [1, 3])
def test_data_may_be_a_strided_view_that_needs_a_gradient(save_step: Any, count: int) -> None:
    data = torch.arange(6.0).view(3, 2).requires_grad_()[:count, 1]
    piece = Piece("w", "master", (count,), ((0, count),), (0, count), data)
    assert read.load(save_step(1, pieces=[piece])).read("w", "master").tolist() == [1.0, 3.0, 5.0][:count]


def test_many_pieces_go_into_several_files_and_are_not_kept_in_memory(
    save_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FILE_BYTES", 4000)
    alive: weakref.WeakSet[Piece] = weakref.WeakSet()
    most = 0

    class Tracked(Piece):
        __slots__ = ("__weakref__",)

    def pieces() -> Iterator[Piece]:
        nonlocal most
        for i in range(20):
            piece = Tracked(f"w{i}", "master", (250,), ((0, 250),), (0, 250), torch.full((250,), float(i)))
            alive.add(piece)
            most = max(most, len(alive))
            yield piece

    folder = save_step(1, pieces=pieces())
    assert len(list(folder.glob("pieces-00000-*.safetensors"))) == 5
    assert most <= 6
    checkpoint = read.load(folder)
    assert all(torch.all(checkpoint.read(f"w{i}", "master") == i) for i in range(20))


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


def test_a_save_that_fails_leaves_the_checkpoint_of_the_same_step(tmp_path: Path, save_step: Any) -> None:
    folder = save_step(1, state={"try": 1})

    def failing() -> Iterator[Piece]:
        yield Piece("w", "master", (3,), ((0, 3),), (0, 3), torch.zeros(3))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_step(1, pieces=failing())
    assert read.load(folder).state == {"try": 1}
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC])
def test_a_failing_disk_is_a_fault_that_names_path_and_bytes(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    save_step(1)
    real: Callable[..., Any] = getattr(os, call)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if call == "open" and not (isinstance(args[1], int) and args[1] & os.O_CREAT):
            return real(*args, **kwargs)
        raise OSError(number, os.strerror(number), str(args[0]))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(RunFault) as fault:
            save_step(2)
    message = str(fault.value)
    assert str(tmp_path / "step-00000002") in message
    assert os.strerror(number) in message
    assert "it needs 12864 bytes" in message  # 1072 elements, 3 kinds, 4 bytes
    assert "\n" not in message
    assert names(tmp_path) == ["step-00000001"]
    save_step(2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


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


def test_all_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, save_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def recording_fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def recording_rename(source: Any, target: Any) -> None:
        done.append(f"{Path(source).name} -> {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    save_step(1)
    assert done == [
        "pieces-00000-00000.safetensors",
        "tokenizer.json",
        "index.safetensors",
        "manifest.json",
        ".tmp-step-00000001",
        ".tmp-step-00000001 -> step-00000001",
        tmp_path.name,
    ]


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


@pytest.mark.parametrize(
    "changes",
    [
        {"state": {"x": object()}},
        {"state": {"x": float("nan")}},
        {"keep_last": 0},
        {"extra_files": {"../tokenizer.json": b""}},
        {"extra_files": {"manifest.json": b""}},
        {"extra_files": {"index.safetensors": b""}},
    ],
)
def test_what_cannot_be_saved_is_refused_and_leaves_nothing(
    tmp_path: Path, save_step: Any, changes: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        save_step(1, **changes)
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", [-1, 10**8])
def test_a_step_that_has_no_folder_name_is_refused(save_step: Any, step: int) -> None:
    with pytest.raises(ValueError, match="step"):
        save_step(step, pieces=[])


def test_a_piece_given_twice_is_refused(tmp_path: Path, save_step: Any) -> None:
    piece = Piece("w", "master", (3,), ((0, 3),), (0, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="twice"):
        save_step(1, pieces=[piece, piece])
    assert names(tmp_path) == []


def test_a_type_that_cannot_be_stored_is_refused_by_name(save_step: Any) -> None:
    piece = Piece("w", "master", (3,), ((0, 3),), (0, 3), torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"master w: elements of type torch\.complex64"):
        save_step(1, pieces=[piece])
