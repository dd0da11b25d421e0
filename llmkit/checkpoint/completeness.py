"""Whether pieces that many processes wrote are together whole tensors, each element once."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from llmkit.checkpoint.format import PieceEntry
from llmkit.checkpoint.pieces import intersect, subtract
from llmkit.parallel.slices import Box, Range, box_size, full_box

_Cuts = dict[Box, list[Range]]


def check_complete(pieces: Iterable[PieceEntry]) -> None:
    """Raise ValueError unless the pieces of each tensor hold all of it, and nothing of it twice.

    The pieces of one box must be the whole box, and the boxes the tensor. (Pieces that meet across two
    boxes in another way could be whole, too, but no layout cuts tensors like that.)
    """
    tensors: dict[tuple[str, str], tuple[Box, _Cuts]] = {}
    for piece in pieces:
        _, boxes = tensors.setdefault((piece.kind, piece.name), (full_box(piece.shape), {}))
        boxes.setdefault(piece.box, []).append(piece.range)
    for (kind, name), (everything, boxes) in tensors.items():
        try:
            for box, ranges in boxes.items():
                _check_ranges(box, ranges)
            _check_boxes(everything, list(boxes))
        except ValueError as error:
            raise ValueError(f"{kind} {name}: {error}") from None


def _check_ranges(box: Box, ranges: list[Range]) -> None:
    """The ranges, put in order, must follow each other from the first to the last element of the box."""
    end = box_size(box)
    reached = 0
    for lo, hi in [*sorted(ranges), (end, end)]:
        if lo > reached:
            raise ValueError(f"elements {reached} to {lo} of [{_text(box)}] are missing")
        if lo < reached:
            raise ValueError(f"element {lo} of [{_text(box)}] is given twice")
        reached = hi


def _check_boxes(everything: Box, boxes: list[Box]) -> None:
    """The boxes must be all of the tensor, and no two may meet."""
    for a, b in combinations(boxes, 2):
        if shared := intersect(a, b):
            raise ValueError(f"[{_text(shared)}] is given twice")
    if sum(map(box_size, boxes)) == box_size(everything):
        return
    missing = [everything]
    for box in boxes:
        missing = [rest for part in missing for rest in subtract(part, box)]
    raise ValueError(f"[{_text(missing[0])}] is missing")


def _text(box: Box) -> str:
    return ", ".join(f"{lo}:{hi}" for lo, hi in box)
