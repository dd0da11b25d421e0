"""What a save and a restart of many ranks cost one of them, rank 0 above all.

All ranks are simulated in one process, one after the other, by the package's own functions: files, pieces,
index and manifest are what that many ranks write (ZeRO-3 x TP2), but the tensors are small. What ranks send
each other is handed over in memory. Usage: checkpoint_scale.py [RANKS,RANKS,... [TENSORS]]
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.checkpoint_reads import KINDS, Model, Ranks
from llmkit.checkpoint import commit, index_file, read, write
from llmkit.checkpoint.keeping import Keep
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.stage import Snapshot
from llmkit.parallel.mesh import Mesh

OPEN_FILES = 256
"""What each process may have open, as by `ulimit -n`."""


@dataclass(frozen=True)
class Simulated(Mesh):
    """A rank among others that do not exist. gathered: what they give to rank 0. sent: what it sends them."""

    gathered: tuple[bytes, ...] = ()
    sent: str = ""

    def gather_bytes(self, content: bytes) -> list[bytes]:
        """What all ranks give."""
        return [content, *self.gathered]

    def broadcast_text(self, text: str) -> str:
        """What rank 0 has."""
        return text if self.rank == 0 else self.sent


class Cost(NamedTuple):
    """Of some work: seconds of the processor, growth of the peak of memory in MB, files open at its end."""

    seconds: float
    megabytes: float
    files: int


def cost(work: Callable[[], object]) -> Cost:
    """Does it in a process of its own, which may open few files, and which shares the disk alone."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
            memory, began = _peak(), time.process_time()
            kept = work()
            found = Cost(time.process_time() - began, _peak() - memory, len(os.listdir("/proc/self/fd")))
            del kept
            os.write(writer, json.dumps(found).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return Cost(*json.loads(answer))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def model_of(ranks: int, tensors: int) -> Model:
    """Of which each rank holds a little of every tensor; each eighth is not cut by tensor parallelism."""
    return {
        f"blocks.{n}.weight": ((ranks,), None) if n % 8 == 0 else ((2 * ranks, 8), 0) for n in range(tensors)
    }


def value(kind: str, name: str) -> float:
    """Each element of a tensor, as the simulated run holds it."""
    return KINDS.index(kind) + float(name.split(".")[1])


def pieces(rank: int, ranks: Ranks, model: Model) -> list[Piece]:
    """What a rank writes."""
    return [
        Piece(name, kind, shape, box, part, torch.full((part[1] - part[0],), value(kind, name)))
        for name, shape, box, part in ranks.held_by(rank, model, writes=True)
        for kind in KINDS
    ]


def restart(root: Path, rank: int, ranks: Ranks, model: Model) -> read.Checkpoint:
    """A rank finds the newest checkpoint, verifies its share of it, and reads what it holds."""
    listing = json.dumps([folder.name for folder in read.folders(root)])
    checkpoint = read.newest(root, print, Simulated(rank, ranks.count, sent=listing))
    assert checkpoint is not None
    for name, _, box, part in ranks.held_by(rank, model):
        for kind in KINDS:
            out = torch.empty(part[1] - part[0])
            checkpoint.read_into(out, name, kind, box, part)
            assert bool(out.eq(value(kind, name)).all()), (rank, kind, name)
    return checkpoint


def simulate(count: int, tensors: int, root: Path) -> dict[str, Cost]:
    """What is done -> its cost, for `count` ranks with state of so many tensors.

    Step 2 is saved and read, and step 1 deleted.
    """
    ranks, model = Ranks(count // 2, 2), model_of(count, tensors)
    snapshots = [Snapshot(2, pieces(rank, ranks, model), {}, {}, {}, {}) for rank in range(count)]
    first = write.write(root, snapshots[0], Simulated(0, count))
    encoded = []
    for rank in range(1, count):
        writer = write.write(root, snapshots[rank], Simulated(rank, count))
        encoded.append(index_file.encode(writer.index()))
    older = root / "step-00000001"
    older.mkdir()
    for path in first.folder.iterdir():
        os.link(path, older / path.name)
    mesh = Simulated(0, count, gathered=tuple(encoded))
    found = {
        "rank 0 commits, deletes the last one": cost(
            partial(commit.commit, first, snapshots[0], Keep(1), mesh, print)
        )
    }
    assert [path.name for path in root.iterdir()] == ["step-00000002"]
    for name, rank, others in (
        ("rank 0 starts again", 0, ranks),
        ("the last rank starts again", count - 1, ranks),
        ("rank 0 of 8 goes on from it", 0, Ranks(4, 2)),
    ):
        found[name] = cost(partial(restart, root, rank, others, model))
    return found


def main(counts: str = "8,64,512", tensors: int = 300) -> None:
    """Prints a line for each number of ranks and each step."""
    print("ranks | what                                 | seconds |   MB above | open files")
    for count in map(int, counts.split(",")):
        with tempfile.TemporaryDirectory() as root:
            for what, spent in simulate(count, tensors, Path(root)).items():
                figures = f"{spent.seconds:7.2f} | {spent.megabytes:10.1f} | {spent.files:10d}"
                print(f"{count:5d} | {what:36s} | {figures}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
