"""What would make a model fit."""

from __future__ import annotations

from pathlib import Path

from llmkit import api
from llmkit.estimate.devices import Hardware
from llmkit.estimate.search import MICRO_BATCH, Found, Ground, as_given, with_settings
from llmkit.planner.assumed import open_subject
from llmkit.planner.remedies import remedies

QWEN3 = str(Path(__file__).parents[2] / "configs/models/qwen3-30b-a3b.yaml")


def test_more_nodes_help_where_the_nearest_layout_deals_out_experts() -> None:
    """Half of the experts, 6 bytes of weights and gradients a parameter, are more than a GPU has, however
    many there are; ZeRO-3 shares all of them out."""
    layout = {
        "parallel.expert_parallel_size": 2, "parallel.zero_stage": 1, "parallel.engine": "native",
        "parallel.activation_checkpointing": "full", MICRO_BATCH: 1,
    }  # fmt: skip
    loaded = with_settings(open_subject(api.load, QWEN3, [], 1e11).loaded, layout)
    ground = Ground(Hardware().fleet("h100", 8, 1))
    nearest = as_given(loaded, ground)
    assert not nearest.fits
    assert "it would take 2 nodes of 8 or " in remedies(loaded, ground, Found((), nearest))
