"""Any region of a tensor is read from any pieces, by the blocks that hold something of it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmkit.checkpoint import commit, files, format, index_file, read, regions, write, writer
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.regions import RegionReader
from llmkit.errors import RunFault
from llmkit.parallel.slices import Box, box_size, full_box
from tests.checkpoint.cuttings import cuttings

PIECES = "pieces-00000-00000.safetensors"


def region(tensor: Tensor, box: Box) -> Tensor:
    """A box of a tensor."""
    return tensor[tuple(slice(lo, hi) for lo, hi in box)]


def _flip(path: Path, position: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def test_only_the_blocks_of_the_region_are_read(save_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = format.BLOCK // 4096  # of 1024 fp32 values, in a block
    tensor = torch.randn(4 * rows, 1024)
    folder = save_step(
        1,
        pieces=[
            Piece(
                "w",
                "m",
                tuple(tensor.shape),
                full_box(tuple(tensor.shape)),
                (0, tensor.numel()),
                tensor.view(-1),
            )
        ],
    )
    _flip(folder / PIECES, 3 * format.BLOCK, 0)
    checkpoint = read.load(folder)
    read_blocks: list[int] = []
    block = files.BlockFile.block

    def recording(file: files.BlockFile, index: int, memory: Tensor | None = None) -> Tensor:
        read_blocks.append(index)
        return block(file, index, memory)

    monkeypatch.setattr(files.BlockFile, "block", recording)
    box = ((rows + 5, 2 * rows + 7), (100, 900))
    assert torch.equal(checkpoint.read("w", "m", box), region(tensor, box))
    assert read_blocks == [0, 1, 2]  # the first for the header
    with pytest.raises(RunFault, match=f"{PIECES}: bytes {3 * format.BLOCK} to {4 * format.BLOCK} are not"):
        checkpoint.read("w", "m", ((3 * rows, 3 * rows + 1), (0, 1024)))


def test_a_region_that_no_piece_holds_is_named(save_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "check_complete", lambda index: None)
    pieces = [
        Piece("w", "m", (4, 6), ((0, 4), (0, 3)), (0, 12), torch.zeros(12)),
        Piece("w", "m", (4, 6), ((0, 4), (3, 6)), (0, 7), torch.zeros(7)),
    ]
    checkpoint = read.load(save_step(1, pieces=pieces))
    assert checkpoint.read("w", "m", ((0, 2), (0, 6))).shape == (2, 6)
    with pytest.raises(RunFault, match=r"no piece holds \[2:3, 4:6\] of m w"):
        checkpoint.read("w", "m", ((0, 3), (0, 6)))
    with pytest.raises(RunFault, match="there is no m of x"):
        checkpoint.read("x", "m")
    with pytest.raises(RunFault, match="there is no exp_avg of w"):
        checkpoint.read("w", "exp_avg")


def test_a_region_outside_the_tensor_is_a_mistake(save_step: Any) -> None:
    checkpoint = read.load(save_step(1))
    with pytest.raises(ValueError, match="box"):
        checkpoint.read("embedding", "master", ((0, 51), (0, 16)))
    with pytest.raises(ValueError, match="range"):
        checkpoint.read("embedding", "master", ((0, 50), (0, 16)), (0, 801))


def test_pieces_may_say_the_same_twice(save_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "check_complete", lambda index: None)
    data = torch.arange(12.0)
    pieces = [
        Piece("w", "m", (12,), ((0, 8),), (0, 8), data[:8]),
        Piece("w", "m", (12,), ((4, 12),), (0, 8), data[4:]),
    ]
    assert torch.equal(read.load(save_step(1, pieces=pieces)).read("w", "m"), data)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Any], list[Any]]:
    """A shape and two cuttings of it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    return shape, draw(cuttings(shape)), draw(cuttings(shape))


