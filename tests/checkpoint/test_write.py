"""Saving: whole or not there, the newest kept, nothing of others touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import read
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
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
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
    assert "it needs 12,864 bytes" in message  # 1072 elements, 3 kinds, 4 bytes
    assert "\n" not in message
    assert names(tmp_path) == ["step-00000001"]
    save_step(2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


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
