"""Reads any region of any tensor of a checkpoint, put together from whatever pieces hold it.

Every byte is checked against its block's checksum before it is used, and only the blocks that hold something
of what is asked for are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.files import BlockFile
from llmkit.checkpoint.index import Index, PieceEntry
from llmkit.checkpoint.pieces import ContiguousBox, intersect, runs, subtract
from llmkit.checkpoint.safetensors_header import TensorSpan, decode_header
from llmkit.parallel.slices import Box, Range

_KEPT_BLOCKS = 2
"""Of each file. Small pieces share a block, and tensors lie in one order in all files, which is that in which
they are read: so each block is read once. One more than that needs, as orders may differ a little."""
KEPT_BYTES = 2 << 30
"""Of all files together: a block of each of 512 files. Beyond that a block may be read more than once."""


class RegionReader:
    """The tensors of the checkpoint in a folder. files: name -> file, those of the index among them."""

    def __init__(self, folder: Path, index: Index, files: dict[str, BlockFile]) -> None:
        self._folder = folder
        self._index = index
        self._files = [files[stored.name] for stored in index.files]
        self._recent: dict[int, dict[int, Tensor]] = {}
        """Of each file the blocks used last, the latest at the end; the file used last at the end, too."""
        self._kept = 0
        """Bytes of all of these."""
        self._headers: dict[int, dict[str, TensorSpan]] = {}

    def dtype(self, tensor: int) -> torch.dtype:
        """The type that a tensor is stored in."""
        return fmt.DTYPES[self._index.tensors[tensor].dtype]

    def read(self, tensor: int, box: Box, within: Range, out: Tensor | None = None) -> Tensor:
        """(elements,) on the CPU, of the type stored: elements `within` of a box of a tensor.

        out: memory for them, contiguous; by default new memory, once it is known that pieces hold so many.
        Raises Damaged if bytes it needs are not what was written or nothing holds some of
        the region; then anything may be in `out`.
        """
        targets = list(runs(box, within))
        holding = self._index.holding(tensor, targets)
        self._require(tensor, holding, targets)
        if out is None:
            out = torch.empty(within[1] - within[0], dtype=self.dtype(tensor))
        for piece in holding:
            if piece.box == box:
                self._copy_range(piece, within, out)
            else:
                self._copy(piece, targets, out, within[0])
        return out

    def check_spans(self, file: int) -> None:
        """Raise Damaged unless the file holds the pieces that the index says are in it."""
        for piece in self._index.in_file(file):
            self._span(piece)

    def _require(self, tensor: int, holding: Sequence[PieceEntry], targets: Sequence[ContiguousBox]) -> None:
        """Raise Damaged unless the pieces hold all of the targets."""
        missing = [target.box for target in targets]
        for piece in holding:
            for run in runs(piece.box, piece.range):
                missing = [rest for box in missing for rest in subtract(box, run.box)]
        if missing:
            region = ", ".join(f"{lo}:{hi}" for lo, hi in missing[0])
            kind, name, *_ = self._index.tensors[tensor]
            raise fmt.Damaged(f"{self._folder}: no piece holds [{region}] of {kind} {name}")

    def _copy_range(self, piece: PieceEntry, within: Range, out: Tensor) -> None:
        """Copy what a piece holds of a range of its box, `out`. Blocks that lie in it are read to where they
        belong."""
        lo, hi = max(piece.range[0], within[0]), min(piece.range[1], within[1])
        if lo >= hi:
            return
        start, file = self._span(piece).start, self._files[piece.file]
        begin, end = (start + (number - piece.range[0]) * out.itemsize for number in (lo, hi))
        memory = out[lo - within[0] : hi - within[0]].view(torch.uint8)
        for index in range(begin // fmt.BLOCK, -(-end // fmt.BLOCK)):
            first = index * fmt.BLOCK
            last = min(first + fmt.BLOCK, file.size)
            if begin <= first and last <= end:
                file.block(index, memory[first - begin : last - begin])
            else:
                inside = slice(max(begin - first, 0), min(end, last) - first)
                memory[max(first - begin, 0) : last - begin].copy_(self._block(piece.file, index)[inside])

    def _copy(self, piece: PieceEntry, targets: Sequence[ContiguousBox], out: Tensor, first: int) -> None:
        """Copy what a piece holds of the targets to where it belongs in `out`, block by block.

        out: (n,) elements of the box asked for, of which `out[0]` is number `first`.
        """
        itemsize, lo = out.itemsize, piece.range[0]
        span = self._span(piece)
        for index in range(span.start // fmt.BLOCK, -(-span.stop // fmt.BLOCK)):
            begin = max(span.start, index * fmt.BLOCK)
            end = min(span.stop, (index + 1) * fmt.BLOCK)
            start = lo + (begin - span.start) // itemsize
            sources = list(runs(piece.box, (start, start + (end - begin) // itemsize)))
            pairs = [
                (source, target, both)
                for source in sources
                for target in targets
                if (both := intersect(source.box, target.box)) is not None
            ]
            if pairs:
                inside = slice(begin - index * fmt.BLOCK, end - index * fmt.BLOCK)
                data = self._block(piece.file, index)[inside].view(out.dtype)
                for source, target, both in pairs:
                    target.view(out, first, both).copy_(source.view(data, start, both))

    def _block(self, file: int, index: int) -> Tensor:
        """A verified block of a file, as bytes."""
        recent = self._recent[file] = self._recent.pop(file, {})
        block = recent.pop(index, None)
        if block is None:
            block = self._files[file].block(index, self._make_room(file))
            self._kept += block.nbytes
        self._recent.setdefault(file, recent)[index] = block
        return block

    def _make_room(self, file: int) -> Tensor | None:
        """Drops blocks until one more of a file may be kept, its own first; returns the memory of one of
        them, if any."""
        old = self._drop(file) if len(self._recent[file]) >= _KEPT_BLOCKS else None
        while self._kept and self._kept + fmt.BLOCK > KEPT_BYTES:
            has_one = self._recent.get(file)
            old = self._drop(file if has_one else next(each for each in self._recent if self._recent[each]))
        return old

    def _drop(self, file: int) -> Tensor:
        """Drops the block of a file that was not used for the longest time."""
        blocks = self._recent[file]
        block = blocks.pop(next(iter(blocks)))
        self._kept -= block.nbytes
        if not blocks:
            del self._recent[file]
        return block

    def _bytes(self, file: int, lo: int, hi: int) -> bytes:
        """Verified bytes [lo, hi) of a file."""
        indices = range(lo // fmt.BLOCK, -(-hi // fmt.BLOCK))
        start = lo - indices.start * fmt.BLOCK
        found = b"".join(self._block(file, index).numpy().tobytes() for index in indices)
        return found[start : start + hi - lo]

    def _span(self, piece: PieceEntry) -> TensorSpan:
        """Where in its file a piece lies. Raises Damaged if it is not there."""
        file = self._files[piece.file]
        if piece.file not in self._headers:
            try:
                header = decode_header(file.size, lambda lo, hi: self._bytes(piece.file, lo, hi))
            except ValueError as error:
                raise fmt.Damaged(f"{file.path}: {error}") from error
            self._headers[piece.file] = header
        span = self._headers[piece.file].get(piece.key)
        size = (piece.range[1] - piece.range[0]) * fmt.DTYPES[piece.tensor.dtype].itemsize
        if span is None or span.dtype != piece.tensor.dtype or span.stop - span.start != size:
            raise fmt.Damaged(f"{file.path}: {piece.key} is not the tensor that the index lists")
        return span
