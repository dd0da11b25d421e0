"""Where slices lie in DeepSpeed's flat tensors, as each stage keeps them; its objects are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmkit.engine.partitions import Fragment, Partitions


def parameters(*sizes: int) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.zeros(size)) for name, size in zip("abc", sizes, strict=True)}


@pytest.mark.parametrize(("rank", "kept"), [(0, {"a": 4, "b": 2, "c": 1}), (1, {"a": 3, "b": 2})])
def test_stage_3_gives_each_rank_an_equal_share_the_last_of_which_is_padded(rank, kept):
    named = parameters(7, 4, 1)
    for size, parameter in zip((7, 4, 1), named.values(), strict=True):
        parameter.ds_numel = size
    position = {id(named["a"]): (0, 0, 4), id(named["b"]): (1, 0, 2), id(named["c"]): (1, 2, 1)}
    flats = [torch.arange(4.0), torch.arange(3.0)]
    zero = SimpleNamespace(fp32_partitioned_groups_flat=flats, grad_position=position, get_param_id=id)
    found = Partitions(zero, 3, named, rank)
    assert found.flat_of == {"a": 0, "b": 1, "c": 1}
    assert {name: each.numel for name, each in found.fragments.items()} == kept
    assert found.fragments["b"] == Fragment(1, 0, 2 * rank, 2)
    assert found.slice_of("b", flats[1]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("masters", "groups"),
    [("single_partition_of_fp32_groups", "bit16_groups"), ("fp32_groups_flat_partition", "bf16_groups")],
)
def test_stages_1_and_2_put_a_parameter_on_one_rank_or_across_two(masters, groups):
    named = parameters(5, 3, 2)
    address = SimpleNamespace
    named["a"]._hp_mapping = None  # all of it on the other rank
    named["b"]._hp_mapping = SimpleNamespace(
        hp_fragment_address=address(start=0, numel=2), lp_fragment_address=address(start=1, numel=2),
        param_group_index=0,
    )  # fmt: skip
    named["c"]._hp_mapping = SimpleNamespace(
        hp_fragment_address=address(start=0, numel=2), lp_fragment_address=address(start=0, numel=2),
        param_group_index=1,
    )  # fmt: skip
    flats = [torch.zeros(4), torch.zeros(2)]
    zero = SimpleNamespace(**{masters: flats, groups: [[named["a"], named["b"]], [named["c"]]]})
    found = Partitions(zero, 1, named, 1)
    assert found.flats == flats and found.flat_of == {"a": 0, "b": 0, "c": 1}
    assert found.fragments == {"b": Fragment(0, 0, 1, 2), "c": Fragment(1, 0, 0, 2)}


def test_an_optimizer_without_known_masters_is_an_error():
    with pytest.raises(AssertionError, match="SimpleNamespace keeps its masters elsewhere"):
        _ = Partitions(SimpleNamespace(), 1, {}, 0).flats
