"""A checkpoint as another layout would have saved it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import Checkpoint, load
from llmkit.checkpoint.write import save
from llmkit.parallel.slices import Box, box_size, full_box


def recut(folder: Path, root: Path) -> Path:
    """Saves a checkpoint in `root` as TP 2 x ZeRO over 3 ranks would cut it; returns its folder."""
    checkpoint = load(folder)
    root.mkdir(parents=True, exist_ok=True)
    manifest = checkpoint.manifest
    extra = {entry.name: checkpoint.extra_file(entry.name) for entry in manifest.files}
    return save(
        root, checkpoint.step, list(_pieces(checkpoint)), state=manifest.state, model=manifest.model,
        config=manifest.config, extra_files=extra, keep_last=9,
    )  # fmt: skip


def _pieces(checkpoint: Checkpoint) -> Iterator[Piece]:
    for kind in checkpoint.kinds():
        for name in checkpoint.names(kind):
            shape = checkpoint.shape(name, kind)
            for box in _halves(full_box(shape)):
                size = box_size(box)
                for lo, hi in ((0, size // 3), (size // 3, size - 1), (size - 1, size)):
                    if lo < hi:
                        data = checkpoint.read(name, kind, box, (lo, hi))
                        yield Piece(name, kind, shape, box, (lo, hi), data)


def _halves(box: Box) -> list[Box]:
    if not box or box[-1][1] < 2:
        return [box]
    *others, (lo, hi) = box
    return [(*others, (lo, hi // 2)), (*others, (hi // 2, hi))]
