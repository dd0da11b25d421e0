"""Where DeepSpeed keeps this rank's slices of parameters: in a few flat tensors that differ by stage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, nn


class Fragment(NamedTuple):
    """This rank's slice of a parameter.

    flat: number of the flat tensor that holds it. offset: where in that it begins. start, numel: elements of
    the parameter's own flat storage.
    """

    flat: int
    offset: int
    start: int
    numel: int


class Partitions:
    """The flat tensors of DeepSpeed's optimizer `zero` at a stage, and what is where in them.

    parameters: all of the model's, by name. rank: the index among the ranks over which they are partitioned.
    """

    def __init__(self, zero: Any, stage: int, parameters: Mapping[str, nn.Parameter], rank: int) -> None:
        self.zero, self.stage, self.parameters, self.rank = zero, stage, parameters, rank

    @cached_property
    def flats(self) -> list[Tensor]:
        """This rank's slices of all masters, in a flat tensor for each group of parameters, or several."""
        for name in (
            "fp32_partitioned_groups_flat",  # stage 3
            "single_partition_of_fp32_groups",  # stages 1 and 2
            "fp32_groups_flat_partition",  # stage 1 in bf16
        ):
            if found := getattr(self.zero, name, None):
                return list(found)
        raise AssertionError(f"{type(self.zero).__name__} keeps its masters elsewhere")

    @cached_property
    def flat_of(self) -> dict[str, int]:
        """Parameter -> number of the flat tensor that its slices are in, on whichever ranks they are."""
        if self.stage < 3:
            groups = self.zero.bit16_groups if hasattr(self.zero, "bit16_groups") else self.zero.bf16_groups
            held = {id(parameter): n for n, group in enumerate(groups) for parameter in group}
            return {name: held[id(parameter)] for name, parameter in self.parameters.items()}
        position = self.zero.grad_position
        return {name: position[self.zero.get_param_id(p)][0] for name, p in self.parameters.items()}

    @cached_property
    def fragments(self) -> dict[str, Fragment]:
        """This rank's slices of the parameters; it may have none of one."""
        found = ((name, self._fragment(parameter)) for name, parameter in self.parameters.items())
        return {name: fragment for name, fragment in found if fragment is not None}

    def _fragment(self, parameter: nn.Parameter) -> Fragment | None:
        if self.stage == 3:
            flat, offset, numel = self.zero.grad_position[self.zero.get_param_id(parameter)]
            start = self.rank * numel
            numel = min(numel, parameter.ds_numel - start)  # type: ignore[attr-defined]
            return Fragment(flat, offset, start, numel) if numel > 0 else None
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        held, cut = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Fragment(mapping.param_group_index, held.start, cut.start, held.numel)

    def slice_of(self, name: str, flat: Tensor) -> Tensor:
        """The elements of a parameter's fragment in its flat tensor, or in one that lies as that does."""
        fragment = self.fragments[name]
        return flat[fragment.offset : fragment.offset + fragment.numel]
