"""Context parallelism: what a rank knows of those with which it shares its rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch.distributed import ProcessGroup

from llmkit.batch import Ranges
from llmkit.config.context import Form, row_pieces
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh


@dataclass(frozen=True)
class ContextParallel:
    """The ranks along the dimension `context`, each of which has a piece of the same rows.

    form: how they compute attention, which decides the pieces too: see `row_pieces`.
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None
    form: Form = "ulysses"

    def pieces(self, length: int) -> list[Ranges]:
        """The positions of each rank in rows of `length` tokens."""
        return row_pieces(length, self.size, self.form)

    def own(self, length: int) -> Ranges | None:
        """Those of this rank; None where it has all of them."""
        return None if self.size == 1 else self.pieces(length)[self.rank]

    def sizes(self, length: int) -> list[int]:
        """How many positions each rank has."""
        return [sum(stop - start for start, stop in ranges) for ranges in self.pieces(length)]


WHOLE_ROWS = ContextParallel()
"""Of a rank that shares its rows with nobody."""


def context_parallel(mesh: Mesh, form: Form) -> ContextParallel:
    """What the model needs of the mesh. Collective where `Mesh.split` has not made the group."""
    axis = mesh["context"]
    return ContextParallel(axis.rank, axis.size, axis.group, form) if axis.size > 1 else WHOLE_ROWS


def split_mesh(mesh: Mesh, layout: Layout) -> Mesh:
    """The ranks arranged as the layout asks. Collective."""
    return mesh.split(
        context=layout.context_parallel_size,
        tensor=layout.tensor_parallel_size,
        expert=layout.expert_parallel_size,
    )
