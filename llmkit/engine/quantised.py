"""Setting the frozen weights of a model that keeps them in 8 or 4 bits."""

from __future__ import annotations

import torch
import torch.distributed as dist

from llmkit.engine.state_shards import Source
from llmkit.kernels.quantised import QuantisedWeight
from llmkit.model.base import Model
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import ParameterSlice

ELEMENTS = 2**24
"""Of a weight that are read at a time: 64 MiB in fp32."""


@torch.no_grad()
def write_quantised(model: Model, source: Source, mesh: Mesh) -> None:
    """Sets these weights, if there are any, to the source's, rounded. Collective.

    Of ranks that hold the same, one reads them and sends what they have become.
    """
    copies, weights = mesh["data", "context"], model.quantised_weights()
    with fail_together(mesh):
        for weight, parts in weights.values() if copies.rank == 0 else ():
            for part in parts:
                _write(weight, part, source)
    for weight, _ in weights.values() if copies.size > 1 else ():
        for tensor in (weight.codes, weight.scales):
            dist.broadcast(tensor, group=copies.group, group_src=0)


def _write(weight: QuantisedWeight, part: ParameterSlice, source: Source) -> None:
    """Reads a slice some rows at a time."""
    (first, last), columns = part.box
    rows = max(1, ELEMENTS // (columns[1] - columns[0]))
    for low in range(first, last, rows):
        box = ((low, min(low + rows, last)), columns)
        weight.write(part.start + low - first, source.read(part.name, "master", box))
