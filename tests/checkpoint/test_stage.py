"""A snapshot refers to the engine's memory, or has its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import read
from llmkit.checkpoint.commit import commit
from llmkit.checkpoint.keeping import Keep
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import ALONE
from llmkit.checkpoint.stage import CHUNK, HostMemory, Snapshot, chunk_sizes, room_for, stage
from llmkit.checkpoint.write import write


def staged(weights: torch.Tensor, copy: bool) -> Snapshot:
    """The snapshot of one tensor and its column, a strided view."""
    pieces = (
        Piece(name, "master", (len(data),), ((0, len(data)),), (0, len(data)), data)
        for name, data in (("w", weights.view(-1)), ("column", weights[:, 1]))
    )
    return stage(Snapshot(7, pieces, {"step": 7}, {}, {}, {}), HostMemory() if copy else None)


def test_a_copied_snapshot_is_written_as_it_was_staged_though_training_goes_on(tmp_path: Path) -> None:
    weights = torch.arange(6.0).view(3, 2).requires_grad_()
    snapshot = staged(weights, copy=True)
    with torch.no_grad():
        weights.add_(100.0)
    writer = write(tmp_path, snapshot, ALONE)
    assert list(tmp_path.iterdir()) == [writer.folder] and read.newest(tmp_path, pytest.fail) is None
    path = commit(writer, snapshot, Keep(1), ALONE, pytest.fail)
    assert path == tmp_path / "step-00000007"
    checkpoint = read.load(path)
    assert checkpoint.read("w", "master").tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert checkpoint.read("column", "master").tolist() == [1.0, 3.0, 5.0]


def test_a_snapshot_that_is_not_copied_takes_no_memory(tmp_path: Path) -> None:
    weights = torch.arange(6.0).view(3, 2)
    pieces: list[Any] = list(staged(weights, copy=False).pieces)
    assert pieces[0].data.data_ptr() == weights.data_ptr()
    copied: list[Any] = list(staged(weights, copy=True).pieces)
    assert copied[0].data.data_ptr() != weights.data_ptr() and not copied[0].data.is_pinned()


def test_memory_is_taken_once_and_used_by_every_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks hold several pieces, or one that is larger than a chunk."""
    monkeypatch.setattr("llmkit.checkpoint.stage.CHUNK", 1024)
    sizes, memory = [100, 150, 3, 600, 7], HostMemory()
    first = [torch.arange(float(size)) for size in sizes]

    def pieces(tensors: list[torch.Tensor]) -> list[Piece]:
        return [
            Piece(str(number), "master", (len(data),), ((0, len(data)),), (0, len(data)), data)
            for number, data in enumerate(tensors)
        ]

    memory.allocate(map(room_for, pieces(first)), pinned=False)
    places = []
    for tensors in (first, [-each for each in first]):
        copies = memory.copy(pieces(tensors))
        assert all(copy.data.equal(data) for copy, data in zip(copies, tensors, strict=True))
        assert all(copy.data.data_ptr() % 64 == 0 for copy in copies)
        places.append([copy.data.data_ptr() for copy in copies])
    assert places[0] == places[1] and [len(chunk) for chunk in memory._chunks] == [448, 704, 2432, 64]
    assert memory.copy(pieces([*first, torch.ones(50)]))[-1].data.equal(torch.ones(50))


def test_what_is_taken_of_the_host_is_known_before() -> None:
    """Page-locked memory comes in powers of two."""
    rooms = [CHUNK // 2, CHUNK // 2 + 64, 3 * CHUNK, 64]
    assert chunk_sizes(rooms, pinned=False) == rooms
    assert chunk_sizes(rooms, pinned=True) == [CHUNK // 2, CHUNK, 4 * CHUNK, 64]
    assert chunk_sizes([64] * 4, pinned=False) == [256]
    assert chunk_sizes([], pinned=True) == []
