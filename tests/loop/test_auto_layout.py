"""A start that chooses its layout: which devices it is for, and that it trains and goes on with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from llmkit.cli import main
from llmkit.config.load import load
from llmkit.errors import UserError
from llmkit.estimate.search import MICRO_BATCH
from llmkit.loop import auto_layout
from llmkit.loop.auto_layout import choose_layout, fleet_of
from llmkit.parallel.rank_info import RankInfo
from llmkit.plan import Known, resolve_plan
from tests.program import make_project


def test_nodes_and_devices_of_a_launch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    fleet = fleet_of(RankInfo(rank=9, world_size=16, local_rank=1, local_size=8))
    assert (fleet.device.name, fleet.nodes, fleet.devices_per_node, fleet.size) == ("h100", 2, 8, 16)
    assert (fleet.inside.name, fleet.between.name) == ("nvlink4", "ib-ndr")


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("llama-3.1-8b", []),  # which names its activation checkpointing
        ("llama-3.1-8b", ["train.micro_batch_size=1"]),
        ("gpt3-xl", ["parallel.tensor_parallel_size=2"]),
        ("gpt2-124m", ["train.global_batch_size=8", "data.tokenizer={type: bytes, name: null}"]),
    ],
)
def test_a_start_chooses_the_layout_that_the_plan_shows(recipe, overrides, monkeypatch, capsys):
    """The same settings, on the same eight GPUs with the same host, on every rank."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(auto_layout, "host_memory", lambda: 1024 * 2**30)
    path = str(Path(__file__).parents[2] / f"configs/recipes/{recipe}.yaml")
    given = ["parallel.layout=auto", *overrides]
    assert main(["plan", path, "--device", "h100", "--host-memory", "1024", "--json", *given]) == 0
    shown = json.loads(capsys.readouterr().out)["layouts"][0]["settings"]
    starts = [choose_layout(load(path, given), Known(8), RankInfo(n, 8, n, 8)) for n in (0, 7)]
    for start in starts:
        layout = resolve_plan(start, Known(8)).layout.to_dict()
        assert {name: layout[name.partition(".")[2]] for name in shown if name != MICRO_BATCH} == {
            name: value for name, value in shown.items() if name != MICRO_BATCH
        }
    assert starts[0].remarks == starts[1].remarks


def test_a_gpu_without_figures_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ["NVIDIA Z9"][index])
    with pytest.raises(UserError, match="no figures of NVIDIA Z9 are known"):
        fleet_of(RankInfo())
    with pytest.raises(UserError, match="no figures of NVIDIA Z9 are known"):  # a task of srun sees one GPU
        fleet_of(RankInfo(rank=3, world_size=4, local_rank=3, local_size=4))


def test_accelerate_may_ask_for_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert fleet_of(RankInfo()).device.architecture == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "", "before torch looks for GPUs"


def test_a_run_trains_with_it_and_goes_on(tmp_path, monkeypatch, capsys):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = ["train", "tiny.yaml", "parallel.layout=auto"]
    assert main([*run, "train.max_steps=2"]) == 0
    printed = capsys.readouterr().out
    assert "parallel.layout=auto: 1 process, the plainest of" in printed
    (folder,) = (path for path in Path("runs").iterdir() if path.is_dir())
    assert json.loads((folder / "manifest.json").read_text())["layout"]["zero_stage"] == 0
    assert "chosen by parallel.layout" in next((folder / "configs").iterdir()).read_text()
    assert main([*run, "train.max_steps=3"]) == 0
    assert "goes on after step 2" in capsys.readouterr().out
    assert main(["config", "tiny.yaml", "parallel.layout=auto"]) == 0
    assert "layout     chosen at start (parallel.layout)" in capsys.readouterr().out