@settings(deadline=None, max_examples=60)
@given(layout=layouts(), block=st.sampled_from([64, 256, format.BLOCK]), kinds=st.permutations(["a", "b"]))
def test_what_one_cutting_wrote_another_reads(layout: Any, block: int, kinds: list[str]) -> None:
    shape, written, wanted = layout
    tensor = torch.arange(box_size(full_box(shape)), dtype=torch.float32).view(shape)
    tensors = {"a": tensor, "b": tensor.to(torch.float64) + 0.5}
    pieces = [
        Piece("w", kind, shape, box, part, region(tensors[kind], box).reshape(-1)[slice(*part)])
        for box, part in written
        for kind in kinds
    ]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as root:
        patch.setattr(format, "BLOCK", block)
        patch.setattr(files, "BLOCK", block)
        patch.setattr(index_file, "BLOCK", block)
        patch.setattr(writer, "FILE_BYTES", 1000)
        folder = write.save(Path(root), 1, pieces, state={}, model={}, config={}, extra_files={}, keep_last=1)
        checkpoint = read.load(folder)
        for kind in kinds:
            assert torch.equal(checkpoint.read("w", kind), tensors[kind])
            for box, part in wanted:
                expected = region(tensors[kind], box)
                assert torch.equal(checkpoint.read("w", kind, box), expected)
                assert torch.equal(checkpoint.read("w", kind, box, part), expected.reshape(-1)[slice(*part)])
                for dtype in (torch.float32, torch.float64):  # that of one kind, and of the other
                    out = torch.full((part[1] - part[0],), torch.nan, dtype=dtype)
                    checkpoint.read_into(out, "w", kind, box, part)
                    assert torch.equal(out, expected.reshape(-1)[slice(*part)].to(dtype))


def test_blocks_go_straight_to_where_they_belong(save_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (format, files, index_file):
        monkeypatch.setattr(module, "BLOCK", 256)
    data = torch.arange(1000.0)
    piece = Piece("w", "m", (10, 100), full_box((10, 100)), (0, 1000), data)
    folder = save_step(1, pieces=[piece])
    checkpoint = read.load(folder)
    out = torch.full((900,), torch.nan)
    given: list[int] = []
    fill = files.BlockFile.fill

    def recording(file: files.BlockFile, index: int, buffer: memoryview) -> None:
        given.append(index)
        fill(file, index, buffer)

    monkeypatch.setattr(files.BlockFile, "fill", recording)
    monkeypatch.setattr(RegionReader, "_copy", None)
    checkpoint.read_into(out, "w", "m", full_box((10, 100)), (53, 953))
    assert torch.equal(out, data[53:953])
    assert sorted(given) == sorted(set(given)) and len(given) >= 15
    _flip(folder / PIECES, 2100, 3)
    with pytest.raises(RunFault, match=f"{PIECES}: bytes 2048 to 2304 are not"):
        checkpoint.read_into(out, "w", "m", full_box((10, 100)), (53, 953))
    with pytest.raises(ValueError, match="range"):
        checkpoint.read_into(out, "w", "m", full_box((10, 100)), (0, 1001))
    with pytest.raises(ValueError, match="900 elements for the range"):
        checkpoint.read_into(out, "w", "m", full_box((10, 100)), (0, 1000))


def _read_many_files(save_step: Any, monkeypatch: pytest.MonkeyPatch, kept: int) -> tuple[int, int, int]:
    """Reads small tensors, each out of 8 files of several blocks; returns the blocks that were read, how many
    there are, and the most bytes that were kept of them."""
    for module in (format, files, index_file):
        monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setattr(writer, "FILE_BYTES", 40 * 40)
    monkeypatch.setattr(regions, "KEPT_BYTES", kept)
    data = torch.arange(40 * 80.0).view(40, 80)
    pieces = [
        Piece(f"w{row}", "m", (80,), ((0, 80),), (first, first + 10), data[row, first : first + 10])
        for first in range(0, 80, 10)
        for row in range(40)
    ]
    checkpoint = read.load(save_step(1, pieces=pieces))
    reader = checkpoint._regions
    read_blocks: list[str] = []
    block = files.BlockFile.block

    def recording(file: files.BlockFile, index: int, memory: Tensor | None = None) -> Tensor:
        read_blocks.append(f"{file.path.name} {index}")
        return block(file, index, memory)

    monkeypatch.setattr(files.BlockFile, "block", recording)
    most = 0
    for row in range(40):
        assert torch.equal(checkpoint.read(f"w{row}", "m", ((0, 80),), (0, 79)), data[row, :79])
        held = sum(block.nbytes for blocks in reader._recent.values() for block in blocks.values())
        assert held == reader._kept
        most = max(most, held)
    assert len({name.partition(" ")[0] for name in read_blocks}) == 8
    return len(read_blocks), len(set(read_blocks)), most


@pytest.mark.parametrize("kept", [256, 3 * 256, 8 * 256, 100 * 256])
def test_blocks_are_kept_of_many_files_up_to_a_number_of_bytes(
    save_step: Any, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """As many as all files need: each block is read once, but those of headers, which take several here.
    Fewer: more often, and it is right all the same."""
    read_blocks, there, most = _read_many_files(save_step, monkeypatch, kept)
    assert most <= min(kept, 16 * 256)
    assert (read_blocks <= there + 8) is (kept >= 8 * 256)
