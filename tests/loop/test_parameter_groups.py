"""Runs with groups of parameters: resumed, changed, recorded."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from llmkit.checkpoint.format import folder_name
from llmkit.checkpoint.read import Checkpoint
from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.cli import main
from tests.program import losses, recorded, train

GROUPS = (
    "optimizer.groups=[{params: [embedding.weight], learning_rate: 0.03, betas: [0.8, 0.9], weight_decay: 0},"
    " {params: ['blocks.1.*_proj.weight'], momentum: 0.8, learning_rate: 0.02},"
    " {params: ['*norm.weight'], weight_decay: 0.3}]"
)
MUON = ("optimizer.name=muon", "optimizer.momentum_warmup_steps=8", GROUPS)
EMBEDDING = "adamw, learning_rate 0.03, betas [0.8, 0.9], eps 1e-08, weight_decay 0.0: embedding.weight"
DOWN = "blocks.0.mlp.down_proj.weight"


def at(step: int) -> Checkpoint:
    return open_checkpoint(Path("runs/tiny/checkpoints") / folder_name(step))


def test_a_run_that_was_interrupted_is_the_same(project):
    assert train(*MUON) == 0
    for steps in ("train.max_steps=5", "train.max_steps=12"):
        assert train(*MUON, "run.name=twice", "schedule.steps=12", steps) == 0
    assert losses("twice") == losses("tiny") and len(losses("tiny")) == 12
    assert train("optimizer.name=muon", "run.name=plain") == 0
    assert losses("plain")[:1] == losses("tiny")[:1] and losses("plain")[2] != losses("tiny")[2]


def test_they_are_shown_and_recorded(project, capsys):
    assert main(["config", "tiny.yaml", *MUON]) == 0
    assert EMBEDDING in capsys.readouterr().out
    assert train(*MUON, "train.max_steps=1") == 0
    groups = json.loads(Path("runs/tiny/manifest.json").read_text())["parameter_groups"]
    assert [(g["optimizer"], g["learning_rate"], g["weight_decay"], g["elements"]) for g in groups] == [
        ("adamw", 0.03, 0, 257 * 32),
        ("adamw", 0.01, 0.3, 5 * 32 + 4 * 8),
        ("muon", 0.01, 0.1, 32 * (32 + 16 + 16 + 32 + 3 * 64)),
        ("muon", 0.02, 0.1, 32 * (32 + 16 + 16 + 32 + 3 * 64)),
    ]


def test_other_groups_go_on_with_the_moments_of_each_parameter(project, capsys):
    """But of one that another rule updates now: those start at zero."""
    assert train("train.max_steps=5") == 0
    before = at(5)
    still = "{params: [embedding.weight], learning_rate: 1e-9}"
    groups = f"optimizer.groups=[{{params: ['blocks.0.mlp.*'], name: muon}}, {still}]"
    assert train(groups, "train.max_steps=6", "optimizer.weight_decay=0") == 0
    printed = capsys.readouterr().out
    assert "changed since the checkpoint: optimizer.groups.0: absent -> " in printed
    assert "optimizer.groups.1: absent -> " in printed and "(command line)" in printed
    assert {"optimizer.groups.0", "optimizer.groups.1"} <= {
        change["setting"] for change in recorded("resume")[0]["changes"]
    }
    after = at(6)
    assert DOWN in before.names("exp_avg") and DOWN not in after.names("exp_avg")
    assert set(after.names("momentum_buffer")) == {
        f"blocks.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    }
    old, new = (each.read("embedding.weight", "master") for each in (before, after))
    assert torch.allclose(old, new, atol=1e-7)
    kept = after.read(DOWN.replace("0", "1"), "exp_avg_sq") / before.read(
        DOWN.replace("0", "1"), "exp_avg_sq"
    )
    assert float(kept.min()) >= 0.95 - 1e-6, "the second moment goes on from what it was"
