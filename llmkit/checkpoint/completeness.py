"""Checks that the saved pieces cover every tensor exactly once."""

from __future__ import annotations

import numpy as np

from llmkit.checkpoint.index import BOX, HI, LO, Array, Index
from llmkit.checkpoint.pieces import intersect, subtract
from llmkit.parallel.slices import Box, full_box


def check_complete(index: Index) -> None:
    """Raise ValueError unless the pieces of each tensor hold all of it, and nothing of it twice.

    The ranges of each box must cover that box, and the boxes must cover the tensor. (Ranges of overlapping
    boxes could cover it, too, but no layout shards a tensor like that.)
    """
    _check_ranges(index)
    boxes = index.boxes
    lo, hi = boxes[:, 1::2], boxes[:, 2::2]
    for number, (kind, name, shape, _) in enumerate(index.tensors):
        rows = slice(*index.box_starts[number : number + 2])
        found = [index.box(row) for row in range(rows.start, rows.stop)]
        if found == [full_box(shape)]:
            continue
        if pair := _meeting(lo[rows, : len(shape)], hi[rows, : len(shape)]):
            shared = intersect(found[pair[0]], found[pair[1]])
            assert shared is not None
            raise ValueError(f"{kind} {name}: [{_text(shared)}] is given twice")
        missing = [full_box(shape)]
        for box in found:
            missing = [rest for part in missing for rest in subtract(part, box)]
        if missing:
            raise ValueError(f"{kind} {name}: [{_text(missing[0])}] is missing")


def _check_ranges(index: Index) -> None:
    """The ranges of a box must follow each other from its first to its last element."""
    pieces = index.pieces
    first = np.diff(pieces[:, BOX], prepend=-1) > 0
    last = np.roll(first, -1)
    reached = np.where(first, 0, np.roll(pieces[:, HI], 1))
    for row in np.flatnonzero(pieces[:, LO] != reached)[:1]:
        _raise(index, pieces[row, BOX], reached[row], pieces[row, LO])
    for row in np.flatnonzero(last & (pieces[:, HI] != index.box_sizes[pieces[:, BOX]]))[:1]:
        _raise(index, pieces[row, BOX], pieces[row, HI], index.box_sizes[pieces[row, BOX]])
    for box in np.flatnonzero(np.diff(index.piece_starts) == 0)[:1]:
        _raise(index, box, 0, index.box_sizes[box])


def _raise(index: Index, box: int, reached: int, found: int) -> None:
    """Raise for a box whose elements are held up to `reached`, where the next piece starts at `found`."""
    tensor = index.tensors[index.boxes[box, 0]]
    region = f"[{_text(index.box(box))}]"
    if found > reached:
        raise ValueError(
            f"{tensor.kind} {tensor.name}: elements {reached} to {found} of {region} are missing"
        )
    raise ValueError(f"{tensor.kind} {tensor.name}: element {found} of {region} is given twice")


def _meeting(lo: Array, hi: Array) -> tuple[int, int] | None:
    """Two boxes that share elements; lo, hi: (boxes, dimensions)."""
    first, end = np.maximum(lo[:, None], lo[None]), np.minimum(hi[:, None], hi[None])
    for a, b in np.argwhere(np.triu((first < end).all(axis=2), k=1)):
        return int(a), int(b)
    return None


def _text(box: Box) -> str:
    return ", ".join(f"{lo}:{hi}" for lo, hi in box)
