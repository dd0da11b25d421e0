"""What the ranks of the exchange's tests run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.kernels.muon import orthogonalise
from llmkit.optim.exchange import MatrixExchange, MatrixShard, shards_of
from llmkit.optim.muon import COEFFICIENTS
from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import ParameterSlice, full_box

SHAPES = {"a": (7, 5), "b": (12, 6), "c": (12, 6), "d": (3, 11), "e": (12, 6)}


def orthogonalise_all(matrices: list[Tensor]) -> list[Tensor]:
    return orthogonalise(matrices, COEFFICIENTS)


def full(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(ord(name))
    return torch.randn(SHAPES[name], generator=generator)


def layout(form: str, rank: int, size: int) -> list[MatrixShard]:
    """This rank's shards of all matrices."""
    shards: list[MatrixShard] = []
    for name, shape in SHAPES.items():
        rows, columns = shape
        box = full_box(shape)
        if form == "tensor":  # by columns, unevenly
            first, last = columns * rank // size, columns * (rank + 1) // size
            box = ((0, rows), (first, last))
        part = ParameterSlice(name, shape, box, 0, rows)
        count = rows * (box[1][1] - box[1][0])
        start, stop = 0, count
        if form == "flat":
            start, stop = count * rank // size, count * (rank + 1) // size
        if form == "one":  # the others hold nothing
            start, stop = (0, count) if rank == 0 else (0, 0)
        shards += shards_of([part], start, stop)
    return shards


def exchanged(forms: list[str]) -> dict[str, list]:
    """Form -> [largest difference, elements sent by this rank in the exchange of values]."""
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {}
    for form in forms:
        shards = layout(form, rank, size)
        exchange = MatrixExchange(
            shards, SHAPES, Axis(rank, size, lambda: dist.group.WORLD),
            device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
        worst = 0.0
        for _ in range(2):  # it keeps nothing from one step to the next
            results = exchange.apply([values(shard, full(shard.name)) for shard in shards], orthogonalise_all)
            for shard, result in zip(shards, results, strict=True):
                (wanted,) = orthogonalise_all([full(shard.name)])
                worst = max(worst, float((result - values(shard, wanted)).abs().max()))
        found[form] = [worst, sum(exchange.sent_sizes), len(exchange.owned)]
    return found


def values(shard: MatrixShard, matrix: torch.Tensor) -> torch.Tensor:
    box = matrix[tuple(slice(*each) for each in shard.box)]
    return box.reshape(-1)[slice(*shard.range)]


def incomplete() -> str:
    """The error for a matrix of which nobody holds the last row."""
    rank, size = dist.get_rank(), dist.get_world_size()
    shards = [shard for shard in layout("flat", rank, size) if rank < size - 1 or shard.name != "b"]
    try:
        MatrixExchange(
            shards, SHAPES, Axis(rank, size, lambda: dist.group.WORLD),
            device=torch.device("cpu"), dtype=torch.float32,
        )  # fmt: skip
    except ValueError as error:
        return str(error)
    return ""
