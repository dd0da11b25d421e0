"""The adapters in a checkpoint, as regions of what they add."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from llmkit.checkpoint.adapters import CheckpointAdapters, has_adapters

LAYER = "blocks.0.mlp.down_proj"
A, B = torch.randn(2, 5), torch.randn(7, 2)
TENSORS = {f"{LAYER}.lora_A": A, f"{LAYER}.lora_B": B, "norm.weight": torch.ones(3)}


def read(name, kind, box=None):
    assert kind == "master"
    return TENSORS[name] if box is None else TENSORS[name][tuple(slice(*each) for each in box)]


def stored(**lora):
    return SimpleNamespace(config={"train": {"lora": lora}}, names=lambda kind: list(TENSORS), read=read)


def test_the_change_of_a_region_is_that_region_of_the_change():
    adapters = CheckpointAdapters(stored(rank=2, alpha=3.0))
    assert adapters.layers == {LAYER}
    wanted = 1.5 * B @ A
    torch.testing.assert_close(adapters.change(LAYER, ((1, 6), (2, 5))), wanted[1:6, 2:5])
    assert [tuple(each.shape) for each in adapters.matrices(LAYER)] == [(2, 5), (7, 2)]


def test_only_a_run_with_a_rank_has_adapters():
    assert has_adapters(stored(rank=2)) and not has_adapters(stored(rank=0))
    assert not has_adapters(SimpleNamespace(config={"train": {}}))
    assert not has_adapters(SimpleNamespace(config={}))
