"""How a parameter lies on the mesh: along each dimension sharded, replicated, or with a partial gradient.

The layer that makes a parameter describes it once, with `place`; all else follows from `placement`: which
ranks sum its gradient, over which ranks its part of the gradient norm is summed, who writes it into a
checkpoint, and DeepSpeed's marks. A parameter that nobody has described is replicated (`REPLICATED`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from llmkit.parallel.mesh import arrangement_of

_PLACEMENTS: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Parameter -> placement. Not an attribute: accelerate gives a parameter's attributes to its constructor."""


@dataclass(frozen=True)
class Shard:
    """Each rank along the mesh dimension holds another part, divided along the tensor dimension `dim`."""

    dim: int


@dataclass(frozen=True)
class Replicate:
    """Each rank along the mesh dimension holds the same, and computes the same gradient."""


@dataclass(frozen=True)
class Partial:
    """Each rank along the mesh dimension holds the same, and computes a term of the gradient's sum."""


Along: TypeAlias = Shard | Replicate | Partial


@dataclass(frozen=True)
class Placement:
    """Mesh dimension -> how the parameter lies along it. Dimensions not named: `Replicate`.

    One that names `expert` describes the ranks as they are arranged by experts: `EXPERT_DIMENSIONS`.
    """

    along: Mapping[str, Along]

    def __getitem__(self, dim: str) -> Along:
        return self.along.get(dim, Replicate())

    def _those(self, *kinds: type[Along]) -> tuple[str, ...]:
        return tuple(name for name in arrangement_of(self.along) if isinstance(self[name], kinds))

    @cached_property  # every step asks for that of every parameter
    def sharded(self) -> tuple[str, ...]:
        """Dimensions along which no two ranks hold the same: squares of the gradient are summed over them."""
        return self._those(Shard)

    @property
    def copies(self) -> tuple[str, ...]:
        """Dimensions along which all ranks hold the same: one of them writes it into a checkpoint."""
        return self._those(Replicate, Partial)

    @property
    def summed(self) -> tuple[str, ...]:
        """Dimensions over which the gradient must be summed."""
        return self._those(Partial)


REPLICATED = Placement({"data": Partial(), "context": Partial()})
"""Every rank holds the full tensor; ranks that see other tokens compute other terms of its gradient."""


def tensor_sharded(dim: int) -> Placement:
    """As `REPLICATED`, but divided along its dimension `dim` over the tensor-parallel ranks."""
    return Placement({**REPLICATED.along, "tensor": Shard(dim)})


def of_experts(dim: int) -> Placement:
    """Of experts that are dealt out, divided along dimension `dim` over the tensor-parallel ranks."""
    return Placement({"expert_data": Partial(), "expert": Shard(0), "tensor": Shard(dim)})


def place(parameter: Tensor, placement: Placement) -> None:
    """Describes a parameter; its copies (`clone`, `deepcopy`, from the meta device) are not described."""
    _PLACEMENTS[parameter] = placement


def placement(parameter: Tensor) -> Placement:
    """How a parameter lies on the mesh."""
    found: Placement = _PLACEMENTS.get(parameter, REPLICATED)
    return found
