"""The index of a checkpoint: which piece of which tensor lies in which file.

Hundreds of ranks give hundreds of pieces each, so the index is a few integer arrays, which are merged,
checked and searched as a whole:

    boxes   (boxes, 1 + 2 * dimensions): tensor; first and end index in each dimension, 0 beyond its own
    pieces  (pieces, 4): box, file, first and end element of the box; ordered by box and first element

Tensors, files and boxes are referred to by their number. `index_file.py` stores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.checkpoint.files import StoredFile
from llmkit.checkpoint.pieces import ContiguousBox, intersect
from llmkit.parallel.slices import Box, Range, Shape, box_shape

Array = NDArray[np.int64]
BOX, FILE, LO, HI = range(4)
"""Columns of `Index.pieces`."""


class TensorEntry(NamedTuple):
    """A full tensor of which something is stored. dtype: as safetensors names it."""

    kind: str
    name: str
    shape: Shape
    dtype: str


class PieceEntry(NamedTuple):
    """Where a piece (see `pieces.Piece`) belongs, and the number of the file that holds it."""

    tensor: TensorEntry
    box: Box
    range: Range
    file: int = 0

    @property
    def key(self) -> str:
        """The name of the piece in its safetensors file."""
        kind, name, shape, _ = self.tensor
        lo, hi = self.range
        if hi - lo == prod(shape):
            return f"{kind}/{name}"
        return f"{kind}/{name}/{','.join(f'{lo}:{hi}' for lo, hi in (*self.box, self.range))}"


@dataclass(frozen=True, eq=False)
class Index:
    """See the top of this file. Made by `build_index`, `merge` or `index_file.decode`."""

    tensors: tuple[TensorEntry, ...]
    files: tuple[StoredFile, ...]
    boxes: Array
    pieces: Array

    @cached_property
    def box_sizes(self) -> Array:
        """(boxes,) elements of each box."""
        sides = self.boxes[:, 2::2] - self.boxes[:, 1::2]
        dimensions = np.array([len(tensor.shape) for tensor in self.tensors], np.int64)
        beyond = np.arange(sides.shape[1]) >= dimensions[self.boxes[:, 0], None]
        return np.where(beyond, 1, sides).prod(axis=1, dtype=np.int64)

    @cached_property
    def box_starts(self) -> Array:
        """(tensors + 1,) the first box of each tensor."""
        return np.searchsorted(self.boxes[:, 0], np.arange(len(self.tensors) + 1))

    @cached_property
    def piece_starts(self) -> Array:
        """(boxes + 1,) the first piece of each box."""
        return np.searchsorted(self.pieces[:, BOX], np.arange(len(self.boxes) + 1))

    @cached_property
    def numbers(self) -> dict[tuple[str, str], int]:
        """(kind, name) -> number of the tensor."""
        return {(tensor.kind, tensor.name): number for number, tensor in enumerate(self.tensors)}

    def box(self, number: int) -> Box:
        """A row of `boxes` as a box."""
        tensor, *ends = self.boxes[number].tolist()
        pairs = zip(ends[::2], ends[1::2], strict=True)
        return tuple(pair for pair, _ in zip(pairs, self.tensors[tensor].shape, strict=False))

    def entry(self, number: int) -> PieceEntry:
        """A row of `pieces`."""
        box, file, lo, hi = self.pieces[number].tolist()
        return PieceEntry(self.tensors[self.boxes[box, 0]], self.box(box), (lo, hi), file)

    def in_file(self, file: int) -> list[PieceEntry]:
        """The pieces in a file."""
        order, starts = self._by_file
        return [self.entry(number) for number in order[starts[file] : starts[file + 1]]]

    def holding(self, tensor: int, targets: Sequence[ContiguousBox]) -> list[PieceEntry]:
        """The pieces that may hold something of one of the targets, boxes inside the tensor."""
        found: list[PieceEntry] = []
        for number in range(self.box_starts[tensor], self.box_starts[tensor + 1]):
            box, rows = self.box(number), slice(*self.piece_starts[number : number + 2])
            lo, hi = self.pieces[rows, LO], self.pieces[rows, HI]
            near = np.zeros(len(lo), bool)
            for target in targets:
                if (shared := intersect(box, target.box)) is not None:
                    near |= (lo <= _flat_index(box, [end - 1 for _, end in shared])) & (
                        hi > _flat_index(box, [first for first, _ in shared])
                    )
            found += [self.entry(rows.start + int(row)) for row in np.flatnonzero(near)]
        return found

    @cached_property
    def _by_file(self) -> tuple[Array, Array]:
        """The pieces ordered by file; the first of each file in this order."""
        order = np.argsort(self.pieces[:, FILE], kind="stable")
        return order, np.searchsorted(self.pieces[order, FILE], np.arange(len(self.files) + 1))


def build_index(entries: Iterable[PieceEntry], files: Sequence[StoredFile] = ()) -> Index:
    """The index of these pieces. Raises ValueError if pieces of one tensor differ in shape or dtype."""
    tensors: dict[TensorEntry, int] = {}
    boxes: dict[tuple[int, Box], int] = {}
    rows: list[tuple[int, int, int, int]] = []
    for tensor, box, (lo, hi), file in entries:
        number = tensors.setdefault(tensor, len(tensors))
        rows.append((boxes.setdefault((number, box), len(boxes)), file, lo, hi))
    dimensions = max((len(tensor.shape) for tensor in tensors), default=0)
    box_rows = np.zeros((len(boxes), 1 + 2 * dimensions), np.int64)
    for row, (number, box) in enumerate(boxes):
        flat = [number, *(end for pair in box for end in pair)]
        box_rows[row, : len(flat)] = flat
    pieces = np.array(rows, np.int64).reshape(-1, 4)
    return _ordered(tuple(tensors), tuple(files), box_rows, pieces)


def merge(parts: Sequence[Index]) -> Index:
    """One index of what several ranks have written.

    Raises ValueError if pieces of one tensor differ in shape or dtype.
    """
    tensors: dict[TensorEntry, int] = {}
    numbers: dict[int, Array] = {}  # most ranks give the same tensors
    for part in parts:
        if id(part.tensors) not in numbers:
            found = [tensors.setdefault(tensor, len(tensors)) for tensor in part.tensors]
            numbers[id(part.tensors)] = np.array(found, np.int64)
    columns = 1 + 2 * max((len(tensor.shape) for tensor in tensors), default=0)
    boxes: list[Array] = []
    pieces: list[Array] = []
    files: list[StoredFile] = []
    first_box = 0
    for part in parts:
        rows = np.zeros((len(part.boxes), columns), np.int64)
        rows[:, 1 : part.boxes.shape[1]] = part.boxes[:, 1:]
        rows[:, 0] = numbers[id(part.tensors)][part.boxes[:, 0]]
        boxes.append(rows)
        pieces.append(part.pieces + np.array([first_box, len(files), 0, 0]))
        files += part.files
        first_box += len(rows)
    no_boxes, no_pieces = np.zeros((0, columns), np.int64), np.zeros((0, 4), np.int64)
    return _ordered(
        tuple(tensors), tuple(files), np.concatenate([no_boxes, *boxes]), np.concatenate([no_pieces, *pieces])
    )


def _ordered(
    tensors: tuple[TensorEntry, ...], files: tuple[StoredFile, ...], boxes: Array, pieces: Array
) -> Index:
    """The index with each box once, ordered as it must be."""
    if len({(tensor.kind, tensor.name) for tensor in tensors}) < len(tensors):
        seen: set[tuple[str, str]] = set()
        for kind, name, *_ in tensors:
            if (kind, name) in seen:
                raise ValueError(f"pieces of {kind} {name} differ in shape or dtype")
            seen.add((kind, name))
    order = np.lexsort(boxes.T[::-1])  # by the first column first
    ordered = boxes[order]
    new = np.ones(len(boxes), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(boxes), np.int64)
    numbers[order] = np.cumsum(new) - 1
    pieces = pieces.copy()
    pieces[:, BOX] = numbers[pieces[:, BOX]]
    pieces = pieces[np.lexsort((pieces[:, FILE], pieces[:, HI], pieces[:, LO], pieces[:, BOX]))]
    return Index(tensors, files, ordered[new], pieces)


def _flat_index(box: Box, indices: Sequence[int]) -> int:
    """The number of an element of the box, counted row by row, by its indices in the tensor."""
    flat = 0
    for (lo, _), size, index in zip(box, box_shape(box), indices, strict=True):
        flat = flat * size + index - lo
    return flat
