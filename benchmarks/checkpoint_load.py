"""Measures how long a resume takes to load its state, beside torch.distributed.checkpoint (DCP).

Several processes hold an equal share of fp32 masters and moments each, as under ZeRO-3. Both formats load
the same bytes into memory that is there already: llmkit finds the newest checkpoint, verifies all of it
together and fills the shares; DCP, which verifies nothing, fills DTensors. They take turns, first with the
files in the page cache, then without. Usage: checkpoint_load.py [MB [RANKS [TURNS]]]
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from llmkit.checkpoint import read, write
from llmkit.engine.state_shards import StateShard, load_shards, to_pieces
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.parallel.slices import ParameterSlice

KINDS = ("master", "exp_avg", "exp_avg_sq")
WIDTH = 1024
MATRICES = 24
Figures = dict[str, float]


class Ours:
    """This rank's share, as an engine keeps it."""

    def __init__(self, rows: int, mesh: Mesh, folder: Path) -> None:
        self.mesh, self.folder = mesh, folder / "checkpoints"
        shape = (rows, WIDTH)
        whole = ((0, rows), (0, WIDTH))
        self.parts = {name: [ParameterSlice(name, shape, whole, 0, rows)] for name in names()}
        lo, hi = (rows * WIDTH * (mesh.rank + index) // mesh.world_size for index in (0, 1))
        self.shards = [
            StateShard(name, kind, torch.rand(hi - lo), lo) for name in self.parts for kind in KINDS
        ]

    def save(self) -> None:
        """Writes the checkpoint. Collective."""
        pieces = list(to_pieces(self.shards, self.parts))
        fields: dict[str, Any] = {"state": {}, "model": {}, "config": {}, "extra_files": {}}
        write.save(self.folder, 1, pieces, **fields, keep_last=1, mesh=self.mesh)

    def load(self) -> None:
        """Finds and verifies it, and fills the share. Collective."""
        checkpoint = read.newest(self.folder, lambda line: None, self.mesh)
        assert checkpoint is not None
        load_shards(self.shards, self.parts, checkpoint)


class Theirs:
    """The same share as DTensors."""

    def __init__(self, rows: int, folder: Path) -> None:
        self.folder = folder / "dcp"
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        mine = len(torch.empty(rows, 1, device="meta").chunk(mesh.size())[mesh.get_rank()])
        self.state = {
            f"{kind}/{name}": DTensor.from_local(
                torch.rand(mine, WIDTH), mesh, [Shard(0)], shape=torch.Size((rows, WIDTH)), stride=(WIDTH, 1)
            )
            for name in names()
            for kind in KINDS
        }

    def save(self) -> None:
        """Writes the checkpoint. Collective."""
        dcp.save(self.state, checkpoint_id=self.folder)

    def load(self) -> None:
        """Fills the share. Collective."""
        dcp.load(self.state, checkpoint_id=self.folder)


def names() -> list[str]:
    """Of the tensors."""
    return [f"blocks.{number}.mlp.weight" for number in range(MATRICES)]


def drop_cache(folder: Path) -> None:
    """Takes the files below a folder out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def timed(work: Callable[[], None]) -> list[float]:
    """Seconds of the slowest rank, and seconds of processor time of all ranks together. Collective."""
    dist.barrier()
    wall, busy = time.perf_counter(), time.process_time()
    work()
    spent = torch.tensor([time.perf_counter() - wall, time.process_time() - busy])
    slowest = spent.clone()
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    dist.all_reduce(spent)
    return [float(slowest[0]), float(spent[1])]


def rank_main(rank: int, ranks: int, folder: Path, megabytes: int, turns: int) -> dict[str, Figures]:
    """What one process does; the medians by contender."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    rows = round(megabytes * 1e6 / 4 / len(KINDS) / MATRICES / WIDTH)
    contenders = {"llmkit": Ours(rows, make_mesh(1), folder), "DCP": Theirs(rows, folder)}
    found: dict[str, Figures] = {name: {} for name in contenders}
    for each in contenders.values():
        each.save()
    for cached in (True, False):
        seen: dict[str, list[list[float]]] = {name: [] for name in contenders}
        for _ in range(turns):
            for name, each in contenders.items():
                if rank == 0 and not cached:
                    drop_cache(folder)
                seen[name].append(timed(each.load))
        for name, turn in seen.items():
            where = "cached" if cached else "from disk"
            found[name][f"{where}: seconds"] = statistics.median(wall for wall, _ in turn)
            found[name][f"{where}: seconds of processors"] = statistics.median(busy for _, busy in turn)
    dist.destroy_process_group()
    return found


def measure(megabytes: int, ranks: int, turns: int, folder: Path) -> dict[str, Figures]:
    """The medians of all turns, by contender; forks the ranks."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                found = rank_main(rank, ranks, folder, megabytes, turns)
                if rank == 0:
                    (folder / "found.json").write_text(json.dumps(found))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes
    return json.loads((folder / "found.json").read_text())  # type: ignore[no-any-return]


def main(megabytes: int = 1000, ranks: int = 8, turns: int = 5) -> None:
    """Prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(megabytes, ranks, turns, Path(folder))
    print(f"{megabytes} MB, {ranks} ranks, medians of {turns}")
    for what in found["DCP"]:
        print(f"{what:34s}" + "".join(f"{name} {found[name][what]:7.2f}  " for name in found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
