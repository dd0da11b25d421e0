"""Where slices lie in DeepSpeed's flat tensors, as each stage keeps them; its objects are stand-ins."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmkit.config.groups import Group
from llmkit.engine.partitions import held_by_deepspeed
from llmkit.parallel.slices import Fragment

GROUPS = [
    Group(optimizer, names, 0.01, 0.1, (0.9, 0.95), 1e-8, 0.95)
    for optimizer, names in (("muon", ("a", "b")), ("adamw", ("c",)))
]


def parameters(*sizes: int) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(size)) for name, size in zip("abc", sizes, strict=True)}


@pytest.mark.parametrize("rank", [0, 1])
def test_stage_3_gives_each_rank_an_equal_share_the_last_of_which_is_padded(rank):
    """A group may be in several flat tensors, as far as sub_group_size allows it."""
    named = parameters(7, 4, 1)
    for size, parameter in zip((7, 4, 1), named.values(), strict=True):
        parameter.ds_numel = size
    position = {id(named["a"]): (0, 0, 4), id(named["b"]): (1, 0, 2), id(named["c"]): (2, 0, 1)}
    flats = [torch.zeros(4), torch.zeros(2), torch.zeros(1)]
    zero = SimpleNamespace(fp32_partitioned_groups_flat=flats, grad_position=position, get_param_id=id)
    a, b, c = held_by_deepspeed(zero, 3, named, GROUPS, rank)
    assert [each.tensor for each in (a, b, c)] == flats
    assert (a.group, b.group) == tuple(replace(GROUPS[0], names=(n,)) for n in "ab")
    assert c.group == GROUPS[1]
    assert a.fragments == [Fragment("a", 0, 4 * rank, 4 - rank)]
    assert b.fragments == [Fragment("b", 0, 2 * rank, 2)]
    assert c.fragments == ([Fragment("c", 0, 0, 1)] if rank == 0 else [])


@pytest.mark.parametrize(
    ("masters", "groups"),
    [("single_partition_of_fp32_groups", "bit16_groups"), ("fp32_groups_flat_partition", "bf16_groups")],
)
def test_stages_1_and_2_put_a_parameter_on_one_rank_or_across_two(masters, groups):
    named = parameters(5, 3, 2)
    named["a"]._hp_mapping = None  # all of it on the other rank
    for name, start in (("b", 1), ("c", 0)):
        named[name]._hp_mapping = SimpleNamespace(
            hp_fragment_address=SimpleNamespace(start=0, numel=2),
            lp_fragment_address=SimpleNamespace(start=start, numel=2),
        )
    flats = [torch.zeros(4), torch.zeros(2)]
    zero = SimpleNamespace(**{masters: flats, groups: [[named["a"], named["b"]], [named["c"]]]})
    first, second = held_by_deepspeed(zero, 1, named, GROUPS, 1)
    assert (first.tensor, second.tensor) == tuple(flats)
    assert (first.group, second.group) == tuple(GROUPS)
    assert first.fragments == [Fragment("b", 0, 1, 2)]
    assert second.fragments == [Fragment("c", 0, 0, 2)]


def test_an_optimizer_without_known_masters_is_an_error():
    zero = SimpleNamespace(bit16_groups=[])
    with pytest.raises(AssertionError, match="SimpleNamespace keeps its masters elsewhere"):
        held_by_deepspeed(zero, 1, {}, GROUPS, 0)
