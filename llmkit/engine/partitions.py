"""Where DeepSpeed keeps this rank's slices of parameters: in a few flat tensors that differ by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from llmkit.config.groups import Group
from llmkit.optim.build import Held
from llmkit.parallel.slices import Fragment


def held_by_deepspeed(
    zero: Any, stage: int, parameters: Mapping[str, nn.Parameter], groups: Sequence[Group], rank: int
) -> list[Held]:
    """The flat fp32 tensors of DeepSpeed's optimizer `zero`, and what is where in them.

    As many on every rank, in the same order. Each belongs to one group, of which it may hold some parameters
    only: the group that comes with it names these. parameters: all that are trained. rank: the index among
    the ranks over which they are partitioned.
    """
    numbers = _flat_of(zero, stage, parameters)
    held = []
    for number, flat in enumerate(_flats(zero)):
        names = tuple(name for name in parameters if numbers[name] == number)
        group = next(group for group in groups if names[0] in group.names)
        found = (_fragment(zero, stage, name, parameters[name], rank) for name in names)
        fragments = [fragment for fragment in found if fragment is not None]
        held.append(Held(replace(group, names=names), flat, fragments))
    return held


def own_partition(parameter: nn.Parameter, rank: int) -> tuple[Tensor, int]:
    """At stage 3: this rank's elements of a weight, flat, and the index of the first of them.

    rank: the index among the ranks over which it is partitioned.
    """
    partition = parameter.ds_tensor  # type: ignore[attr-defined]
    total: int = parameter.ds_numel  # type: ignore[attr-defined]
    start = min(rank * partition.numel(), total)
    return partition[: total - start], start


def _flats(zero: Any) -> list[Tensor]:
    """This rank's slices of all masters, in a flat tensor for each group of parameters, or several."""
    for name in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 in bf16
    ):
        if found := getattr(zero, name, None):
            return list(found)
    raise AssertionError(f"{type(zero).__name__} keeps its masters elsewhere")


def _flat_of(zero: Any, stage: int, parameters: Mapping[str, nn.Parameter]) -> dict[str, int]:
    """Parameter -> number of the flat tensor that its slices are in, on whichever ranks they are."""
    if stage == 3:
        return {name: zero.grad_position[zero.get_param_id(p)][0] for name, p in parameters.items()}
    groups = zero.bit16_groups if hasattr(zero, "bit16_groups") else zero.bf16_groups
    numbers = {id(parameter): number for number, group in enumerate(groups) for parameter in group}
    return {name: numbers[id(parameter)] for name, parameter in parameters.items()}


def _fragment(zero: Any, stage: int, name: str, parameter: nn.Parameter, rank: int) -> Fragment | None:
    """This rank's slice of a parameter, if it has one."""
    if stage == 3:
        _, offset, share = zero.grad_position[zero.get_param_id(parameter)]
        start = rank * share
        numel = min(share, parameter.ds_numel - start)  # type: ignore[attr-defined]
        return Fragment(name, offset, start, numel) if numel > 0 else None
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return None
    flat, stored = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Fragment(name, flat.start, stored.start, flat.numel)
