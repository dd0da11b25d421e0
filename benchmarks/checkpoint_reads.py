"""How often a resume reads each byte of a checkpoint: by every rank, and by every node.

The ranks of the run that saved, and those of the run that goes on, are simulated one after the other in one
process, with real files and the package's own writer and reader. Usage:
checkpoint_reads.py [WIDTH [LAYERS]]
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llmkit.checkpoint import commit, format, index_file, read
from llmkit.checkpoint.files import BlockFile, OpenFiles
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.stage import Snapshot
from llmkit.checkpoint.writer import Writer
from llmkit.parallel.slices import Box, Range, Shape, box_size, full_box

KINDS = ("master", "exp_avg", "exp_avg_sq")
PER_NODE = 8
Model = dict[str, tuple[Shape, int | None]]
"""Name -> shape, and the dimension along which tensor parallelism cuts it, if it does."""
Part = tuple[str, Shape, Box, Range]


@dataclass(frozen=True)
class Ranks:
    """ZeRO-3 over `data` ranks, each of which is `tensor` ranks."""

    data: int
    tensor: int

    @property
    def count(self) -> int:
        """All ranks."""
        return self.data * self.tensor

    def held_by(self, rank: int, model: Model, writes: bool = False) -> Iterator[Part]:
        """What a rank holds of each tensor: a flat slice of its box. writes: only what it alone writes."""
        data, tensor = divmod(rank, self.tensor)
        for name, (shape, dimension) in model.items():
            box = full_box(shape)
            if dimension is not None:
                side = tuple(shape[dimension] * index // self.tensor for index in (tensor, tensor + 1))
                box = tuple(side if d == dimension else whole for d, whole in enumerate(box))
            elif writes and tensor > 0:
                continue
            size = box_size(box)
            lo, hi = size * data // self.data, size * (data + 1) // self.data
            if lo < hi:
                yield name, shape, box, (lo, hi)

    def __str__(self) -> str:
        return f"{self.count} (ZeRO-3 x TP{self.tensor})"


def gpt(width: int, layers: int) -> Model:
    """The tensors of a GPT with SwiGLU, and 32 * width tokens."""
    model: Model = {"embedding": ((32 * width, width), 0)}
    for layer in range(layers):
        model[f"blocks.{layer}.norm"] = ((width,), None)
        for each in "qkv":
            model[f"blocks.{layer}.{each}"] = ((width, width), 0)
        model[f"blocks.{layer}.o"] = ((width, width), 1)
        model[f"blocks.{layer}.mlp_norm"] = ((width,), None)
        model[f"blocks.{layer}.gate"] = ((8 * width // 3, width), 0)
        model[f"blocks.{layer}.up"] = ((8 * width // 3, width), 0)
        model[f"blocks.{layer}.down"] = ((width, 8 * width // 3), 1)
    return model


def save(folder: Path, model: Model, ranks: Ranks) -> None:
    """The checkpoint that these ranks write."""
    parts = []
    Writer(folder).folder.mkdir()
    for rank in range(ranks.count):
        writer = Writer(folder, rank)
        writer.write_pieces(
            Piece(name, kind, shape, box, part, torch.zeros(part[1] - part[0]))
            for name, shape, box, part in ranks.held_by(rank, model, writes=True)
            for kind in KINDS
        )
        parts.append(index_file.encode(writer.index()))
    first = Writer(folder)
    commit.finish(first, parts, Snapshot(1, [], {}, {}, {}, {}))
    first.folder.rename(folder)


@dataclass(frozen=True)
class Reads:
    """Bytes. needed: of all ranks' regions. by_ranks: that all ranks read together, in blocks, with the share
    that each verifies. by_nodes: those that a node reads for the first time, so that its page cache does not
    hold them. most: of one rank."""

    needed: int
    by_ranks: int
    by_nodes: int
    most: int


def resume(folder: Path, model: Model, ranks: Ranks, kinds: Sequence[str] = KINDS) -> Reads:
    """What is read where these ranks verify the checkpoint and go on from it."""
    fill, read_blocks = BlockFile.fill, Counter[tuple[str, int]]()

    def counted(file: BlockFile, index: int, buffer: memoryview) -> None:
        read_blocks[file.path.name, index] += 1
        sizes[file.path.name, index] = min(format.BLOCK, file.size - index * format.BLOCK)
        fill(file, index, buffer)

    needed = by_ranks = by_nodes = most = 0
    sizes: dict[tuple[str, int], int] = {}
    on_node: set[tuple[str, int]] = set()
    for rank in range(ranks.count):
        read_blocks.clear()
        if rank % PER_NODE == 0:
            by_nodes, on_node = by_nodes + sum(sizes[block] for block in on_node), set()
        checkpoint = read.load(folder, OpenFiles())
        with patch.object(BlockFile, "fill", counted):
            assert list(checkpoint.problems(rank, ranks.count)) == []
            for name, _, box, part in ranks.held_by(rank, model):
                for kind in kinds:
                    needed += checkpoint.read(name, kind, box, part).nbytes
        mine = sum(sizes[block] * times for block, times in read_blocks.items())
        by_ranks, most = by_ranks + mine, max(most, mine)
        on_node |= set(read_blocks)
    return Reads(needed, by_ranks, by_nodes + sum(sizes[block] for block in on_node), most)


PAIRS = (
    (Ranks(4, 2), Ranks(4, 2), KINDS),
    (Ranks(4, 2), Ranks(8, 1), KINDS),
    (Ranks(4, 2), Ranks(2, 4), KINDS),
    (Ranks(4, 2), Ranks(32, 2), KINDS),
    (Ranks(32, 2), Ranks(32, 2), KINDS),
    (Ranks(32, 2), Ranks(4, 2), KINDS),
    (Ranks(32, 2), Ranks(1, 1), KINDS),
    (Ranks(32, 2), Ranks(1, 1), KINDS[:1]),
)
"""Who wrote, who reads, and what."""


def main(width: int = 512, layers: int = 8) -> None:
    """Prints a line for each pair of layouts."""
    model = gpt(width, layers)
    print("MB: written by     | read by            | kinds |   needed | by ranks | by nodes | by one at most")
    with tempfile.TemporaryDirectory() as root:
        for writers, readers, kinds in PAIRS:
            folder = Path(root, f"of-{writers.data}-{writers.tensor}")
            if not folder.exists():
                save(folder, model, writers)
            reads = resume(folder, model, readers, kinds)
            sizes = (reads.needed, reads.by_ranks, reads.by_nodes, reads.most)
            shown = " | ".join(f"{size / 1e6:8.1f}" for size in sizes)
            print(f"{writers!s:18} | {readers!s:18} | {len(kinds):5d} | {shown}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
