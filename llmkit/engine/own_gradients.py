"""The size of the gradient that each rank has computed by itself, before it is summed over the ranks.

After the sum a NaN of one rank is on all of them, and nobody could tell whose it was. Experts that are dealt
out (expert parallelism) compute with the tokens of other ranks, too, so that a NaN in their gradients says
nothing of the rank that holds them: the native engine leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from llmkit.parallel.mesh import Mesh


class OwnGradients:
    """Sums the squares of parts of this rank's gradient, on the device; does nothing on one rank.

    A part that is added is one launch beside its norm, and nothing of it is kept until the step's end.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._squares: Tensor | None = None

    @property
    def active(self) -> bool:
        """Whether there are other ranks."""
        return self.mesh.world_size > 1

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """From now on adds the gradients of these parameters, of each micro-batch, as they come."""
        for parameter in parameters if self.active else ():
            parameter.register_hook(self.add)

    def start(self) -> None:
        """Before the first backward pass of a step."""
        self._squares = None

    def add(self, gradient: Tensor) -> None:
        """Takes a part of the gradient. A NaN or an infinity in it stays one."""
        norm = torch.linalg.vector_norm(gradient)
        self._sum(norm).addcmul_(norm, norm)  # in fp64, in which no square overflows

    def add_squares(self, squares: Tensor) -> None:
        """Takes the sum of squares of a part, () of any floating type."""
        self._sum(squares).add_(squares)

    def by_rank(self) -> Tensor | None:
        """(ranks,) fp64: the squared norm in the place of this rank, else 0; None on one rank."""
        if not self.active or self._squares is None:
            return None
        found = torch.zeros(self.mesh.world_size, dtype=torch.float64, device=self._squares.device)
        found[self.mesh.rank] = self._squares
        return found

    def _sum(self, part: Tensor) -> Tensor:
        """The sum so far, () fp64, on the device of a part."""
        if self._squares is None:
            self._squares = torch.zeros((), dtype=torch.float64, device=part.device)
        return self._squares
