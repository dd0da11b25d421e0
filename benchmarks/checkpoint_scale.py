"""What a checkpoint of many ranks costs rank 0 as it is committed, and each rank as it is loaded.

Every rank holds a slice of every tensor, as under ZeRO-3. The ranks' files are sparse, without data: only
their names and sizes count here. Usage: checkpoint_scale.py [RANKS [TENSORS]]
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from llmkit.checkpoint import commit, index, index_file, read
from llmkit.checkpoint.files import StoredFile
from llmkit.checkpoint.format import BLOCK, INDEX
from llmkit.checkpoint.pieces import ContiguousBox
from llmkit.checkpoint.stage import Snapshot
from llmkit.checkpoint.writer import Writer

KINDS = ("master", "exp_avg", "exp_avg_sq")
SHAPE = (4096, 4096)
_Result = TypeVar("_Result")


def part(rank: int, ranks: int, tensors: int, folder: Path) -> index.Index:
    """What one rank has written: a slice of every tensor."""
    elements = SHAPE[0] * SHAPE[1]
    within = (elements * rank // ranks, elements * (rank + 1) // ranks)
    entries = [
        index.PieceEntry(
            index.TensorEntry(kind, f"blocks.{number}.mlp.down_proj.weight", SHAPE, "F32"),
            ((0, SHAPE[0]), (0, SHAPE[1])),
            within,
        )
        for kind in KINDS
        for number in range(tensors)
    ]
    size = 4 * len(entries) * (within[1] - within[0])
    file = StoredFile(
        f"pieces-{rank:05d}-00000.safetensors", size, np.arange(-(-size // BLOCK), dtype=np.uint64)
    )
    with (folder / file.name).open("wb") as sparse:
        sparse.truncate(size)
    return index.build_index(entries, [file])


def timed(what: str, work: Callable[[], _Result]) -> _Result:
    """The result of some work; prints how long it took."""
    began = time.perf_counter()
    result = work()
    print(f"{what:44s} {time.perf_counter() - began:7.3f} s", flush=True)
    return result


def main(ranks: int = 512, tensors: int = 300) -> None:
    """Prints a line a step."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory() as root:
        writer = Writer(Path(root) / "step-00000001")
        writer.folder.mkdir()
        parts = [index_file.encode(part(rank, ranks, tensors, writer.folder)) for rank in range(1, ranks)]
        first = timed(
            "each rank: its index", lambda: index_file.encode(part(0, ranks, tensors, writer.folder))
        )
        print(f"gathered on rank 0: {sum(map(len, parts)) / 1e6:.1f} MB")
        snapshot = Snapshot(1, [], state={}, model={}, config={}, extra_files={})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        timed(
            "rank 0: merge, check, write, read back", lambda: commit.finish(writer, [first, *parts], snapshot)
        )
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"rank 0: memory above what was there before    {(after - before) / 1024:7.1f} MB")
        writer.folder.rename(writer.final)
        checkpoint = timed("each rank: load", lambda: read.load(writer.final))
        found = index_file.decode((checkpoint.path / INDEX).read_bytes())
        elements = SHAPE[0] * SHAPE[1]
        box = ((0, SHAPE[0]), (0, SHAPE[1]))

        def look_up(within: tuple[int, int]) -> int:
            rows = ContiguousBox(0, ((within[0] // SHAPE[1], -(-within[1] // SHAPE[1])), box[1]))
            return sum(len(found.holding(number, [rows])) for number in range(len(found.tensors)))

        timed("each rank: find the pieces of its own slices", lambda: look_up((0, elements // ranks)))
        timed("one of 8 ranks: the same", lambda: look_up((0, elements // 8)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
