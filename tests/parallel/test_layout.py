"""The layout of a run over its processes."""

from __future__ import annotations

import json

import pytest

from llmkit.parallel.layout import Layout


@pytest.mark.parametrize(("world", "tensor", "data"), [(1, 1, 1), (8, 1, 8), (8, 2, 4), (6, 3, 2)])
def test_what_tensor_parallelism_leaves_is_data_parallel(world: int, tensor: int, data: int) -> None:
    assert Layout(world_size=world, tensor_parallel_size=tensor).data_parallel_size == data


@pytest.mark.parametrize(("stage", "tensor"), [(stage, tensor) for stage in range(4) for tensor in (1, 2)])
def test_weights_are_full_unless_stage_3_or_tensor_parallelism_shards_them(stage: int, tensor: int) -> None:
    layout = Layout(world_size=4, zero_stage=stage, tensor_parallel_size=tensor)
    assert layout.full_weights == ((stage, tensor) in [(0, 1), (1, 1), (2, 1)])


def test_it_can_be_written_down() -> None:
    layout = Layout(4, 2, True, 3, "cpu", "full", 2, deepspeed={"zero_optimization.overlap_comm": True})
    written = json.loads(json.dumps(layout.to_dict()))
    assert Layout(**written) == layout
