"""The files that a process writes: every type bit for bit, in files that any safetensors reader opens."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llmkit.checkpoint import read, writer
from llmkit.checkpoint.pieces import Piece


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


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


def test_a_piece_given_twice_is_refused(tmp_path: Path, save_step: Any) -> None:
    piece = Piece("w", "master", (3,), ((0, 3),), (0, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="twice"):
        save_step(1, pieces=[piece, piece])
    assert names(tmp_path) == []


def test_a_type_that_cannot_be_stored_is_refused_by_name(save_step: Any) -> None:
    piece = Piece("w", "master", (3,), ((0, 3),), (0, 3), torch.zeros(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"master w: elements of type torch\.complex64"):
        save_step(1, pieces=[piece])
