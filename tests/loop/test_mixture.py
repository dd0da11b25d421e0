"""Runs of mixtures of experts: what is on record of them, their biases over a resume, adapters on them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from llmkit.checkpoint.read import load as load_checkpoint
from llmkit.config.load import load
from llmkit.loop.hook import Hook, Request
from llmkit.loop.options import Options
from llmkit.monitor.media import EXPERT_LOADS, read_media
from llmkit.monitor.record import read_run
from llmkit.report.heatmap import heatmaps
from llmkit.train import train
from tests.program import recorded, rows, timeless

SETTINGS = (
    "train.max_steps=7", "model.hidden_dropout=0.0", "monitor.log_every=3", "monitor.statistics_every=4",
    "model.moe={num_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 24, bias_update_rate: 0.03, "
    "capacity_factor: 0.8, first_dense_layers: 1}", "monitor.dead_expert=0.9", "checkpoint.every_steps=0",
)  # fmt: skip
BIAS = "blocks.1.mlp.router.bias"


def fit(*settings: str, hooks: tuple[Hook, ...] = ()) -> int:
    loaded = load("tiny.yaml", (*SETTINGS, *settings))
    return train(loaded, Options(), started=time.monotonic(), environment={}, hooks=list(hooks))


class Stop(Hook):
    """Stops the run after a step between two rows."""

    def request(self, t: Any) -> Request | None:
        return Request(stop="enough") if t.state.step == 5 else None


def bias(run: str, step: int) -> torch.Tensor:
    return load_checkpoint(Path(f"runs/{run}/checkpoints/step-{step:08d}")).read(BIAS, "master")


def test_routing_is_on_record_and_biases_go_on_where_they_were(project: Path) -> None:
    assert fit("run.name=straight") == 0
    assert fit(hooks=(Stop(),)) == 75
    assert fit() == 0
    assert timeless(Path("runs/tiny")) == timeless(Path("runs/straight"))
    assert torch.equal(bias("tiny", 7), bias("straight", 7))
    moved = bias("straight", 7) / 0.03  # a whole number of steps up or down
    assert torch.allclose(moved, moved.round(), atol=1e-3) and moved.abs().max() >= 1
    training = [row for row in rows(Path("runs/straight")) if "loss" in row]
    for row in training:
        assert 0 < row["router_entropy"] <= 1.3863 and row["router_aux_loss"] > 0
        assert row["expert_load_min"] <= 1 <= row["expert_load_max"] and 0 < row["expert_dropped"] < 1
    (statistics,) = [row for row in rows(Path("runs/straight")) if "router_balance/blocks.1" in row]
    assert statistics["step"] == 4 and "router_balance/blocks.0" not in statistics
    (item,) = [item for item in read_media(Path("runs/straight")) if item["name"] == EXPERT_LOADS]
    assert item["rows"][0][0] == "blocks.1" and abs(sum(item["rows"][0][1:]) - 4) < 1e-3
    pictures = {each.title: each for each in heatmaps(read_run(Path("runs/straight")))}
    assert pictures["Load of each expert, over the mean of its layer"].across == "experts 0 to 3, step 4"
    events = recorded("dead_experts", Path("runs/straight"))
    assert events and all(event["where"].startswith("blocks.1: ") for event in events)
    # Adapters on it: the experts, the router and its biases stay as they are, and are in no checkpoint.
    lora = ("train.lora.rank=2", "train.init_from=runs/straight", "data.tokenizer={type: init_from}")
    assert fit("run.name=adapted", "train.max_steps=2", *lora) == 0
    adapters = load_checkpoint(Path("runs/adapted/checkpoints/step-00000002")).names("master")
    assert adapters and all(".attention." in name or ".blocks.0." in f".{name}" for name in adapters)
    assert "router_entropy" in rows(Path("runs/adapted"))[0]


def test_a_mixture_without_biases_is_balanced_by_them_from_its_weights_on(project: Path) -> None:
    assert fit("run.name=plain", "train.max_steps=2", "model.moe.bias_update_rate=null") == 0
    assert BIAS not in load_checkpoint(Path("runs/plain/checkpoints/step-00000002")).names("master")
    weights = ("train.init_from=runs/plain", "data.tokenizer={type: init_from}")
    otherwise = ("model.moe.router_aux_loss_coef=0", "model.moe.capacity_factor=null")
    assert fit("run.name=balanced", "train.max_steps=3", *weights, *otherwise) == 0
    moved = bias("balanced", 3) / 0.03
    assert torch.allclose(moved, moved.round(), atol=1e-3) and 1 <= moved.abs().max() <= 3
    assert not any(row.get("expert_dropped") for row in rows(Path("runs/balanced")))
